"""config.py: presets are flags as one would type them, flags given with them overrule them, and --help shows them."""

import shlex
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise

import pytest

import dagrpo
from harness import evaluation
from harness.config import GROUPS, PRESETS, Config, build_parser, parse
from harness.evaluation import Settings

MUST = ["--method", "dagrpo", "--out", "runs/x"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_flags_and_in_the_help(name):
    config = parse([*MUST, "--preset", name])
    words = shlex.split(PRESETS[name][1])
    for flag, value in pairwise(words):
        if flag.startswith("--") and not value.startswith("--"):
            assert str(getattr(config, flag[2:].replace("-", "_"))) in (value, str(float_or(value)))
    assert PRESETS[name][1] in build_parser().format_help()


def float_or(value):
    try:
        return float(value)
    except ValueError:
        return value


def test_the_default_is_the_builtin_preset():
    plain, preset = parse(MUST), parse([*MUST, "--preset", "builtin"])
    assert replace(plain, preset="builtin") == preset


def test_the_paper_preset_is_section_6():
    config = parse([*MUST, "--preset", "paper"])
    assert (config.batch_prompts, config.batch_prompts // config.updates_per_batch) == (128, 64)
    assert (config.group_size, config.temperature, config.max_new_tokens, config.lr) == (8, 1.0, 8192, 1e-6)
    assert (config.steps, config.delta, config.scorer, config.judge_name) == (500, 3.0, "judge", "gpt-4o")
    recipe = config.recipe
    assert (recipe.scale, recipe.divisor, config.kl_beta) == ("none", "constant", 0.0)


@pytest.mark.parametrize("order", [["--lr", "3e-6", "--preset", "qwen"], ["--preset", "qwen", "--lr", "3e-6"]])
def test_a_flag_beside_a_preset_overrules_it(order):
    config = parse([*MUST, *order])
    assert config.lr == 3e-6 and config.model == "Qwen/Qwen2.5-0.5B-Instruct"


def test_flags_overrule_the_recipe_and_nothing_else_does():
    for method, recipe in dagrpo.METHODS.items():
        assert parse(["--method", method, "--out", "x"]).recipe == recipe
    given = ["--scale", "group", "--divisor", "tokens", "--anchor-ratio", "shaped"]
    choices = {"scale": "group", "divisor": "tokens", "anchor_ratio": "shaped"}
    assert parse([*MUST, *given]).recipe == replace(dagrpo.METHODS["dagrpo"], **choices)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--preset", "big"], "--preset"),
        (["--scorer", "judge", "--judge-url", "http://localhost"], "--scorer judge needs --judge-name"),
        (["--scorer", "local"], "--scorer local needs --judge-model"),
        (["--scorer", "oracle"], "--scorer"),
        (["--lora-rank", "-1"], "--lora-rank must be at least 0"),
        (["--data-limit", "0"], "--data-limit must be at least 1"),
        (["--judge-concurrency", "0"], "--judge-concurrency must be at least 1"),
        (["--judge-tokens", "0"], "--judge-tokens must be at least 1"),
        (["--judge-timeout", "0"], "--judge-timeout must be above 0"),
        (["--judge-timeout", "inf"], "--judge-timeout must be a finite number"),
        (["--judge-json", "xml"], "--judge-json"),
        (["--method", "sft", "--anchor-when", "hard"], "--anchor-when hard: sft samples nothing"),
    ],
)
def test_bad_values_are_one_clear_line(capsys, given, message):
    with pytest.raises(SystemExit) as stop:
        parse([*MUST, *given])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and message in err


ODD = ["nan", "inf", "-inf", "-1", "2147483648", "1e39", "1" + "0" * 22, "1" + "0" * 399, "9" * 5000, "x", ""]
NUMBERS = [s.name for s in fields(Config) if s.type in ("int", "float", "int | None", "float | None")]
OF_EVAL = [s.name for s in fields(Settings) if s.type in ("int", "float", "int | None", "float | None")]


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:12])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_odd_number_gets_through(capsys, name, value):
    with pytest.raises(SystemExit) as stop:
        parse([*MUST, f"--{name.replace('_', '-')}={value}"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and name.replace("_", "-") in err


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:12])
@pytest.mark.parametrize("name", OF_EVAL)
def test_no_odd_number_gets_through_to_eval(capsys, monkeypatch, name, value):
    monkeypatch.setattr(evaluation, "load_problems", lambda *_: pytest.fail("problems were loaded first"))
    with pytest.raises(SystemExit) as stop:
        evaluation.parse([f"--{name.replace('_', '-')}={value}"], None)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and name.replace("_", "-") in err


@pytest.mark.parametrize(
    "flags",
    ["--group-size 2000000000", "--batch-prompts 2000000000", "--max-new-tokens 2000000000", "--lora-rank 2000000000",
     "--judge-concurrency 2000000000", "--batch-prompts 4096 --group-size 4096", "--preset paper --group-size 200"],
)  # fmt: skip
def test_what_the_system_would_end_the_program_for_is_one_line(capsys, flags):
    with pytest.raises(SystemExit) as stop:
        parse([*MUST, *flags.split()])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and ("not fit into memory" in err or "must be at most" in err)


@pytest.mark.parametrize("flags", ["--k 60000", "--batch 2000000000", "--max-new-tokens 2000000000", "--k 2000000000"])
def test_nor_does_eval_ask_for_that_much(capsys, monkeypatch, flags):
    monkeypatch.setattr(evaluation, "load_problems", lambda *_: pytest.fail("problems were loaded first"))
    with pytest.raises(SystemExit) as stop:
        evaluation.parse([*flags.split(), "--max-new-tokens", "8192"] if "--k 6" in flags else flags.split(), None)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        parse(MUST).delta = 0.0


def test_every_setting_is_a_flag_with_a_help_text_under_a_title():
    """As `--learning-rate X`, with an explanation behind it; and no group of flags is forgotten in Config."""
    text = build_parser().format_help()
    for group in GROUPS:
        title = group.__doc__.partition("\n")[0]
        assert f"\n{title}:\n" in text and issubclass(Config, group)
    for setting in fields(Config):
        assert f"\n  --{setting.name.replace('_', '-')}" in text and setting.metadata["help"], setting.name
    assert [name for group in GROUPS for name in (f.name for f in fields(group))] == [f.name for f in fields(Config)]


def test_flags_that_are_gone_are_unknown(capsys):
    """They were controls, and are functions that an experiment hands to train.main."""
    for flag in ("--insist", "--random-mask", "--reward-is-score", "--keep-wrong-anchors"):
        with pytest.raises(SystemExit):
            parse([*MUST, flag])
        assert flag in capsys.readouterr().err

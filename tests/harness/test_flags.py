"""flags.py: presets are flags as one would type them, what stands beside them overrules them, and --help shows them."""

import shlex
from itertools import pairwise

import pytest

import dagrpo
from harness import config

MUST = ["--method", "dagrpo", "--out", "runs/x"]


@pytest.mark.parametrize("name", config.PRESETS)
def test_every_preset_is_valid_flags_and_stands_in_the_help(name):
    args = config.parse([*MUST, "--preset", name])
    words = shlex.split(config.PRESETS[name][1])
    for flag, value in pairwise(words):
        if flag.startswith("--") and not value.startswith("--"):
            assert str(getattr(args, flag[2:].replace("-", "_"))) in (value, str(float_or(value)))
    assert config.PRESETS[name][1] in config.build_parser().format_help()


def float_or(value):
    try:
        return float(value)
    except ValueError:
        return value


def test_the_default_is_the_builtin_preset():
    plain, preset = config.parse(MUST), config.parse([*MUST, "--preset", "builtin"])
    assert vars(plain) | {"preset": "builtin"} == vars(preset)


def test_the_paper_preset_is_section_6():
    args = config.parse([*MUST, "--preset", "paper"])
    assert (args.batch_prompts, args.batch_prompts // args.updates_per_batch) == (128, 64)
    assert (args.group_size, args.temperature, args.max_new_tokens, args.lr) == (8, 1.0, 8192, 1e-6)
    assert (args.steps, args.delta, args.scorer, args.judge_name) == (500, 3.0, "judge", "gpt-4o")
    recipe = config.make_recipe(args)
    assert (recipe.scale, recipe.divisor, args.kl_beta) == ("none", "constant", 0.0)


@pytest.mark.parametrize("order", [["--lr", "3e-6", "--preset", "qwen"], ["--preset", "qwen", "--lr", "3e-6"]])
def test_a_flag_beside_a_preset_overrules_it(order):
    args = config.parse([*MUST, *order])
    assert args.lr == 3e-6 and args.model == "Qwen/Qwen2.5-0.5B-Instruct"


def test_flags_overrule_the_recipe_and_nothing_else_does():
    assert config.make_recipe(config.parse(MUST)) == dagrpo.METHODS["dagrpo"]
    given = config.parse([*MUST, "--scale", "group", "--divisor", "tokens", "--anchor-ratio", "shaped"])
    recipe = config.make_recipe(given)
    assert (recipe.scale, recipe.divisor, recipe.anchor_ratio, recipe.rectify) == ("group", "tokens", "shaped", True)
    assert config.make_recipe(config.parse(["--method", "sft", "--out", "x"])) is None


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
    ],
)
def test_bad_values_are_one_clear_line(capsys, given, message):
    with pytest.raises(SystemExit) as stop:
        config.parse([*MUST, *given])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and message in err

"""trl_dagrpo.py as a command: a run that can be evaluated and drawn, and one clear line for what cannot work."""

import json
import runpy
import sys
import types

import pytest
import torch

pytestmark = pytest.mark.extra
pytest.importorskip("trl", reason="needs trl: pip install -r requirements-extra.txt")

import trl  # noqa: E402
from helpers_trl import ROOT, SMALL, make, read, record, settings  # noqa: E402

import eval as evaluation  # noqa: E402
import scoring  # noqa: E402
import train  # noqa: E402
from analysis import curves, table  # noqa: E402
from multi_gpu import trl_dagrpo  # noqa: E402
from multi_gpu.trainer import DaGRPOTrainer  # noqa: E402
from policy import load_policy, save_policy  # noqa: E402


@pytest.fixture
def some_are_right(monkeypatch):
    """The tiny policy is never right, and without signal nothing is tested: call even lengths right."""
    monkeypatch.setattr(trl_dagrpo, "verify", lambda response, answer, ended=True: len(response) % 2 == 0)
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: len(response) % 2 == 0)


def weights(where):
    return torch.cat([p.detach().flatten() for p in load_policy(str(where)).model.parameters()])


def test_a_run_can_be_evaluated_and_drawn(tiny_folder, tmp_path, some_are_right, capsys):
    out = tmp_path / "run"
    flags = ["--trl", "disable_tqdm=true", "lr_scheduler_type=linear"]
    trl_dagrpo.main(
        ["--steps", "3", "--out", str(out), "--model", str(tiny_folder), "--save-every", "1", *SMALL, *flags]
    )
    assert not torch.equal(weights(out), weights(tiny_folder))
    assert torch.equal(weights(out), weights(out / "checkpoint-6")), "a step is two updates"
    config = json.loads((out / "config.json").read_text())
    assert config["method"] == "dagrpo" and config["recipe"]["rectify"] and config["trl"] == trl.__version__
    rows = read(out)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    train.main(
        ["--method", "dagrpo", "--steps", "1", "--out", str(tmp_path / "ours"), "--model", str(tiny_folder), *SMALL]
    )
    assert set(curves.PANELS) <= set(rows[0]) and all(row[name] for row in rows for name in curves.PANELS)
    same = {
        "responses",
        "tokens",
        "kept_positive",
        "kept_negative",
        "anchors_kept",
        "no_signal_groups",
        "train_seconds",
    }
    assert same <= set(rows[0]) & set(read(tmp_path / "ours")[0])
    evaluation.main(["--model", str(out), "--per-level", "1", "--k", "0", "--benchmarks", "test"])
    curves.main([str(out), "--out", str(tmp_path / "figures")])
    table.main([str(out)])
    assert (out / "eval.json").exists() and (tmp_path / "figures" / "curves.png").exists()
    assert "dagrpo" in capsys.readouterr().out


class Seen(Exception):
    """Enough."""


@pytest.mark.parametrize("template", [None, "<bos>{% for m in messages %}{{ m.content }}<eos>{% endfor %}"])
def test_a_control_token_that_a_question_writes_out_is_text_on_trl_too(tiny_folder, tmp_path, monkeypatch, template):
    policy, seen, tokenize = load_policy(str(tiny_folder)), [], DaGRPOTrainer._tokenize_prompts
    policy.tokenizer.chat_template = template
    save_policy(policy, tmp_path / "model")
    row = {"question": "1+1=<eos><bos>2", "answer": "2", "demo": "1+1=2;#2"}
    (tmp_path / "data.jsonl").write_text((json.dumps(row) + "\n") * 4)

    def spy(self, prompts):
        seen.extend(tokenize(self, prompts)[0])
        raise Seen

    monkeypatch.setattr(DaGRPOTrainer, "_tokenize_prompts", spy)
    columns = ["--question-column", "question", "--answer-column", "answer", "--demo-column", "demo"]
    data = ["--data", str(tmp_path / "data.jsonl"), "--instruction", "", *columns]
    with pytest.raises(Seen):
        trl_dagrpo.main(
            ["--steps", "1", "--out", str(tmp_path / "run"), "--model", str(tmp_path / "model"), *SMALL, *data]
        )
    special = set(policy.tokenizer.all_special_ids) - {policy.tokenizer.unk_token_id}
    assert seen and all(ids == policy.encode_prompt(row["question"]) for ids in seen)
    assert [sum(token in special for token in ids) for ids in seen] == [2 if template else 0] * len(seen)


BAD = {
    "unknown method": (["--method", "gorpo"], "gorpo"),
    "gtpo": (["--method", "gtpo"], "there is no method 'gtpo' on TRL"),
    "sft": (["--method", "sft"], "there is no method 'sft' on TRL"),
    "holds a run": (["--out", "{run}"], "already holds a run"),
    "not done": (["--lora-rank", "4"], "--lora-rank is not supported on TRL"),
    "resume": (["--resume"], "--resume is not supported on TRL"),
    "plain": (["--plain"], "--plain is not supported on TRL"),
    "record changes": (["--record-changes"], "--record-changes is not supported on TRL"),
    "report": (["--report", "wandb"], "--report is not supported on TRL"),
    "uneven updates": (["--batch-prompts", "3"], "must be a multiple of --updates-per-batch 2"),
    "unknown field": (["--trl", "vllm=true"], "--trl vllm=true: not a field of GRPOConfig"),
    "no value": (["--trl", "use_vllm"], "--trl use_vllm: not a field"),
    "field of the recipe": (["--trl", "loss_type=grpo"], "loss_type is for TRL's own losses"),
    "ratio bound": (["--trl", "delta=2.0"], "delta is for TRL's own losses"),
    "no rows": (["--per-device-rows", "0"], "--per-device-rows must be at least 1"),
    "delta": (["--delta", "nan"], "--delta must be a finite number"),
    "divisor": (["--divisor", "sequence"], "--divisor is not supported on TRL"),
    "anchor ratio": (["--trl", "anchor_ratio=half"], "anchor_ratio must be one or shaped, not 'half'"),
    "half an update": (["--trl", "gradient_accumulation_steps=3"], "must be a multiple of gradient_accumulation_steps"),
    "no such model": (["--model", "/nowhere/at/all"], "holds no model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(tiny_folder, tmp_path, capfd, case):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("precious")
    flags, message = BAD[case]
    given = {"--out": str(tmp_path / "new"), "--model": str(tiny_folder), "--steps": "1"}
    flags = [flag.format(run=tmp_path / "run") for flag in flags]
    flags = [*[x for name, value in given.items() if name not in flags for x in (name, value)], *flags]
    with pytest.raises(SystemExit) as stop:
        trl_dagrpo.main(flags)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert (tmp_path / "run" / "metrics.csv").read_text() == "precious"


def test_rows_that_processes_cannot_share_are_one_clear_line(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit):
        trl_dagrpo.main(["--out", str(tmp_path / "new"), "--model", str(tiny_folder)])
    assert capsys.readouterr().err == "error: 128 responses a step cannot be split among 2 updates on 3 processes\n"


@pytest.mark.parametrize("version", ["1.15.2", "1.17.0", "1.160.0", None])
def test_another_trl_or_none_is_one_clear_line(monkeypatch, capsys, version):
    other = None if version is None else types.ModuleType("trl")
    if other:
        other.__version__ = version
    monkeypatch.setitem(sys.modules, "trl", other)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "multi_gpu" / "trainer.py"))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert ("needs the package trl" if version is None else f"tested with trl 1.16, found {version}") in err


def test_what_cannot_work_is_said_by_the_trainer_too(tiny_folder, tmp_path):
    args = settings(tmp_path, method="dagrpo")
    with pytest.raises(ValueError, match="masks by scores: give scorer="):
        DaGRPOTrainer(str(tiny_folder), trl_dagrpo.right, args)
    with pytest.raises(ValueError, match="tools: responses of several turns"):
        DaGRPOTrainer(str(tiny_folder), trl_dagrpo.right, args, scorer=trl_dagrpo.right, tools=[print])
    with pytest.raises(ValueError, match="no method 'gtpo' on TRL"):
        settings(tmp_path, method="gtpo")


def test_a_scorer_with_too_few_scores_is_said(tiny, tiny_folder, tmp_path):
    trainer = make(tiny_folder, record(tiny), settings(tmp_path, method="dagrpo_on"))
    trainer.scorer = lambda **_: [1.0]
    with pytest.raises(ValueError, match="1 scores for 12 responses"):
        trainer.train()


def test_the_start_is_that_of_the_world(tmp_path, monkeypatch):
    def found(begin, world):
        raise SystemExit(f"the start of {world}")

    monkeypatch.setattr(trl_dagrpo, "find_start", found)
    with pytest.raises(SystemExit, match="the start of guess"):
        trl_dagrpo.main(["--world", "guess", "--steps", "1", "--out", str(tmp_path / "run"), *SMALL])

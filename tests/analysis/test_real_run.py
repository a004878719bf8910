"""analysis.real_run: every stage runs, from nothing and again, and the report says what the files say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from byte_model import byte_model
from transformers import LlamaConfig

import eval as evaluation
import train
from analysis import curves, real_run
from analysis.real_run import METHODS, PLANS, Stage, difference, right, stages

SMALL = ["--steps", "2", "--sft-steps", "1", "--prompts", "2", "--tokens", "70", "--problems", "3", "--seeds", "1"]


def test_a_seed_is_sft_then_each_method_and_sft_again_at_a_methods_cost():
    plan = replace(PLANS["laptop"], seeds=2)
    found = stages(plan)
    assert [stage.name for stage in found] == ["before", *(2 * ["sft", *METHODS, "sft more"])]
    work = {stage.name: stage.work(plan) for stage in found}
    assert work["sft more"] == pytest.approx(work["dagrpo"], rel=0.02)


def in_this_process(*command):
    """As the commands say, without seconds of imports for each."""
    main = {"train.py": train.main, "eval.py": evaluation.main, "-m": curves.main}[command[0]]
    main(list(command[2 if command[0] == "-m" else 1 :]))


def test_all_of_it_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(real_run, "call", in_this_process)
    model, out = byte_model(LlamaConfig, tmp_path / "model"), tmp_path / "out"
    flags = ["--model", str(model), "--out", str(out), *SMALL]
    real_run.main(flags)
    report = (out / "report.md").read_text()
    assert (out / "curves.png").exists() and report.count("```") == 2 * 2 * 3
    for name in ("before", "sft", *METHODS, "sft more"):
        assert f"| {name} | 0 | 0.000 [0.00, 0.56] |" in report
    assert "| dagrpo - dr_grpo | +0.000" in report
    written = (out / "dagrpo_0" / "metrics.csv").stat().st_mtime_ns
    real_run.main(flags)
    assert (out / "report.md").read_text() == report
    assert (out / "dagrpo_0" / "metrics.csv").stat().st_mtime_ns == written, "what is done is not done again"


def test_differences_are_paired_by_problem_over_the_mean_of_seeds(tmp_path):
    done = [Stage("sft", 0, "before", "sft", 1), *(Stage("dagrpo", seed, "sft", "dagrpo", 1) for seed in (0, 1))]
    answers = ([[0, 0], [0, 1], [0, 0], [1, 1]], [[0, 1], [1, 1], [0, 0], [1, 1]], [[1, 1], [1, 1], [0, 0], [1, 1]])
    for stage, shares in zip(done, answers, strict=True):
        (tmp_path / stage.folder).mkdir()
        lines = [json.dumps({"index": n, "right": bool(x)}) for n, two in reversed([*enumerate(shares)]) for x in two]
        (tmp_path / stage.folder / "sampled.unseen.jsonl").write_text("\n".join(['{"settings": 0}', *lines]))
    assert right(tmp_path, done[0], "sampled").tolist() == [0, 0.5, 0, 1]
    gaps = np.array([0.75, 0.5, 0, 0])  # by problem: (0.5 + 1) / 2 - 0, 1 - 0.5, 0, 0
    half = 3.182446 * gaps.std(ddof=1) / 2
    assert difference(tmp_path, done, "dagrpo", "sft", "sampled") == (
        f"{gaps.mean():+.3f} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plan", "gpu"], "this plan needs --train FILE and --test FILE"),
        (
            ["--plan", "gpu", "--train", "no.jsonl", "--test", "no.jsonl"],
            "must be files that can be read: No such file",
        ),
        (["--steps", "0"], "must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        real_run.main([*flags, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1

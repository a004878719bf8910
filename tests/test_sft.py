"""sft as a recipe: SFT on the demonstrations goes through the same loop, and is SFT as the warm start does it."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import both_paths, gradient, groups_of, run, weights

import rollout
import tasks
import train
from anchors import prepare_anchors
from harness.config import parse
from harness.warm_start import demonstration_backward
from policy import load_policy

PROBLEMS = tasks.arithmetic("train", per_level=2)[:8]  # demonstrations of quite different lengths


@pytest.fixture
def gradients(monkeypatch):
    """Those of all updates, none of which moves the weights."""
    found = []

    def optimizer_step(run, loss):
        found.append(gradient(run.policy))
        run.optimizer.zero_grad()
        return 1.0, True

    monkeypatch.setattr(train, "optimizer_step", optimizer_step)
    return found


def likelihoods(folder, groups):
    """SFT's loss and gradient on the demonstrations of these groups, as the warm start computes them."""
    policy = load_policy(str(folder))
    loss = demonstration_backward(policy, [(g["question"], g["responses"][0]) for g in groups])
    return loss, gradient(policy)


@both_paths
@pytest.mark.parametrize("budget", [10**6, 60])
def test_the_gradient_of_a_step_is_that_of_sft(tiny_folder, gradients, path, budget):
    flags = ["--plain"] if path is rollout else []
    flags += ["--model", str(tiny_folder), "--micro-batch-tokens", str(budget)]
    run = train.start(parse(["--method", "sft", "--out", "x", "--batch-prompts", "8", *flags]))
    assert run.path is path
    anchors, _ = prepare_anchors(run.policy, PROBLEMS, max_new_tokens=64)
    groups, figures = train.learn(run, train.collect(run, PROBLEMS, anchors))
    loss = demonstration_backward(run.policy, [(problem.question, problem.demo) for problem in PROBLEMS])
    wanted = gradient(run.policy)
    assert len(gradients) == 1 and wanted.norm() > 0
    assert (gradients[0] - wanted).norm() < 1e-6 * wanted.norm()
    assert figures["loss"] == pytest.approx(loss, rel=1e-6)
    assert groups.advantages.tolist() == [[1.0]] * 8 and groups.keep.all()


@pytest.mark.parametrize("flags", [[], ["--plain"]])
def test_the_loss_in_the_metrics_is_the_mean_negative_log_likelihood(tiny_folder, tmp_path, flags):
    """Of the demonstrations in rollouts.jsonl, whose log-probs there are the learner's; nothing else is in a group."""
    (row,) = run(tiny_folder, tmp_path / "run", *flags, method="sft", steps=1)
    groups = groups_of(tmp_path / "run")
    for group in groups:
        assert group["responses"] == [group["demonstration"]] and group["is_anchor"] == [True]
        assert (group["A"], group["R"], group["S"], group["keep"]) == ([1.0], [1.0], [10.0], [True])
    loss, wanted = likelihoods(tiny_folder, groups)
    assert float(row["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(row["grad_norm"]) == pytest.approx(wanted.norm().item(), rel=1e-5)
    logp = [x for group in groups for x in group["logp"][0]]
    assert sum(logp) / len(logp) == pytest.approx(-loss, rel=1e-4)
    assert (row["responses"], row["tokens"], row["anchors"], row["clip_fraction"]) == ("0", "0", "4", "0")
    assert row["reward"] == row["response_length"] == row["entropy"] == "", "there are no rollouts"


def test_a_step_is_one_update_whatever_updates_per_batch(tiny_folder, tmp_path):
    rows = {k: run(tiny_folder, tmp_path / k, "--updates-per-batch", k, method="sft", steps=3) for k in "124"}
    assert rows["1"] == rows["2"] == rows["4"]
    assert torch.equal(weights(tmp_path / "1"), weights(tmp_path / "4"))
    trainer = torch.load(tmp_path / "4" / "checkpoint" / "trainer.pt", weights_only=True)
    assert {int(state["step"]) for state in trainer["optimizer"]["state"].values()} == {3}


def test_the_likelihood_of_what_is_trained_on_goes_up(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", method="sft", steps=8)
    groups = [group for group in groups_of(tmp_path / "run") if group["step"] == 1]
    after, _ = likelihoods(tmp_path / "run", groups)
    assert after < likelihoods(tiny_folder, groups)[0] - 0.05


def wrong_answers(problems):
    return [replace(problem, demo=problem.demo + "1") for problem in problems]


def test_flawed_demonstrations_are_trained_on(tiny_folder, tmp_path):
    """Wrong ones too, which sft would reject otherwise; the scorer's reference is the right one."""
    longer = ["--max-new-tokens", "45"]
    (row,) = run(tiny_folder, tmp_path / "run", *longer, method="sft", steps=1, demonstrate=wrong_answers)
    groups = groups_of(tmp_path / "run")
    assert [group["responses"] for group in groups] == [[group["demonstration"] + "1"] for group in groups]
    assert all(group["R"] == [0.0] and group["A"] == [1.0] and group["keep"] == [True] for group in groups)
    assert all(1 < group["S"][0] < 10 for group in groups)
    loss, wanted = likelihoods(tiny_folder, groups)
    assert float(row["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(row["grad_norm"]) == pytest.approx(wanted.norm().item(), rel=1e-5) and wanted.norm() > 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["experiment"] == "wrong_answers"


def test_flawed_demonstrations_that_are_too_long_are_measured_themselves(tiny_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "run", method="sft", demonstrate=wrong_answers)
    assert "--max-new-tokens 44: the longest has 45 tokens" in capsys.readouterr().err


def some_without(problems):
    """Of every five problems, the first has no demonstration."""
    return [replace(problem, demo="" if i % 5 == 0 else problem.demo) for i, problem in enumerate(problems)]


def test_problems_without_a_demonstration_are_left_out(tiny_folder, tmp_path):
    """They would be groups of nothing. An epoch of what is left, 320 of 400, is 80 steps of 4."""
    run(tiny_folder, tmp_path / "run", "--levels", "1", method="sft", steps=80, demonstrate=some_without)
    problems = some_without(tasks.arithmetic("train", 400, levels={"1": tasks.LEVELS["1"]}))
    groups = groups_of(tmp_path / "run")
    assert sorted(group["question"] for group in groups) == sorted(p.question for p in problems if p.demo)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["problems"] == 320 and config["anchors"] == {"usable": 320, "missing": 80}


def test_the_plain_path_is_the_same_run(tiny_folder, tmp_path):
    """Nothing is drawn, so that both paths see the same rows, step after step."""
    fast = run(tiny_folder, tmp_path / "fast", method="sft", steps=3)
    plain = run(tiny_folder, tmp_path / "plain", "--plain", method="sft", steps=3)
    for one, other in zip(fast, plain, strict=True):
        for name in ("loss", "grad_norm"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=2e-5)

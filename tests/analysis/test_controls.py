"""controls.py: the random mask keeps as many of each side, noise and flaws are what they say, and train takes them."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anchors
import dagrpo
import rollout
import scoring
import tasks
import train
from analysis.experiments import controls
from harness import config


@given(st.integers(0, 10**6))
def test_a_random_mask_keeps_as_many_of_each_side_of_each_group(seed):
    torch.manual_seed(seed)
    A = dagrpo.group_advantages(torch.randint(0, 2, (4, 8)).float())
    S = torch.randint(2, 21, (4, 8)) / 2
    keep = dagrpo.rectification_mask(A, S)
    drawn = controls.random_mask(A, keep)
    for side in (A > 0, A < 0):
        assert torch.equal((drawn & side).sum(1), (keep & side).sum(1))
    assert not (drawn & (A == 0)).any()


def test_a_random_mask_is_random_over_the_rows_of_a_side():
    A = torch.tensor([[0.5, 0.5, 0.5, -0.5, -0.5, -0.5]])
    keep = torch.tensor([[True, False, False, True, True, False]])
    share = sum(controls.random_mask(A, keep).double() for _ in range(3000)) / 3000
    expected = torch.tensor([[1 / 3] * 3 + [2 / 3] * 3], dtype=torch.float64)
    torch.testing.assert_close(share, expected, atol=0.05, rtol=0)


def test_noise_has_its_size_and_stays_in_range():
    pairs = [(tasks.solve("12+5-3=", "2"), "12+5=18;18-3=14;#14")] * 4000  # S 4.5
    noisy = torch.tensor(controls.noisy(scoring.rule_scores, 1.0)(pairs))
    assert noisy.mean() == pytest.approx(4.5, abs=0.1) and noisy.std() == pytest.approx(1.0, abs=0.05)
    wild = torch.tensor(controls.noisy(scoring.rule_scores, 50.0)(pairs))
    assert wild.min() == 1 and wild.max() == 10


def test_a_missing_score_stays_missing():
    assert math.isnan(controls.noisy(lambda pairs: [math.nan] * len(pairs), 1.0)([None])[0])


@pytest.mark.parametrize("flaw", controls.FLAWS)
def test_flawed_demonstrations_are_flawed_as_said(flaw):
    problems = tasks.arithmetic("train", per_level=20)
    spoiled = controls.flawed(problems, flaw)
    assert spoiled == controls.flawed(problems, flaw)
    for right, wrong in zip(problems, spoiled, strict=True):
        assert (right.question, right.answer) == (wrong.question, wrong.answer)
        held = [scoring.holds(step) for step in scoring.steps(wrong.demo)]
        assert len(held) == len(scoring.steps(right.demo))
        assert not any(held) if flaw == "steps" else held.count(False) == 1
        assert scoring.verify(wrong.demo, right.answer) == (flaw == "steps")


def test_the_score_as_reward_goes_from_0_to_1(tiny, problems):
    rollouts = rollout.sample_groups(tiny, problems, [2, 2, 2], max_new_tokens=20)
    anchor, _ = anchors.prepare(tiny, problems, 64)
    mixed = anchors.mix(tiny, rollouts, anchor, 3)
    rewards = controls.score_as_reward(mixed, scoring.rule_scores)
    assert (rewards[:, -1] == 1).all() and (rewards >= 0).all() and (rewards <= 1).all()
    torch.testing.assert_close(rewards * 9 + 1, scoring.scores(mixed))


def trained(tiny_folder, tmp_path, *flags):
    """The groups of one step with these flags, as rollouts.jsonl has them."""
    size = ["--steps", "1", "--batch-prompts", "4", "--group-size", "6", "--show-every", "0"]
    train.main([*flags, *size, "--model", str(tiny_folder), "--out", str(tmp_path / "run")])
    return [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]


def test_training_takes_the_random_mask(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "random_mask", lambda A, keep: torch.zeros_like(keep))
    groups = trained(tiny_folder, tmp_path, "--method", "dagrpo", "--random-mask")
    assert not any(keep for group in groups for keep in group["keep"])


def test_training_takes_the_score_as_reward(tiny_folder, tmp_path):
    for group in trained(tiny_folder, tmp_path, "--method", "dr_grpo", "--reward-is-score"):
        rewards = torch.tensor([[(score - 1) / 9 for score in group["S"]]])
        torch.testing.assert_close(torch.tensor([group["A"]]), dagrpo.group_advantages(rewards), atol=1e-6, rtol=1e-5)
        assert set(group["R"]) <= {0, 1}, "what is reported is still whether the answer is right"


def test_training_takes_the_noise(tiny_folder, tmp_path):
    groups = trained(tiny_folder, tmp_path, "--method", "dagrpo", "--score-noise", "2")
    between = [score for group in groups for score in group["S"] if (2 * score) % 1]  # the rule gives halves
    assert len(between) > 4


@pytest.mark.parametrize("flaw", controls.FLAWS)
def test_training_takes_flawed_anchors_and_scores_against_the_right_demonstration(tiny_folder, tmp_path, flaw):
    for group in trained(tiny_folder, tmp_path, "--method", "dagrpo", "--anchor-flaw", flaw):
        assert group["is_anchor"][-1] and group["responses"][-1] != group["demonstration"]
        assert group["R"][-1] == (flaw == "steps") and group["S"][-1] < 10


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--score-noise", "-1"], "at least 0"),
        (["--score-noise", "1", "--scorer", "local", "--judge-model", "x"], "rule scorer"),
        (["--anchor-flaw", "steps", "--data", "x.jsonl"], "leave --data out"),
        (["--random-mask", "--method", "dr_grpo"], "methods that mask"),
        (["--score-noise", "1", "--method", "dr_grpo"], "methods that read scores"),
        (["--reward-is-score", "--method", "sft"], "methods with rewards"),
        (["--anchor-flaw", "steps", "--method", "dagrpo_on"], "methods with demonstrations"),
    ],
)
def test_a_control_that_cannot_work_is_refused(capsys, given, why):
    with pytest.raises(SystemExit):
        config.parse(["--method", "dagrpo", "--out", "x", *given])
    assert why in capsys.readouterr().err

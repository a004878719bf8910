"""analysis.experiments.controls: the random mask keeps as many of each side, noise and flaws are what they say, and
train.py takes them."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anchors
import dagrpo
import rollout
import scoring
import tasks
from analysis.experiments import controls
from rollout import Groups


def groups_of(A, S, rollouts=None, R=None, delta=3.0):
    distinct = dagrpo.rectification_mask(A, S, delta)
    return Groups(rollouts, A > 0 if R is None else R, S, A, distinct, distinct, responses=A.numel(), tokens=0)


@given(st.integers(0, 10**6))
def test_a_random_mask_keeps_as_many_of_each_side_of_each_group(seed):
    torch.manual_seed(seed)
    A = dagrpo.group_advantages(torch.randint(0, 2, (4, 8)).float())
    groups = groups_of(A, torch.randint(2, 21, (4, 8)) / 2)
    drawn = controls.random_mask(groups)
    assert torch.equal(drawn.keep, drawn.distinct)
    for side in (A > 0, A < 0):
        assert torch.equal((drawn.keep & side).sum(1), (groups.keep & side).sum(1))
    assert not (drawn.keep & (A == 0)).any()


def test_a_random_mask_is_random_over_the_rows_of_a_side():
    A = torch.tensor([[0.5, 0.5, 0.5, -0.5, -0.5, -0.5]])
    keep = torch.tensor([[True, False, False, True, True, False]])
    share = sum(controls.random_like(A, keep).double() for _ in range(3000)) / 3000
    expected = torch.tensor([[1 / 3] * 3 + [2 / 3] * 3], dtype=torch.float64)
    torch.testing.assert_close(share, expected, atol=0.05, rtol=0)


def test_positives_are_the_rows_above_their_group():
    A = torch.tensor([[0.5, 0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]])
    groups = groups_of(A, torch.full_like(A, 5.0))
    kept = controls.positives(replace(groups, keep=torch.ones_like(groups.keep))).keep
    assert kept.tolist() == [[True, True, False, False], [False] * 4]


@given(st.integers(0, 10**6))
def test_centred_advantages_add_up_to_0_over_the_kept_rows_and_move_no_other(seed):
    torch.manual_seed(seed)
    A = dagrpo.group_advantages(torch.randint(0, 2, (4, 8)).double())
    groups = groups_of(A, torch.randint(2, 21, (4, 8)) / 2)
    after, keep = controls.centred(groups).advantages, groups.keep
    torch.testing.assert_close((after * keep).sum(dim=1), torch.zeros(4, dtype=torch.float64))
    for b in range(4):  # one constant a group: the mean of A over the kept rows
        kept = [A[b, i].item() for i in range(8) if keep[b, i]]
        for i in range(8):
            wanted = A[b, i].item() - (sum(kept) / len(kept) if keep[b, i] else 0.0)
            assert after[b, i].item() == pytest.approx(wanted, abs=1e-12)


def test_noise_has_its_size_and_stays_in_range():
    groups = groups_of(torch.tensor([[0.5, -0.5]] * 2000), torch.full((2000, 2), 4.5))
    noisy = controls.score_noise(groups, 1.0).scores
    assert noisy.mean() == pytest.approx(4.5, abs=0.1) and noisy.std() == pytest.approx(1.0, abs=0.05)
    wild = controls.score_noise(groups, 50.0).scores
    assert wild.min() == 1 and wild.max() == 10


def test_the_mask_follows_from_the_noisy_scores():
    torch.manual_seed(0)
    groups = groups_of(torch.tensor([[0.5, 0.5, -0.5, -0.5]] * 50), torch.tensor([[10.0, 4.5, 5.5, 1.0]] * 50))
    noisy = controls.score_noise(groups, 2.0, delta=1.0)
    expected = dagrpo.rectification_mask(groups.advantages, noisy.scores, 1.0)
    assert torch.equal(noisy.keep, expected) and torch.equal(noisy.distinct, expected)
    assert not torch.equal(expected, dagrpo.rectification_mask(groups.advantages, noisy.scores, 3.0))


def test_a_missing_score_stays_missing():
    noisy = controls.score_noise(groups_of(torch.tensor([[0.5, -0.5]]), torch.tensor([[math.nan, 1.0]])), 1.0)
    assert noisy.scores.isnan().tolist() == [[True, False]] and not noisy.keep.any()


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
    usable, _ = anchors.prepare_anchors(tiny, problems, 64)
    mixed = anchors.mix(tiny, rollouts, usable, 3)
    R, S = scoring.rewards(mixed), scoring.scores(mixed)
    before = groups_of(dagrpo.group_advantages(R), S, mixed, R)
    after = controls.score_as_reward(before)
    gap = after.advantages[:, -1:] - after.advantages  # the anchor's S is 10, so that its reward is 1
    torch.testing.assert_close(1 - gap, (S - 1) / 9)
    assert after.advantages.sum(dim=1).abs().max() < 1e-6 and torch.equal(after.rewards, R)
    assert torch.equal(after.distinct, dagrpo.rectification_mask(after.advantages, S))
    assert torch.equal(after.keep, before.keep)


def test_a_missing_score_leaves_its_group_out_of_the_score_as_reward():
    A, S = torch.tensor([[0.5, -0.5, 0.0]] * 2), torch.tensor([[10.0, math.nan, 1.0], [10.0, 4.0, 1.0]])
    after = controls.score_as_reward(groups_of(A, S))
    assert after.advantages[0].tolist() == [0, 0, 0] and not after.distinct[0].any()
    assert torch.equal(after.advantages[1:], dagrpo.group_advantages((S[1:] - 1) / 9))


def trained(tiny_folder, tmp_path, control, *flags):
    """The groups of one step under this control, as rollouts.jsonl has them."""
    size = ["--steps", "1", "--batch-prompts", "4", "--group-size", "6", "--show-every", "0"]
    controls.run(control, [*flags, *size, "--model", str(tiny_folder), "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["experiment"] == control
    return [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").open()]


def test_training_takes_the_random_mask(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "random_like", lambda A, keep: torch.zeros_like(keep))
    groups = trained(tiny_folder, tmp_path, "random_mask", "--method", "dagrpo")
    assert not any(keep for group in groups for keep in group["keep"])


def test_training_takes_centred_advantages(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "centre", lambda A, keep: A + 7)
    groups = trained(tiny_folder, tmp_path, "centred", "--method", "dagrpo")
    assert all(A > 6 for group in groups for A in group["A"])


def test_training_takes_the_score_as_reward(tiny_folder, tmp_path):
    for group in trained(tiny_folder, tmp_path, "score_as_reward", "--method", "dr_grpo"):
        rewards = torch.tensor([[(score - 1) / 9 for score in group["S"]]])
        torch.testing.assert_close(torch.tensor([group["A"]]), dagrpo.group_advantages(rewards), atol=1e-6, rtol=1e-5)
        assert set(group["R"]) <= {0, 1}, "what is reported is still whether the answer is right"


def test_the_score_as_reward_is_the_judges_and_survives_its_failures(tiny_folder, tmp_path, monkeypatch):
    """A method without a mask, a judge that forgets its first response, and groups that R says nothing about."""

    def http_judge(endpoint, counters):
        def scorer(pairs):
            counters.calls += len(pairs)
            counters.failures += 1
            return [math.nan, *(float(1 + n % 10) for n in range(1, len(pairs)))]

        return scorer

    monkeypatch.setattr("harness.prepare.http_judge", http_judge)
    flags = ["--scorer", "judge", "--judge-url", "http://127.0.0.1:9/v1", "--judge-name", "m"]
    first, *others = trained(tiny_folder, tmp_path, "score_as_reward", "--method", "dr_grpo", *flags)
    assert first["S"] == [None, 2, 3, 4, 5, 6] and first["A"] == [0] * 6
    for group in others:
        rewards = torch.tensor([[(score - 1) / 9 for score in group["S"]]])
        torch.testing.assert_close(torch.tensor([group["A"]]), dagrpo.group_advantages(rewards), atol=1e-6, rtol=1e-5)
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    assert (row["judge_calls"], row["judge_failures"], row["judge_saved"]) == ("24", "1", "0")
    assert math.isfinite(float(row["loss"])) and float(row["grad_norm"]) > 0 and row["skipped_updates"] == "0"


def test_training_takes_the_noise_and_its_delta(tiny_folder, tmp_path):
    groups = trained(tiny_folder, tmp_path, "score_noise=2", "--method", "dagrpo", "--delta", "1")
    between = [score for group in groups for score in group["S"] if (2 * score) % 1]  # the rule gives halves
    assert len(between) > 4
    for group in groups:
        keep = dagrpo.rectification_mask(torch.tensor([group["A"]]), torch.tensor([group["S"]]), 1.0)[0]
        assert keep.tolist() == group["keep"]


@pytest.mark.parametrize("flaw", controls.FLAWS)
def test_training_takes_flawed_anchors_and_scores_against_the_right_demonstration(tiny_folder, tmp_path, flaw):
    for group in trained(tiny_folder, tmp_path, f"flawed_{flaw}", "--method", "dagrpo"):
        assert group["is_anchor"][-1] and group["responses"][-1] != group["demonstration"]
        assert group["R"][-1] == (flaw == "steps") and group["S"][-1] < 10


@pytest.mark.parametrize(
    ("control", "given", "why"),
    [
        ("score_noise=-1", [], "give a standard deviation"),
        ("score_noise=nan", [], "give a standard deviation"),
        ("score_noise", [], "give a standard deviation"),
        ("nothing", [], "there is no control nothing"),
        ("random_mask=3", ["--method", "dagrpo_on"], "random_mask takes no value"),
        ("flawed_steps", ["--data", "x.jsonl"], "on the built-in task"),
        ("random_mask", ["--method", "dr_grpo"], "methods that mask"),
        ("score_noise=1", ["--method", "dr_grpo"], "methods that mask"),
        ("centred", ["--method", "dr_grpo"], "methods that mask"),
        ("score_as_reward", ["--method", "sft"], "methods with rewards"),
        ("score_as_reward", ["--method", "dagrpo"], "without a mask"),
        ("flawed_steps", ["--method", "dagrpo_on"], "methods with demonstrations"),
        ("positives", ["--method", "dagrpo_on"], "without a mask"),
        ("sft_bug=lost", ["--method", "dagrpo"], "has rollouts"),
        ("sft_bug=none", ["--method", "sft"], "choose from lost, means"),
    ],
)
def test_a_control_that_cannot_work_is_refused(capsys, tmp_path, control, given, why):
    with pytest.raises(SystemExit):
        controls.run(control, ["--method", "dagrpo", "--out", str(tmp_path / "run"), *given])
    assert why in capsys.readouterr().err and not (tmp_path / "run").exists()

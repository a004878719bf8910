"""analysis.experiments.sft_bugs: the gradient is the one that the bug makes, literally."""

import pytest
import torch

import dagrpo
from analysis.experiments import controls
from analysis.experiments.sft_bugs import MICRO, sft_bug
from rollout import Groups, Rollouts

SFT = dagrpo.METHODS["sft"]


def groups_with(lengths):
    """A batch of demonstrations of these lengths, a group each."""
    B, T = len(lengths), max(lengths)
    mask = torch.arange(T) < torch.tensor(lengths)[:, None]  # (B, T)
    ones = torch.ones(B, 1)
    zeros, yes = torch.zeros(B, T), torch.ones(B, dtype=torch.bool)
    prompt = torch.zeros(B, 1, dtype=torch.long)
    rollouts = Rollouts([], prompt, prompt == 0, zeros.long(), mask, zeros, zeros, torch.arange(B), yes, yes, [""] * B)
    return Groups(rollouts, ones, ones, ones, ones.bool(), ones.bool(), B, 0)


def gradient(groups, logp):
    part = groups.rollouts
    parts = (part.tokens, part.mask, part.logp, part.entropy, part.is_anchor, 64)
    update = dagrpo.build_update(SFT, groups.advantages, groups.keep, *parts)
    return torch.autograd.grad(dagrpo.policy_loss(logp, update, SFT), logp)[0]


@pytest.mark.parametrize("lengths", [[5] * 8, [3, 9, 2, 7, 12, 4, 4, 1, 6, 6], [2, 2, 2, 2, 30, 30, 30, 30]])
def test_the_gradient_is_that_of_the_bug(lengths):
    groups = groups_with(lengths)
    mask, logp = groups.rollouts.mask, torch.randn(groups.rollouts.mask.shape).requires_grad_()
    micros = list(torch.arange(len(lengths)).split(MICRO))
    means = -sum((logp[rows] * mask[rows]).sum() / mask[rows].sum() for rows in micros) / len(micros)
    torch.testing.assert_close(gradient(sft_bug(groups, "means"), logp), torch.autograd.grad(means, logp)[0])
    last = -(logp[micros[-1]] * mask[micros[-1]]).sum() / mask.sum()
    torch.testing.assert_close(gradient(sft_bug(groups, "lost"), logp), torch.autograd.grad(last, logp)[0])


def test_with_equal_lengths_only_one_bug_shows():
    groups, logp = groups_with([5] * 8), torch.randn(8, 5).requires_grad_()
    right = gradient(groups, logp)
    torch.testing.assert_close(gradient(sft_bug(groups, "means"), logp), right)
    assert not torch.equal(gradient(sft_bug(groups, "lost"), logp), right)


def test_train_takes_it(tmp_path, tiny_folder):
    flags = ["--method", "sft", "--model", str(tiny_folder), "--steps", "1", "--out", str(tmp_path / "run")]
    controls.run("sft_bug=lost", flags)
    assert '"sft_bug=lost"' in (tmp_path / "run" / "config.json").read_text()

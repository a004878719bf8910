"""Clips, trust regions and DeepSeek's mask, by hand: which tokens they leave without a push, and what they report."""

import math
from dataclasses import replace
from math import log

import pytest
import torch
from helpers import anchor, more_rows, pushes, tight, two_responses, update_of
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS, surrogate

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize(("fall", "left_out"), [(0.49, False), (0.51, True)])
def test_deepseeks_mask_leaves_out_wrong_rows_that_have_fallen_too_far(fall, left_out):
    """By the mean of -log r, 0.5. The first token is past the clip's lower bound, the second would count."""
    case = two_responses()
    old = case.new + tensor([2 * fall, 0.0])[[0, 1, 0, 1]]  # the mean over both tokens of a row
    case = replace(case, old=old.expand(2, 4), mask=tensor([[True, True, False, False]] * 2))
    push, _ = pushes(case, METHODS["deepseek_v32"])
    # sequence: 1/(2 rows * 2 tokens); A = +-1/2. The right row stays whatever its log-probs did: its ratios are below
    low = 0.125 * math.exp(-2 * fall)
    assert_close(push, tensor([[low, 0.125, 0, 0], [0, 0 if left_out else -0.125, 0, 0]]), **tight)
    assert surrogate(case.new, update_of(case, METHODS["deepseek_v32"]), METHODS["deepseek_v32"])[1][1, 1] == left_out


@pytest.mark.parametrize(
    ("p_old", "p", "tv", "kl"),
    [
        (0.5, 0.62, 1, 1),  # TV 0.12. KL: 0.5 log(0.5 / 0.62) + 0.5 log(0.5 / 0.38) = 0.0297
        (0.5, 0.652, 0, 1),  # TV 0.152. KL 0.0485
        (0.5, 0.66, 0, 0),  # TV 0.16. KL 0.0540
        (1e-4, 0.1, 1, 0),  # TV 0.1. KL: 1e-4 log(1e-3) + 0.9999 log(0.9999 / 0.9) = 0.1045
        (1e-4, 0.01, 1, 1),  # a ratio of 100: it weighs 20
        (0.999, 0.9999, 1, 1),
        (0.62, 0.5, 1, 1),  # down, by 0.12
        (0.9, 0.74, 0, 0),  # down, by 0.16. KL 0.0806
        (0.3, 0.14, 0, 0),  # KL 0.0847
        (0.2, 0.06, 1, 0),  # TV 0.14. KL 0.1031
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_dppos_trust_region_is_about_probabilities(p_old, p, tv, kl, sign):
    """A token that has moved too far in the direction of A is left out; one that has not is pushed by min(r, 20) A."""
    case = two_responses()
    case = replace(case, new=torch.full((2, 4), log(p)), old=torch.full((2, 4), log(p_old)))
    for name, inside in (("dppo_tv", tv), ("dppo_kl", kl)):
        update = replace(update_of(case, METHODS[name]), advantages=tensor([sign, sign]))
        push, _ = pushes(case, METHODS[name], update)
        kept = inside or (p - p_old) * sign < 0
        assert_close(push[0], torch.full((4,), kept * sign * min(p / p_old, 20) / 20), **tight)
        clipped = surrogate(case.new, update, METHODS[name])[1]
        assert clipped[update.mask].tolist() == [not kept] * 7


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("dr_grpo", [0, 1, 1, 0], [0, 1, 0]),
        ("dapo", [0, 0, 1, 0], [0, 1, 0]),
        ("gspo", [1, 1, 1, 1], [0, 0, 0]),
        ("cispo", [0, 0, 1, 0], [1, 0, 0]),
        ("rloo", [0, 0, 0, 0], [0, 0, 0]),
        ("two_sided", [0, 1, 1, 0], [1, 1, 0]),
        ("gmpo", [0, 0, 1, 0], [0, 1, 0]),
        ("dppo_tv", [0, 0, 1, 0], [0, 1, 0]),
        ("sapo", [0, 0, 0, 0], [0, 0, 0]),
    ],
)
def test_the_clip_says_which_tokens_it_touched(name, right, wrong):
    case = two_responses()
    _, clipped = surrogate(case.new, update_of(case, METHODS[name]), METHODS[name])
    assert clipped.int().tolist() == [right, [*wrong, 0]]


def test_neither_masked_rows_nor_anchors_count_as_clipped():
    case = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0]]), tensor([[10.0, 8.0, 10.0]]), **anchor)
    _, clipped = surrogate(case.new, update_of(case, METHODS["dagrpo"]), METHODS["dagrpo"])
    assert not clipped.any()


def test_min_for_both_signs_of_the_advantage():
    """A token that went up (ratio 2) though A < 0 must be pulled back; max would leave it. And the mirror image."""
    recipe = METHODS["dr_grpo"]
    case = two_responses()
    update = replace(update_of(case, recipe), advantages=tensor([-1.0, 1.0]))
    logp = (update.logp_old + tensor([[log(2.0)], [log(0.5)]])).requires_grad_()
    objective, clipped = surrogate(logp, update, recipe)
    assert_close(objective[update.mask], tensor([-2.0] * 4 + [0.5] * 3), **tight)  # max: -1.2 and 0.8
    assert not clipped.any()
    objective[update.mask].sum().backward()
    assert_close(logp.grad, tensor([[-2.0] * 4, [0.5] * 3 + [0.0]]), **tight)  # max: 0

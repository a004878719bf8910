"""The push of each recipe in closed form, by hand (Eq. 2, 10-13 and the recipes' papers).

A push is -dloss/dlogp of a token: what gradient descent adds to its log-prob, up to the step size. What holds of any
batch is in test_loss.py.
"""

import math
from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from helpers import NAN, anchor, more_rows, pushes, tight, two_responses, undistinct_rows, update_of
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS, policy_loss

pytestmark = pytest.mark.usefixtures("double_precision")


# scale "group": the mean is 1/2, the unbiased std of (1, 0) is sqrt(1/4 + 1/4) = sqrt(1/2). Here the batch is one group
a = 0.5 / (sqrt(0.5) + 1e-4)


def gate(tau, ratio):
    """The slope of (4 / tau) sigmoid(tau (r - 1)) with respect to log r."""
    sigmoid = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return 4 * sigmoid * (1 - sigmoid) * ratio


# gmpo: A > 0 bounds log 6 by 0.4, A < 0 log 1/2 by -0.4; one geometric mean a row
up = (1.25 * math.exp(0.4) * 0.5) ** (1 / 4)
down = (6 * math.exp(-0.4) * 1.25) ** (1 / 3)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        # sequence: 1/(2 rows * 4 tokens) = 1/8 and 1/(2 * 3) = 1/6.  A = +a, -a.  A * ratio / divisor where not clipped
        ("grpo", [a / 8, 0, 0, a / 16], [-6 * a / 6, 0, -1.25 * a / 6]),
        # constant: 1/(2 * 10) = 1/20.  A = +1/2, -1/2.  1/40; 1/2 * 1/40;  6/40, 1.25/40
        ("dr_grpo", [0.025, 0, 0, 0.0125], [-0.15, 0, -0.03125]),
        # tokens: 1/7.  The upper clip is 1.28, so the token at 1.25 is in
        ("dapo", [a / 7, 1.25 * a / 7, 0, 0.5 * a / 7], [-6 * a / 7, 0, -1.25 * a / 7]),
        # one ratio a row: (1 * 1.25 * 6 * .5)^(1/4) = 3.75^(1/4) > 1.0004 and A > 0: clipped;  (6 * .5 * 1.25)^(1/3)
        # = 3.75^(1/3) and A < 0: kept.  All 3 terms have 1/3 of the ratio's gradient: A * ratio / (2 * 3) on each token
        ("gspo", [0, 0, 0, 0], [-(3.75 ** (1 / 3)) * a / 6] * 3),
        # min(ratio, 5) * A / 7 for every token
        ("cispo", [a / 7, 1.25 * a / 7, 5 * a / 7, 0.5 * a / 7], [-5 * a / 7, -0.5 * a / 7, -1.25 * a / 7]),
        # A = 1 - 0, 0 - 1 against the other; ratio 1; 1/20
        ("rloo", [0.05] * 4, [-0.05] * 3),
        # A = 1/2 - 0.1 * 0.5 = 0.45 and -1/2 - 0.1 * 0.2 = -0.52; 1/8 and 1/6; conflict tokens 2 and 0; no clip
        # 0.45/8 * (2 * 1, 1.25, 6, 2 * 0.5);  0.52/6 * 0.5
        ("gtpo", [0.1125, 0.0703125, 0.3375, 0.05625], [0, -0.26 / 6, 0]),
        # A = R: 1 and 0; constant 1/20
        ("reinforce", [0.05, 0, 0, 0.025], [0, 0, 0]),
        # A = (1 - 1/2) / (1/2) = 1 and -1; tokens: 1/7
        ("maxrl", [1 / 7, 0, 0, 0.5 / 7], [-6 / 7, 0, -1.25 / 7]),
        # of one group both spreads of the batch are that of the group; tokens
        ("lite_ppo", [a / 7, 0, 0, 0.5 * a / 7], [-6 * a / 7, 0, -1.25 * a / 7]),
        ("reinforce_pp", [a / 7, 0, 0, 0.5 * a / 7], [-6 * a / 7, 0, -1.25 * a / 7]),
        # grpo's A, and A * grad log pi; sequence: 1/8 and 1/6
        ("rgra", [a / 8] * 4, [-a / 6] * 3),
        # grpo, but for A < 0 a ratio of 6 is above 4
        ("two_sided", [a / 8, 0, 0, a / 16], [0, 0, -1.25 * a / 6]),
        ("sapo", [gate(1, r) * a / 8 for r in (1, 1.25, 6, 0.5)], [-gate(1.05, r) * a / 6 for r in (6, 0.5, 1.25)]),
        # p = 0.4 was 0.4, 0.32, 0.067, 0.8. A > 0: the third has come up by more than 0.15, the last went down. A < 0:
        # the second went down. Bernoullis: KL(0.067 || 0.4) = 0.29, KL(0.8 || 0.4) = 0.33, KL(0.32 || 0.4) = 0.014
        ("dppo_tv", [0.025, 0.03125, 0, 0.0125], [-0.15, 0, -0.03125]),
        ("dppo_kl", [0.025, 0.03125, 0, 0.0125], [-0.15, 0, -0.03125]),
        # gspo's ratios and constant: 1/20 on each token
        ("luspo", [0, 0, 0, 0], [-(3.75 ** (1 / 3)) * a / 20] * 3),
        ("gmpo", [up * a / 8, up * a / 8, 0, up * a / 8], [-down * a / 6, 0, -down * a / 6]),
        # entropies 0.2 0.8 0.6 0.4 and 0.1 0.2 0.3: the 0.8 quantile of the seven is 0.4 + 0.8 * 0.2 = 0.56. A ratio
        # of 6 is above 1.28; tokens: 1/7
        ("top_entropy", [0, 1.25 * a / 7, 0, 0], [0, 0, 0]),
        # dr_grpo's A, sequence; the wrong row's log-probs rose in the mean: it is not stale
        ("deepseek_v32", [0.0625, 0, 0, 0.03125], [-0.5, 0, -1.25 / 12]),
    ],
)
def test_closed_form_of_the_recipes_without_anchors_and_masks(name, right, wrong):
    push, _ = pushes(two_responses(), METHODS[name])
    assert_close(push, tensor([right, [*wrong, 0.0]]), **tight)


def test_closed_form_of_gspo_at_its_narrow_clip():
    """Mean log-ratios of +3.5e-4, +4.5e-4 (A > 0) and -2.5e-4, -3.5e-4 (A < 0): the second and the last are out."""
    case = two_responses()
    means = tensor([3.5e-4, 4.5e-4, -2.5e-4, -3.5e-4])[:, None]
    spread = tensor([0.3, -0.5, 0.2, 0.0])  # sums to 0: single tokens are far outside
    case = replace(
        more_rows(case, tensor([[1.0, 1.0, 0.0, 0.0]]), tensor([[10.0, 10.0, 1.0, 1.0]])),
        **{part: torch.zeros(4, 4) for part in ("new", "ref", "entropy", "entropy_old")},
        old=-(means + spread),
        tokens=torch.zeros(4, 4),
        mask=torch.ones(4, 4, dtype=torch.bool),
        is_anchor=torch.zeros(4, dtype=torch.bool),
    )
    # A = +-1/2 over the std of (1, 1, 0, 0), sqrt(4 * 1/4 / 3) = sqrt(1/3); divisor 4 rows * 4 tokens
    A = 0.5 / (sqrt(1 / 3) + 1e-4)
    push, _ = pushes(case, METHODS["gspo"])
    wanted = tensor([A * math.exp(3.5e-4) / 16, 0.0, -A * math.exp(-2.5e-4) / 16, 0.0])
    assert_close(push, wanted[:, None].expand(4, 4), **tight)


def test_closed_form_of_luffy():
    """R = 1, 0, 1: A = 1/3, -2/3, 1/3; constant 1/(3 * 10); no clip; the anchor's tokens weigh 0.1 p / (p + 0.1)^2.

    Rollouts: ratio * 1/90 and ratio * -2/90. The anchor: d/dlogp p/(p + 0.1) = 0.1 p / (p + 0.1)^2 = 0.04/0.25 = 0.16
    and 0.01/0.04 = 0.25. The entropy bonus: 0.001/30 on each of the 4 + 3 + 2 tokens.
    """
    case = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0]]), tensor([[10.0, 1.0, 10.0]]), **anchor)
    push, on_entropy = pushes(case, METHODS["luffy"])
    rows = [[1.0, 1.25, 6.0, 0.5], [-12.0, -1.0, -2.5, 0.0], [0.16, 0.25, 0.0, 0.0]]
    assert_close(push, tensor(rows) / 90, **tight)
    assert_close(on_entropy, case.mask * (0.001 / 30), **tight)


def test_closed_form_of_chord():
    """R = 1, 0 and an anchor apart, whatever its reward: A = +-a, A = 1. p of the anchor's tokens is 0.4 and 0.1.

    0.9 of the mean over the rollouts' 7 tokens; 0.1 of the mean over the anchor's 2, each weighed p (1 - p).
    """
    for reward in (0.0, 1.0):
        case = more_rows(two_responses(), tensor([[1.0, 0.0, reward]]), tensor([[10.0, 1.0, 10.0]]), **anchor)
        push, _ = pushes(case, METHODS["chord"])
        rollouts = [[a, 0, 0, 0.5 * a], [-6 * a, 0, -1.25 * a, 0]]
        wanted = torch.cat([tensor(rollouts) * 0.9 / 7, tensor([[0.24, 0.09, 0, 0]]) * 0.1 / 2])
        assert_close(push, wanted, **tight)


def test_closed_form_of_hpt():
    """Group 0 has its demonstration, group 1 has none. Constant 1/(6 rows * 10) on rollouts.

    On the demonstration: the mean over its 2 tokens, times the share of groups that have one, 1/2. The rollouts of its
    group weigh 0.
    """
    case = more_rows(two_responses(), tensor([[0.0, 0.0, 1.0]]), tensor([[1.0, 1.0, 10.0]]), **anchor)
    rows = {name: torch.cat([getattr(two_responses(), name)] * 2)[:3] for name in anchor}
    R, S = tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]), torch.ones(2, 3)
    push, _ = pushes(more_rows(case, R, S, **rows), METHODS["hpt"])
    third = 1 / 3 / 60  # A = 1/3, -2/3, 1/3; the third row is the first once more
    rl = [[third, 0, 0, third / 2], [-12 * third, 0, -2.5 * third, 0], [third, 0, 0, third / 2]]
    wanted = torch.cat([torch.zeros(2, 4), tensor([[0.25, 0.25, 0, 0]]), tensor(rl)])
    assert_close(push, wanted, **tight)
    hard = replace(case, R=tensor([[1.0, 0.0, 1.0]]))  # a demonstration in a group with a right rollout: gate 1
    assert_close(pushes(hard, METHODS["hpt"])[0], tensor([[0.0] * 4, [0.0] * 4, [0.5, 0.5, 0, 0]]), **tight)


def test_closed_form_of_dagrpo_without_anchors():
    """R = 1, 0, 1, 0: A = +-1/2. Constant 1/(4 * 10), also over the masked rows: 1/80 times the ratio."""
    rows = undistinct_rows()
    case = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0, 0.0]]), tensor([[10.0, 1.0, 6.0, 4.0]]), **rows)
    push, _ = pushes(case, METHODS["dagrpo_on"])
    wanted = [[1 / 80, 0, 0, 0.5 / 80], [-6 / 80, 0, -1.25 / 80, 0], [0.0] * 4, [0.0] * 4]
    assert_close(push, tensor(wanted), **tight)


def test_closed_form_of_dagrpo_soft():
    """The same case. Gaps: 10 - 4 = 6, 6 - 1 = 5, 6 - 4 = 2 and 2, so at delta 3 sigmoids of 3, 2, -1 and -1."""
    rows = undistinct_rows()
    case = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0, 0.0]]), tensor([[10.0, 1.0, 6.0, 4.0]]), **rows)
    hard, soft = (pushes(case, METHODS[name])[0] for name in ("dr_grpo", "dagrpo_soft"))
    assert hard[2:].any(dim=1).all(), "their pushes are not 0 anyway"
    assert_close(soft, hard / (1 + tensor([[-3.0], [-2.0], [1.0], [1.0]]).exp()), **tight)


def test_closed_form_of_dagrpo():
    """R = 1, 0, 1, 0, 1: A = 0.4, -0.6. Constant 1/(5 * 10): 0.008 and -0.012 times the ratio; anchors have none."""
    case = more_rows(two_responses(), tensor([[0.0, 0.0]]), tensor([[0.0, 0.0]]), **undistinct_rows())
    case = more_rows(case, tensor([[1.0, 0.0, 1.0, 0.0, 1.0]]), tensor([[10.0, 1.0, 6.0, 4.0, 10.0]]), **anchor)
    push, _ = pushes(case, METHODS["dagrpo"])
    wanted = [[0.008, 0, 0, 0.004], [-0.072, 0, -0.015, 0], [0.0] * 4, [0.0] * 4, [0.008, 0.008, 0, 0]]
    assert_close(push, tensor(wanted), **tight)


def test_closed_form_of_sft():
    """Two demonstrations of 4 and 3 tokens, each a group of its own, A = 1 whatever R: log p, each of 7 tokens 1/7.

    The loss is the mean of -log p, and every p is 0.4; ratios, clip and scores play no part.
    """
    recipe, case = METHODS["sft"], two_responses()
    alone = tensor([[1.0], [0.0]])  # (B, 1)
    case = replace(case, R=alone, S=alone * NAN, is_anchor=tensor([True, True]), old=torch.full((2, 4), NAN))
    push, _ = pushes(case, recipe)
    assert_close(push, case.mask / 7, **tight)
    loss = policy_loss(case.new, update_of(case, recipe), recipe)
    assert loss.item() == pytest.approx(-log(0.4), rel=1e-12)


def test_an_anchor_can_be_masked_and_a_wrong_one_is_pushed_down():
    """PAPER.md's safety net: it is Eq. 8-9 like for any row. A = +-1/2, constant 1/(2 * 10)."""
    case = two_responses()
    case = replace(
        case, is_anchor=tensor([False, True]), old=torch.full((2, 4), NAN).where(tensor([[0], [1]]) == 1, case.new)
    )
    for R, S, wanted in (
        ([0.0, 1.0], [4.0, 6.5], 0.0),
        ([0.0, 1.0], [4.0, 7.0], 0.025),
        ([1.0, 0.0], [10.0, 1.0], -0.025),
    ):
        push, _ = pushes(replace(case, R=tensor([R]), S=tensor([S])), METHODS["dagrpo"])
        assert_close(push[1], tensor([wanted] * 3 + [0.0]), **tight)

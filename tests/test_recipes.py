"""The losses (Eq. 2, 10-13 and the recipes' papers): closed forms, and a slow loop against the tensor code.

A push is -dloss/dlogp of a token: what gradient descent adds to its log-prob, up to the step size. What holds of any
batch is in test_loss.py.
"""

import math
from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from helpers import (
    NAN,
    anchor,
    ln_2,
    more_rows,
    pushes,
    random_case,
    tight,
    two_responses,
    undistinct_rows,
    update_of,
)
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS, policy_loss, surrogate

pytestmark = pytest.mark.usefixtures("double_precision")

# ---------------------------------------------------------------------------------------- closed forms, by hand


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


# ---------------------------------------------------------------------------------------- one recipe by another


def at_ratio_one(name, seed):
    """A random case at the first update on its batch. Nothing is masked, and there are no anchors."""
    recipe = METHODS[name]
    case = random_case(seed, replace(recipe, anchors=False, mu=None))
    return replace(case, old=case.new), recipe


@pytest.mark.parametrize(
    ("name", "other", "differs"),
    [
        ("sapo", "grpo", {}),
        ("gmpo", "grpo", {}),
        ("rgra", "grpo", {}),
        ("two_sided", "grpo", {}),
        ("gspo", "grpo", {}),
        ("luspo", "dr_grpo", {"scale": "group"}),
        ("dppo_tv", "dr_grpo", {}),
        ("dppo_kl", "dr_grpo", {}),
        ("cispo", "dapo", {}),
        ("deepseek_v32", "dr_grpo", {"divisor": "sequence"}),
        ("maxrl", "dapo", {"scale": "mean"}),
        ("top_entropy", "dapo", None),
    ],
)
def test_at_ratio_one_only_advantages_and_divisors_are_left_of_a_recipe(name, other, differs):
    for seed in (1, 2, 4, 5, 7, 8):
        case, recipe = at_ratio_one(name, seed)
        push = pushes(case, recipe)[0]
        wanted = pushes(case, replace(METHODS[other], **differs or {}))[0]
        if differs is None:  # a choice of tokens: the same push on those, none on the others
            chosen = update_of(case, recipe).weight > 0
            assert 0.1 < chosen.sum() / case.mask.sum() < 0.4
            wanted = wanted * chosen
        assert_close(push, wanted, **tight)
        assert push.any()


def test_rgra_is_grpo_only_as_long_as_nothing_has_moved():
    case = random_case(4, METHODS["grpo"])
    assert not torch.allclose(pushes(case, METHODS["rgra"])[0], pushes(case, METHODS["grpo"])[0])


def test_luspo_is_gspo_times_length():
    """With one clip and both divisors: a row's 1/(N |o|) against 1/(N max_new_tokens)."""
    recipe = METHODS["luspo"]
    for seed in range(1, 9):
        case = random_case(seed, recipe)
        lengths = case.mask.sum(1, keepdim=True)
        gspo = pushes(case, replace(recipe, divisor="sequence"))[0]
        assert_close(pushes(case, recipe)[0], gspo * lengths / case.max_new_tokens, **tight)


@pytest.mark.parametrize(("name", "plain"), [("chord", {"divisor": "tokens", "scale": "group"}), ("hpt", {})])
def test_without_demonstrations_chord_and_hpt_are_plain_rl(name, plain):
    """hpt where no group is hard; and chord with mu 0, whose demonstrations are there and weigh nothing."""
    base = replace(METHODS["dr_grpo"], **plain)
    for seed in range(1, 9):
        case = random_case(seed, base)
        assert_close(pushes(case, METHODS[name])[0], pushes(case, base)[0], **tight)
    recipe = replace(METHODS["chord"], mu=0.0)
    case = replace(random_case(1, METHODS["luffy"]), R=tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    rollouts = ~case.is_anchor
    parts = ("tokens", "mask", "new", "old", "ref", "entropy", "entropy_old", "is_anchor")
    alone = replace(case, R=case.R[:, :3], S=case.S[:, :3], **{part: getattr(case, part)[rollouts] for part in parts})
    push, base = pushes(case, recipe)[0], replace(METHODS["dr_grpo"], divisor="tokens", scale="group")
    assert not push[~rollouts].any()
    assert_close(push[rollouts], pushes(alone, base)[0], **tight)


def test_two_sided_is_grpo_where_no_ratio_is_above_four():
    case = two_responses()
    case = replace(case, old=case.new - tensor([[1.0, 1.25, 3.9, 0.5], [3.9, 0.5, 1.25, 1.0]]).log())
    assert torch.equal(pushes(case, METHODS["two_sided"])[0], pushes(case, METHODS["grpo"])[0])


def test_gmpo_is_gspo_while_nothing_clips():
    case = two_responses()
    case = replace(case, old=case.new - tensor([[0.1, -0.3, 0.2, 0.0], [0.3, -0.2, 0.1, 0.0]]))
    gspo = replace(METHODS["gspo"], clip=(0.0, math.inf))
    assert_close(pushes(case, METHODS["gmpo"])[0], pushes(case, gspo)[0], **tight)


# ---------------------------------------------------------------------------------------- PAPER.md's tables, literally

PINNED = {  # baseline, spread, ratio, clip (low, high) or none, divisor
    "grpo": ("mean", "std", "token", (0.2, 0.2), "sequence"),
    "dr_grpo": ("mean", "none", "token", (0.2, 0.2), "constant"),
    "dapo": ("mean", "std", "token", (0.2, 0.28), "tokens"),
    "gspo": ("mean", "std", "sequence", (3e-4, 4e-4), "sequence"),
    "cispo": ("mean", "std", "at most 5", None, "tokens"),
    "rloo": ("others", "none", "one", None, "constant"),
    "gtpo": ("mean", "none", "token", None, "sequence"),
    "luffy": ("mean", "none", "token", None, "constant"),
    "dagrpo_on": ("mean", "none", "token", (0.2, 0.2), "constant"),
    "dagrpo": ("mean", "none", "token", (0.2, 0.2), "constant"),
    "sft": ("A = 1", "none", "one", None, "tokens"),  # the mean of -log p over the demonstrations' tokens
    "reinforce": ("none", "none", "token", (0.2, 0.2), "constant"),
    "maxrl": ("mean", "mean", "token", (0.2, 0.2), "tokens"),
    "lite_ppo": ("mean", "std of all R", "token", (0.2, 0.2), "tokens"),
    "reinforce_pp": ("mean", "std of all R - m", "token", (0.2, 0.2), "tokens"),
    "rgra": ("mean", "std", "one", None, "sequence"),
    "luspo": ("mean", "std", "sequence", (2e-3, 2.5e-3), "constant"),
    "sapo": ("mean", "std", "gate", None, "sequence"),
    "gmpo": ("mean", "std", "geometric", None, "sequence"),
    "dppo_tv": ("mean", "none", "at most 20", None, "constant"),
    "dppo_kl": ("mean", "none", "at most 20", None, "constant"),
    "two_sided": ("mean", "std", "token", (0.2, 0.2), "sequence"),
    "deepseek_v32": ("mean", "none", "token", (0.2, 0.2), "sequence"),
    "top_entropy": ("mean", "std", "token", (0.2, 0.28), "tokens"),
    "chord": ("mean", "std", "token", (0.2, 0.2), "tokens"),
    "hpt": ("mean", "none", "token", (0.2, 0.2), "constant"),
}
APART = ("chord", "hpt")  # demonstrations are outside the groups
KL = {"reinforce_pp": "k2", "deepseek_v32": "k3 times the ratio"}  # the others k3


def test_every_recipe_is_pinned():
    of_papers = {name for name, recipe in METHODS.items() if recipe.paper != "ours"}
    assert of_papers == PINNED.keys(), "a recipe of a paper needs a line here; a variant of yours has the paper `ours`"


def std(values):
    mean = sum(values) / len(values)
    return sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1)) + 1e-4


def slow_advantages(name, case):
    """B lists of G advantages, by the words of the table. Who is apart has none yet: None."""
    baseline, spread, *_ = PINNED[name]
    is_anchor = case.is_anchor.view(case.R.shape).tolist()
    R = [
        [None if name in APART and anchor else r for r, anchor in zip(*group, strict=True)]
        for group in zip(case.R.tolist(), is_anchor, strict=True)
    ]
    counted = [[r for r in group if r is not None] for group in R]
    means = [sum(group) / len(group) for group in counted]
    every = [r for group in counted for r in group]
    centred = [r - mean for group, mean in zip(counted, means, strict=True) for r in group]
    A = []
    for group, there, mean in zip(R, counted, means, strict=True):
        row = []
        for i, r in enumerate(group):
            if r is None or baseline == "A = 1":
                row.append(None if r is None else 1.0)
                continue
            others = [x for k, x in enumerate(group) if k != i and x is not None]
            difference = r - {"mean": mean, "others": sum(others) / max(len(others), 1), "none": 0.0}[baseline]
            if baseline != "none" and len(set(there)) == 1:
                difference = 0.0
            if difference and spread != "none":
                over = {"std": std(there), "mean": mean, "std of all R": std(every), "std of all R - m": std(centred)}
                difference /= over[spread]
            row.append(difference)
        A.append(row)
    return A


def slow_loss(name, case, new, entropy, kl_beta):
    """The loss of a whole update, sequence by sequence and token by token; `new`, `entropy` are lists of scalars."""
    *_, ratio_kind, clip, divisor = PINNED[name]
    B, G = case.R.shape
    lengths = case.mask.sum(1).tolist()
    is_anchor = case.is_anchor.tolist()
    of_rollouts = sum(t for t, anchor in zip(lengths, is_anchor, strict=True) if not anchor)
    of_anchors = sum(lengths) - of_rollouts
    shown = [any(is_anchor[b * G : (b + 1) * G]) for b in range(B)]
    if name == "top_entropy":
        there = sorted(h for n in range(B * G) for h in case.entropy_old[n, : lengths[n]].tolist())
        place = 0.8 * (len(there) - 1)
        k = int(place)
        quantile = there[k] + (place - k) * (there[min(k + 1, len(there) - 1)] - there[k])
    total = tensor(0.0)
    for b, A in enumerate(slow_advantages(name, case)):
        S = case.S[b].tolist()
        rows = range(b * G, (b + 1) * G)
        positive, negative = ([i for i in range(G) if A[i] is not None and A[i] * sign > 0] for sign in (1, -1))
        for i, n in enumerate(rows):
            tokens, length = case.tokens[n].tolist(), lengths[n]
            advantage, keep, token_weights = A[i], True, [1.0] * length
            if advantage is None:
                advantage = 1.0
            if name in ("dagrpo", "dagrpo_on") and A[i] != 0:  # Eq. 8, 9
                mine, other = (positive, negative) if A[i] > 0 else (negative, positive)
                gaps = [(S[i] - S[k]) if A[i] > 0 else (S[k] - S[i]) for k in other]
                keep = all(gap >= 3.0 for gap in gaps) and not any(math.isnan(S[k]) for k in mine + other)
            if name == "gtpo":
                shared = {1: [], -1: []}  # per direction: is the token at t in both signs, counted from that end?
                for way in (1, -1):
                    for t in range(length):
                        place = t if way == 1 else t - length
                        both = [
                            any(
                                -lengths[m] <= place < lengths[m]
                                and case.tokens[m, place % lengths[m]].item() == tokens[t]
                                for m in (rows[k] for k in side)
                            )
                            for side in (positive, negative)
                        ]
                        shared[way].append(all(both))
                for t in range(length):
                    if all(shared[1][: t + 1]) or all(shared[-1][t:]):
                        token_weights[t] = 2.0 if A[i] > 0 else 0.0
                row_entropy = sum(case.entropy_old[n, :length].tolist()) / length
                advantage = A[i] - 0.1 * row_entropy
                keep = case.start_entropy >= ln_2 or row_entropy <= ln_2
            if name == "top_entropy":
                token_weights = [float(h >= quantile) for h in case.entropy_old[n, :length].tolist()]
            logs = [new[n][t] - case.old[n, t] for t in range(length)]  # log r
            if name == "deepseek_v32" and advantage < 0 and sum(-x.item() for x in logs) / length > 0.5:
                keep = False
            if ratio_kind == "geometric":  # each clipped on A's side
                bound = (
                    (lambda x: x if x.item() < 0.4 else tensor(0.4))
                    if advantage > 0
                    else (lambda x: x if x.item() > -0.4 else tensor(-0.4))
                )
                logs = [bound(x) for x in logs]
            row_ratio = (sum(logs, tensor(0.0)) / length).exp()
            for t in range(length):
                lp, over = new[n][t], None
                if is_anchor[n]:
                    p = lp.exp()
                    term = advantage * {
                        "sft": lambda lp, p: lp,
                        "hpt": lambda lp, p: lp,
                        "dagrpo": lambda lp, p: (lp - lp.detach()).exp(),
                        "luffy": lambda lp, p: p / (p + 0.1),
                        "chord": lambda lp, p: (p * (1 - p)).item() * lp,
                    }[name](lp, p)
                elif ratio_kind == "one":
                    term = advantage * lp
                elif ratio_kind.startswith("at most"):
                    term = min(logs[t].exp().item(), float(ratio_kind.split()[-1])) * advantage * lp
                elif ratio_kind == "gate":
                    tau = 1.0 if advantage > 0 else 1.05
                    term = advantage * 4 / tau / (1 + (-tau * (logs[t].exp() - 1)).exp())
                else:
                    ratio = row_ratio if ratio_kind in ("sequence", "geometric") else logs[t].exp()
                    term = ratio * advantage
                    if name == "two_sided" and advantage < 0 and ratio.item() > 4:
                        term = tensor(4 * advantage)
                    if clip:
                        bounded = min(max(ratio.item(), 1 - clip[0]), 1 + clip[1]) * advantage
                        term = term if term.item() <= bounded else tensor(bounded)
                if name.startswith("dppo"):
                    p, q = lp.exp().item(), case.old[n, t].exp().item()
                    far = abs(p - q) > 0.15
                    if name == "dppo_kl":
                        far = q * log(q / p) + (1 - q) * log((1 - q) / (1 - p)) > 0.05
                    term = tensor(0.0) if far and (p > q) == (advantage > 0) else term
                term = term if keep else tensor(0.0)
                if name == "luffy":
                    term = term + 0.001 * entropy[n][t]
                if kl_beta and not is_anchor[n]:
                    d = case.ref[n, t] - lp
                    ratio = (lp - case.old[n, t]).exp()
                    kls = {"k2": d * d / 2, "k3 times the ratio": ratio * (d.exp() - d - 1)}
                    term = term - kl_beta * kls.get(KL.get(name), d.exp() - d - 1)
                term = term * token_weights[t]  # part of Update.weight, so it falls on a KL term too
                over = {"constant": B * G * case.max_new_tokens, "sequence": B * G * length, "tokens": sum(lengths)}
                if name in APART:  # (1 - mu) rollouts + mu demonstrations, group by group
                    mu = {"chord": 0.1, "hpt": 1.0}[name]
                    over["tokens"] = of_rollouts
                    share = (1 - mu if shown[b] else 1.0) / over[divisor]
                    total = total - term * (mu * sum(shown) / B / of_anchors if is_anchor[n] else share)
                else:
                    total = total - term / over[divisor]
    return total


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
def test_the_gradient_is_that_of_the_slow_loop(name, kl_beta):
    recipe = METHODS[name]
    gradients, bounded = [], set()
    for seed in range(15):
        case = random_case(seed, recipe)
        new, entropy = (
            [[x.requires_grad_() for x in row] for row in part.clone()] for part in (case.new, case.entropy)
        )
        leaves = [x for part in (new, entropy) for row in part for x in row]
        loss = slow_loss(name, case, new, entropy, kl_beta)
        slow = (
            torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True) if loss.requires_grad else None
        )
        slow = torch.stack(slow).view(2, *case.new.shape) if slow else torch.zeros(2, *case.new.shape)
        assert_close(torch.stack(pushes(case, recipe, kl_beta=kl_beta)), -slow, **tight)
        gradients.append(slow[0])
        update = update_of(case, recipe)
        clipped = surrogate(case.new, update, recipe)[1]
        signs = update.advantages.sign()[:, None].expand_as(clipped)
        sampled = update.mask & (update.keep & ~update.is_anchor)[:, None]
        bounded |= set(zip(signs[sampled].tolist(), clipped[sampled].tolist(), strict=True))
    assert (torch.stack(gradients) != 0).any()
    if recipe.rollouts and recipe.clip != (0, math.inf):
        signs = (1.0,) if recipe.baseline == "none" else (1.0, -1.0)  # reinforce has no A below 0
        assert bounded >= {(sign, clipped) for sign in signs for clipped in (True, False)}, "both sides of every bound"


def test_dagrpos_gradient_is_eq_13_assembled_from_each_responses_own():
    """Eq. 13 at ratio 1 on real parameters: sum_i A_i M_i grad log pi(o_i) / (N * max_new_tokens), one i at a time."""
    torch.manual_seed(0)
    recipe, case = METHODS["dagrpo"], random_case(1, METHODS["dagrpo"])
    R = tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    S = tensor([[10.0, 4.0, 4.5, 10.0], [7.5, 1.0, 4.5, 10.0]])
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4))  # a bigram model; 3 is the prompt
    context = torch.cat([torch.full((8, 1), 3), case.tokens[:, :-1]], dim=1)
    logp = model(context).log_softmax(-1).gather(2, case.tokens[:, :, None]).squeeze(2)  # (N, T)
    update = update_of(replace(case, R=R, S=S, old=logp.detach()), recipe)
    policy_loss(logp, update, recipe).backward()
    # A: group 1's mean is 3/4, group 2's 1/2. M, delta 3: in group 1 the negative has S = 4.5 and the worst positive
    # 4 (masked, as is that positive); 10 - 4.5 stays. In group 2 7.5 - 4.5 >= 3 is the smallest gap: all stay.
    A_times_M = [0.25, 0.0, 0.0, 0.25, 0.5, -0.5, -0.5, 0.5]
    wanted = [torch.zeros_like(p) for p in model.parameters()]
    for i, coefficient in enumerate(A_times_M):
        length = int(case.mask[i].sum())
        alone = model(context[i, :length]).log_softmax(-1)[range(length), case.tokens[i, :length]].sum()  # log pi(o_i)
        for whole, part in zip(wanted, torch.autograd.grad(alone, list(model.parameters())), strict=True):
            whole += coefficient * part / (8 * case.max_new_tokens)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert gradient.abs().max() > 1e-6
        assert_close(-parameter.grad, gradient, **tight)

"""What holds of the losses of any batch: invariants, divisors, and the terms added to the surrogate, one by one."""

import math
from dataclasses import replace
from itertools import pairwise
from math import log

import pytest
import torch
from helpers import (
    NAN,
    advantages_of,
    anchor,
    every_recipe,
    more_rows,
    pushes,
    random_case,
    seeds,
    some,
    tight,
    two_responses,
    undistinct_rows,
    update_of,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS, Update, divisor_weights, kl_estimate, policy_loss, signal_rows, surrogate

pytestmark = pytest.mark.usefixtures("double_precision")

# ---------------------------------------------------------------------------------------- invariants of the loss


@every_recipe
@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
@some
@given(seed=seeds, cuts=st.sets(st.integers(1, 7)), random=st.randoms(use_true_random=False))
def test_the_loss_depends_neither_on_the_micro_batch_nor_on_the_order_of_rows(name, kl_beta, seed, cuts, random):
    recipe = METHODS[name]
    case = random_case(seed, recipe)
    update = update_of(case, recipe, with_ref=True)
    order = list(range(8))
    random.shuffle(order)
    cuts = [0, *sorted(cuts), 8]
    logp, entropy = case.new.clone().requires_grad_(), case.entropy.clone().requires_grad_()
    total = 0.0
    for first, last in pairwise(cuts):
        index = tensor(order[first:last])
        part = update.rows(index)
        width = part.mask.shape[1]  # micro-batches may be cut to their longest row
        loss = policy_loss(logp[index, :width], part, recipe, entropy[index, :width], kl_beta)
        loss.backward()
        total += loss.item()
    whole = policy_loss(case.new, update, recipe, case.entropy, kl_beta)
    assert total == pytest.approx(whole.item(), rel=1e-9, abs=1e-12)
    push, on_entropy = pushes(case, recipe, update, kl_beta)
    assert_close(-logp.grad, push, **tight)
    assert_close(torch.zeros_like(on_entropy) if entropy.grad is None else -entropy.grad, on_entropy, **tight)


@every_recipe
@some
@given(seed=seeds)
def test_what_stands_in_padding_changes_nothing(name, seed):
    recipe = METHODS[name]
    case = random_case(seed, recipe)
    clean = pushes(case, recipe)
    assert torch.isfinite(torch.stack(clean)).all()
    pads = ~case.mask
    garbage = replace(
        case,
        tokens=case.tokens.masked_fill(pads, 1),
        old=case.old.masked_fill(pads, NAN),
        new=case.new.masked_fill(pads, -50.0),
        entropy=case.entropy.masked_fill(pads, NAN),
        entropy_old=case.entropy_old.masked_fill(pads, 9.0),
    )
    assert policy_loss(garbage.new, update_of(garbage, recipe), recipe, garbage.entropy).isfinite()
    for dirty, wanted in zip(pushes(garbage, recipe), clean, strict=True):
        assert torch.equal(dirty, wanted)
        assert not dirty[pads].any()


@pytest.mark.parametrize("name", [name for name, recipe in METHODS.items() if recipe.anchors])
@pytest.mark.parametrize("garbage", [NAN, 0.0, -1e4, math.inf])
def test_an_anchors_sampling_log_probs_are_not_read(name, garbage):
    """random_case has NaN there already; nothing else may give another gradient, and none may be NaN."""
    for seed in (1, 2, 4):
        case = random_case(seed, METHODS[name])
        push, _ = pushes(replace(case, old=case.old.masked_fill(case.is_anchor[:, None], garbage)), METHODS[name])
        assert torch.isfinite(push).all()
        assert torch.equal(push, pushes(case, METHODS[name])[0])


@every_recipe
@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
def test_skipped_rows_have_no_gradient(name, kl_beta):
    """No row with a gradient is dropped; with KL no rollout is, with an entropy bonus or in sft no row at all."""
    recipe = METHODS[name]
    dropped_rows = 0
    for seed in range(30):
        case = random_case(seed, recipe)
        update = update_of(case, recipe, with_ref=True)
        push, on_entropy = pushes(case, recipe, update, kl_beta)
        dropped = ~signal_rows(update, recipe, kl_beta)
        assert not push[dropped].any()
        assert not on_entropy[dropped].any()
        assert not (kl_beta and (dropped & ~case.is_anchor).any())
        dropped_rows += int(dropped.sum())
    # what is dropped here: groups of equal rewards, masked and filtered rows; with KL only anchors can be: where A = 1
    # (sft, chord, hpt) none is
    droppable = recipe.rollouts and (recipe.anchors and recipe.mu is None if kl_beta else True)
    assert (dropped_rows > 0) == (droppable and not recipe.entropy_bonus)


@every_recipe
def test_a_groups_pushes_depend_on_another_group_only_where_the_recipe_says_so(name):
    """Group 0 stays and group 1 becomes another one: other rewards, tokens, lengths, ratios, entropies, its anchor."""
    recipe = METHODS[name]
    changed = 0
    for seed in range(40):
        case, other = random_case(3 * seed + 1, recipe), random_case(3 * seed + 2, recipe)
        rows = torch.arange(8) < 8 // len(case.R) * (len(case.R) // 2)  # the first half of the groups

        def joined(part, case=case, other=other, rows=rows):
            mine, new = getattr(case, part), getattr(other, part)
            return torch.cat([mine[: len(mine) // 2], new[len(new) // 2 :]])

        parts = ("R", "S", "tokens", "mask", "new", "old", "ref", "entropy", "entropy_old", "is_anchor")
        mixed = replace(case, **{part: joined(part) for part in parts})
        before, after = (torch.stack(pushes(x, recipe))[:, rows] for x in (case, mixed))
        changed += not torch.allclose(before, after, rtol=1e-9, atol=1e-12)
    assert (changed > 0) == recipe.couples_groups


@every_recipe
def test_at_ratio_one_what_has_a_positive_advantage_is_pushed_up(name):
    """None of its tokens is, down; and a small rise of its log-probs lowers a loss that is a function of the ratio.

    (A ratio that is 1 or detached has a gradient, but its value says nothing.) Which advantages are positive: see
    test_dagrpo.py. gtpo takes 0.1 H = 0.1 off them, which is less than 1/4.
    """
    recipe, seen = METHODS[name], 0
    for seed in range(1, 30, 3):
        case = random_case(seed, recipe)
        R = case.R.bool().double()
        undistinct = {
            "S": 9 * R + 1,
            "start_entropy": 2.0,
            "entropy_old": torch.ones(8, 5),
        }  # none is, and none filtered
        case = replace(case, R=R, old=case.new, **undistinct)
        update = update_of(case, recipe)
        right = (advantages_of(case, recipe).flatten() > 0) & (update.weight.sum(1) > 0)  # hpt: SFT alone, or RL alone
        push, _ = pushes(case, recipe)
        assert (push[right] >= 0).all()
        assert (push[right].sum(1) > 0).all()
        up = case.new + 1e-5 * right[:, None]
        if right.any() and recipe.ratio not in ("one", "detached"):
            before, after = (policy_loss(logp, update, recipe, torch.zeros(8, 5)) for logp in (case.new, up))
            assert after < before
        seen += int(right.sum())
    assert seen


# ---------------------------------------------------------------------------------------- divisors


def test_divisors_closed_forms():
    mask = tensor([[True, False, False], [True, True, True]])
    # constant: 2 rows * 10;  sequence: 2 rows * 1 and 2 rows * 3;  tokens: 4
    assert_close(divisor_weights(mask, "constant", 10), tensor([[1, 0, 0], [1, 1, 1]]) / 20, **tight)
    assert_close(divisor_weights(mask, "sequence", 10), tensor([[3, 0, 0], [1, 1, 1]]) / 6, **tight)
    assert_close(divisor_weights(mask, "tokens", 10), tensor([[1, 0, 0], [1, 1, 1]]) / 4, **tight)


def test_an_unknown_divisor_is_an_error():
    with pytest.raises(ValueError, match="divisor"):
        divisor_weights(tensor([[True]]), "mean", 10)


@pytest.mark.parametrize("divisor", ["constant", "sequence", "tokens"])
def test_masked_and_no_signal_rows_stay_in_the_divisor(divisor):
    """Eq. 10's 1/G is not the number kept: two more rows that get nothing halve what two_responses get."""
    recipe = replace(METHODS["dagrpo_on"], divisor=divisor)
    alone, _ = pushes(two_responses(), recipe)
    rows = undistinct_rows()
    masked = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0, 0.0]]), tensor([[10.0, 1.0, 6.0, 4.0]]), **rows)
    no_signal = replace(masked, R=tensor([[1.0, 0.0], [1.0, 1.0]]), S=tensor([[10.0, 1.0], [10.0, 1.0]]))
    for case in (masked, no_signal):
        push, _ = pushes(case, recipe)
        assert_close(push, torch.cat([alone / 2, torch.zeros(2, 4)]), **tight)


# ---------------------------------------------------------------------------------------- KL, entropy, GTPO, LUFFY


KL = ("k1", "k2", "k3", "k3_ratio")


def kl_case(logp, ref, old=None):
    """An update of one row with these log-probs (T,), for kl_estimate."""
    mask, old = torch.ones(1, len(logp), dtype=torch.bool), logp.detach() if old is None else old
    return Update(tensor([1.0]), tensor([True]), mask, mask / 1, old[None], tensor([False]), ref[None])


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        ("k1", lambda d, r: -d, lambda d, r: 1 + 0 * d),
        ("k2", lambda d, r: d**2 / 2, lambda d, r: -d),
        ("k3", lambda d, r: d.exp() - d - 1, lambda d, r: 1 - d.exp()),
        ("k3_ratio", lambda d, r: r * (d.exp() - d - 1), lambda d, r: -r * d),
    ],
)
def test_the_kl_estimates_and_their_slopes(kind, value, slope):
    """By d = ref - logp and the ratio r = pi / pi_old; through both in k3_ratio: r (e^d - d - 1) + r (1 - e^d)."""
    logp = -torch.linspace(0.01, 8, 50).requires_grad_()
    logp.retain_grad()
    ref, ratio = -torch.linspace(8, 0.01, 50), torch.linspace(0.1, 3, 50)
    found = kl_estimate(logp[None], kl_case(logp, ref, logp.detach() - ratio.log()), kind)[0]
    d = ref - logp.detach()
    assert_close(found.detach(), value(d, ratio), **tight)
    found.sum().backward()
    assert_close(logp.grad, slope(d, ratio), **tight)


def test_whose_gradient_is_that_of_the_kl():
    """A distribution over four tokens, and the mean of each estimate's gradient over its own samples.

    KL(pi || pi_ref)'s is k2's and k3_ratio's; k1's is 0; and k3's is that of KL(pi_ref || pi), the other direction.
    """
    logits, ref = tensor([0.3, -1.0, 0.7, 0.1], requires_grad=True), tensor([1.0, 0.2, -0.4, 0.0]).log_softmax(0)
    logp = logits.log_softmax(0)
    p = logp.exp().detach()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    of_kl, other = gradient((logp.exp() * (logp - ref)).sum()), gradient((ref.exp() * (ref - logp)).sum())
    found = {kind: gradient((p * kl_estimate(logp[None], kl_case(logp, ref), kind)[0]).sum()) for kind in KL}
    wanted = {"k1": torch.zeros(4), "k2": of_kl, "k3": other, "k3_ratio": of_kl}
    for kind in KL:
        assert_close(found[kind], wanted[kind], **tight)
    assert not torch.allclose(of_kl, other, rtol=0.1)


@pytest.mark.parametrize("kind", KL)
def test_kl_is_zero_where_the_policies_agree_and_flat_but_for_k1(kind):
    logp = tensor([-0.3, -2.0, -9.0], requires_grad=True)
    value = kl_estimate(logp[None], kl_case(logp, logp.detach()), kind)
    value.sum().backward()
    assert not value.any()
    assert_close(logp.grad, torch.full((3,), 1.0 if kind == "k1" else 0.0))


@pytest.mark.parametrize("kind", ["k3", "k3_ratio"])
def test_k3_is_right_near_zero_in_fp32(kind):
    """k3 is d^2 / 2 there. exp(d) - d - 1 loses all digits: one value in six is below 0 for |d| about 1e-4."""
    torch.manual_seed(0)
    logp = -1e-3 * torch.rand(20_000, dtype=torch.float32)
    ref = logp + 1e-4 * torch.randn(20_000, dtype=torch.float32)
    d = (ref - logp).double()
    naive = (ref - logp).exp() - (ref - logp) - 1
    assert 0.1 < (naive < 0).float().mean() < 0.25
    found = kl_estimate(logp[None], kl_case(logp, ref), kind)[0]
    assert (found >= 0).all()
    assert_close(found.double(), d**2 / 2, rtol=1e-3, atol=1e-11)


@every_recipe
def test_kl_pulls_rollouts_to_the_reference_and_leaves_anchors_alone(name):
    """What kl_beta adds to a push: -beta * slope / divisor on rollouts, masked ones too; by its recipe's estimate.

    In sft all rows are anchors: it adds nothing.
    """
    recipe = METHODS[name]
    for seed in (0, 1, 2, 5):
        case = random_case(seed, recipe)
        added = pushes(case, recipe, kl_beta=0.25)[0] - pushes(case, recipe)[0]
        d, ratio = case.ref - case.new, (case.new - case.old).exp()
        slope = {"k2": -d, "k3": 1 - d.exp(), "k3_ratio": -ratio * d}[recipe.kl]
        pull = -0.25 * slope * update_of(case, recipe).weight
        assert not added[case.is_anchor].any()
        assert case.is_anchor.all() != recipe.rollouts
        assert_close(added[~case.is_anchor], pull[~case.is_anchor], **tight)


def test_luffys_anchor_ratio_has_the_derivative_of_p_over_p_plus_a_tenth():
    """Value p / (p + 0.1), and by dp/dlogp = p the slope 0.1 p / (p + 0.1)^2: largest, 1/4, at p = 0.1."""
    case = more_rows(two_responses(), tensor([[0.0, 1.0, 0.0]]), tensor([[1.0, 1.0, 1.0]]), **anchor)
    case = replace(case, is_anchor=tensor([True] * 3))
    p = tensor([[0.9, 0.5, 0.2, 0.1], [0.05, 0.01, 0.3, 0.7], [1.0, 1e-4, 0.1, 0.1]])
    update = replace(update_of(case, METHODS["luffy"]), advantages=tensor([1.0, -1.0, 3.0]))
    logp = p.log().requires_grad_()
    objective, _ = surrogate(logp, update, METHODS["luffy"])
    sign = tensor([[1.0], [-1.0], [3.0]])
    assert_close(objective, sign * p / (p + 0.1), **tight)
    objective.sum().backward()
    assert_close(logp.grad, sign * 0.1 * p / (p + 0.1) ** 2, **tight)


@pytest.mark.parametrize("divisor", ["constant", "sequence", "tokens"])
def test_the_entropy_bonus_goes_through_the_divisor(divisor):
    """0.001 / divisor on every completion token, of whichever advantage, anchors included."""
    case, recipe = random_case(4, METHODS["luffy"]), replace(METHODS["luffy"], divisor=divisor)
    over = {
        "constant": 8 * case.max_new_tokens,
        "sequence": 8 * case.mask.sum(1, keepdim=True),
        "tokens": case.mask.sum(),
    }
    assert_close(pushes(case, recipe)[1], case.mask * 0.001 / over[divisor], **tight)


def test_gtpo_pushes_a_group_of_equal_rewards_by_its_entropy_alone():
    """A = 0, so -0.1 H is all: H = 0.5 and 0.2; 1/(2 * 4) and 1/(2 * 3); the ratio; and no token is in conflict."""
    case = replace(two_responses(), R=tensor([[1.0, 1.0]]))
    push, _ = pushes(case, METHODS["gtpo"])
    wanted = [[-0.05 * r / 8 for r in (1, 1.25, 6, 0.5)], [-0.02 * r / 6 for r in (6, 0.5, 1.25, 0)]]
    assert_close(push, tensor(wanted), **tight)
    assert not pushes(case, METHODS["dr_grpo"])[0].any()


@pytest.mark.parametrize(
    ("start", "kept"),
    [(0.5, [True, True, False]), (log(2) - 1e-9, [True, True, False]), (log(2), [True] * 3), (2.0, [True] * 3)],
)
def test_gtpo_filters_uncertain_rows_only_if_the_start_was_certain(start, kept):
    """Mean entropies 0.2, ln 2 and 0.8 (pads apart): above ln 2 is left out, at ln 2 it stays."""
    rows = {name: getattr(two_responses(), name)[:1] for name in anchor}
    rows |= {"entropy_old": tensor([[0.7, 0.9, 1.0, 0.6]])}
    case = more_rows(two_responses(), tensor([[0.0, 1.0, 1.0]]), tensor([[1.0] * 3]), **rows)
    case.entropy_old[0], case.entropy_old[1, :3] = log(2), 0.2
    update = update_of(replace(case, start_entropy=start), METHODS["gtpo"])
    assert update.keep[[1, 0, 2]].tolist() == kept
    assert update_of(replace(case, start_entropy=start), METHODS["dr_grpo"]).keep.all()

"""What holds of the losses of any batch: invariants, divisors, and the terms added to the surrogate, one by one."""

import math
from dataclasses import replace
from itertools import pairwise
from math import log

import pytest
import torch
from helpers import (
    NAN,
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

from dagrpo import (
    METHODS,
    divisor_weights,
    kl_k3,
    policy_loss,
    signal_rows,
    surrogate,
)

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


@pytest.mark.parametrize("name", ["luffy", "dagrpo", "sft"])
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
    # what is dropped here: groups of equal rewards, masked and filtered rows; with KL only anchors can be. In sft A = 1
    droppable = recipe.rollouts and (recipe.anchors if kl_beta else True)
    assert (dropped_rows > 0) == (droppable and not recipe.entropy_bonus)


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


def test_k3_is_never_negative_and_its_gradient_is_one_minus_the_ratio():
    """k3 = e^d - d - 1 with d = ref - logp; dk3/dlogp = 1 - e^d: 0 at equality, below 0 where ref is higher."""
    logp = -torch.linspace(0.01, 8, 50).requires_grad_()
    logp.retain_grad()
    ref = -torch.linspace(8, 0.01, 50)
    value = kl_k3(logp, ref)
    assert (value > 0).all()
    assert value[0].item() == pytest.approx(math.exp(-7.99) + 7.99 - 1, rel=1e-12)  # d = -8 + 0.01
    value.sum().backward()
    assert_close(logp.grad, 1 - (ref - logp.detach()).exp(), **tight)


def test_k3_is_zero_and_flat_where_the_policies_agree():
    logp = tensor([-0.3, -2.0, -9.0], requires_grad=True)
    value = kl_k3(logp, logp.detach())
    value.sum().backward()
    assert not value.any()
    assert not logp.grad.any()


@every_recipe
def test_kl_pulls_rollouts_to_the_reference_and_leaves_anchors_alone(name):
    """What kl_beta adds to a push: -beta * (1 - e^(ref - logp)) / divisor on rollouts, masked ones too.

    In sft all rows are anchors: it adds nothing.
    """
    recipe = METHODS[name]
    for seed in (0, 1, 2, 5):
        case = random_case(seed, recipe)
        added = pushes(case, recipe, kl_beta=0.25)[0] - pushes(case, recipe)[0]
        pull = -0.25 * (1 - (case.ref - case.new).exp()) * update_of(case, recipe).weight
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

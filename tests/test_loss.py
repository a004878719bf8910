"""What holds of the losses of any batch: invariants and divisors."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import (
    NAN,
    advantages_of,
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

from dagrpo import METHODS, divisor_weights, policy_loss, signal_rows

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
    couples = "batch" in recipe.scale or recipe.divisor == "tokens" or recipe.top_entropy < 1 or recipe.mu is not None
    assert (changed > 0) == couples


@every_recipe
def test_at_ratio_one_what_has_a_positive_advantage_is_pushed_up(name):
    """None of its tokens is, down; and a small rise of its log-probs lowers a loss that is a function of the ratio.

    (A ratio that is 1 or detached has a gradient, but its value says nothing.) Which advantages are positive: see
    test_advantages.py. gtpo takes 0.1 H = 0.1 off them, which is less than 1/4.
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

"""Advantages (Eq. 1, 12): baselines, scales, and groups without a signal."""

import math
from fractions import Fraction

import pytest
import torch
from helpers import NAN, every_recipe, many, matrices
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from dagrpo import METHODS, group_advantages

pytestmark = pytest.mark.usefixtures("double_precision")
exact = {"rtol": 0, "atol": 1e-12}
SCALES = ("none", "group", "mean", "batch", "batch_centred")


def test_mean_baseline_closed_form():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    wanted = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.25, 0.25, 0.25, -0.75]])
    assert_close(group_advantages(rewards), wanted, **exact)


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 4 - (1 + 0) / 2 = 3.5;  1 - (4 + 0) / 2 = -1;  0 - (4 + 1) / 2 = -2.5
    wanted = torch.tensor([[3.5, -1.0, -2.5]])
    assert_close(group_advantages(torch.tensor([[4.0, 1.0, 0.0]]), baseline="leave_one_out"), wanted, **exact)


def test_scale_is_the_unbiased_std_plus_1e_4():
    # squared distances from the mean 1/4: 9/16 + 3 * 1/16 = 3/4; over G - 1 = 3 that is 1/4, and the std is 1/2
    wanted = torch.tensor([[0.75, -0.25, -0.25, -0.25]]) / (0.5 + 1e-4)
    assert_close(group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale="group"), wanted, **exact)


def test_scale_mean_divides_by_the_groups_mean_reward():
    """MaxRL: (1 - 1/4) / (1/4) = 3 and -1; (1 - 3/4) / (3/4) = 1/3 and -1; nobody right: 0."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    wanted = torch.tensor([[3.0, -1.0, -1.0, -1.0], [1 / 3, 1 / 3, 1 / 3, -1.0], [0.0] * 4])
    assert_close(group_advantages(rewards, scale="mean"), wanted, **exact)


def test_the_batchs_spreads_are_over_all_groups():
    """Lite PPO: std of 1, 0, 1, 1, sqrt(3/4 / 3) = 1/2. REINFORCE++: std of 1/2, -1/2, 0, 0, sqrt(1/2 / 3)."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    half = torch.tensor([[0.5, -0.5], [0.0, 0.0]])
    assert_close(group_advantages(rewards, scale="batch"), half / (0.5 + 1e-4), **exact)
    assert_close(group_advantages(rewards, scale="batch_centred"), half / (math.sqrt(1 / 6) + 1e-4), **exact)
    assert (group_advantages(torch.full((3, 4), 0.1), scale="batch") == 0).all(), "no spread, no division by zero"


def test_without_a_baseline_the_advantage_is_the_reward():
    """REINFORCE: groups of equal rewards are pushed too, up to the right ones."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert torch.equal(group_advantages(rewards, baseline="none"), rewards)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "none"])
def test_rows_apart_are_as_if_they_were_not_there_and_have_an_advantage_of_one(scale, baseline):
    """CHORD, HPT: whatever a demonstration's reward. A group that has none is a group of G."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    alone = group_advantages(rewards, scale, baseline)
    for reward in (0.0, 1.0, 0.3):
        mixed = torch.cat([rewards, torch.full((2, 1), reward)], dim=1)
        apart = torch.tensor([[False] * 3 + [True]] * 2)
        found = group_advantages(mixed, scale, baseline, apart)
        assert_close(found[:, :3], alone, **exact)
        assert torch.equal(found[:, 3], torch.ones(2))
    if not scale.startswith("batch"):  # a group without one beside a group with one
        mixed[1, 3], apart[1, 3] = 0.0, False
        assert_close(group_advantages(mixed, scale, baseline, apart)[0, :3], alone[0], **exact)
        whole = group_advantages(mixed[1:], scale, baseline)
        assert_close(group_advantages(mixed, scale, baseline, apart)[1:], whole, **exact)


@pytest.mark.parametrize("scale", SCALES)
def test_a_group_with_a_single_row_that_is_compared_has_no_signal(scale):
    rewards, apart = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[False, True]] * 2)
    assert torch.equal(group_advantages(rewards, scale, apart=apart), torch.tensor([[0.0, 1.0]] * 2))


@pytest.mark.parametrize("scale", ["batch", "batch_centred"])
def test_a_missing_reward_spoils_its_own_group_alone(scale):
    """On TRL a reward may be NaN, and its group is then left out; the spread is that of the others."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, NAN, 0.0], [1.0, 1.0, 0.0]])
    found = group_advantages(rewards, scale)
    assert found[1].isnan().all()
    if scale == "batch_centred":
        assert_close(found[::2], group_advantages(rewards[::2], scale), **exact)
    else:
        assert found[::2].isfinite().all()


def test_scale_mean_takes_no_reward_below_zero():
    with pytest.raises(ValueError, match="below 0"):
        group_advantages(torch.tensor([[1.0, -0.5]]), scale="mean")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exact_zeros(scale, baseline, dtype):
    """0.1 is not a binary fraction: the mean of several may differ from it, and a std of about 0 would blow that up."""
    for size in range(2, 17):
        for reward in (0.0, 0.1, 0.3, 1.0):
            advantages = group_advantages(torch.full((2, size), reward, dtype=dtype), scale, baseline)
            assert torch.equal(advantages, torch.zeros(2, size, dtype=dtype))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", range(2, 17))
def test_a_group_without_signal_gets_exact_zeros_beside_one_with_signal(size, scale):
    advantages = group_advantages(torch.tensor([[0.1] * size, [1.0] + [0.0] * (size - 1)]), scale)
    assert (advantages[0] == 0).all()
    assert (advantages[1] != 0).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 4)])
def test_against_a_constant_no_reward_is_read_and_a_group_of_one_is_enough(scale, shape):
    for reward in (0.0, 0.3, 1.0, NAN):
        assert torch.equal(group_advantages(torch.full(shape, reward), scale, "constant"), torch.ones(shape))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (0,), (4,), (1, 2, 3)])
def test_advantages_need_groups_of_two_or_more(shape):
    with pytest.raises(ValueError, match="G >= 2"):
        group_advantages(torch.zeros(shape))


@pytest.mark.parametrize("choice", [{"scale": "std"}, {"baseline": "median"}, {"scale": None}, {"baseline": None}])
def test_unknown_choices_are_errors(choice):
    with pytest.raises(ValueError, match="unknown"):
        group_advantages(torch.tensor([[1.0, 0.0]]), **choice)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "none"])
@many
@given(rewards=matrices(st.sampled_from([0.0, 0.1, 0.5, 1.0])))
def test_no_groups_advantages_depend_on_another_but_by_the_batchs_spread(scale, baseline, rewards):
    """With a spread of the batch, all groups have one factor in common: the advantages are those without, times it."""
    rewards = torch.tensor(rewards)
    found = group_advantages(rewards, scale, baseline)
    if scale.startswith("batch"):
        plain = group_advantages(rewards, "none", baseline)
        factor = found.abs().sum() / plain.abs().sum().clamp(min=1e-9)
        assert_close(found, plain * factor, **exact)
        assert factor > 0 or not found.any()
    else:
        alone = [group_advantages(group[None], scale, baseline) for group in rewards]
        assert_close(found, torch.cat(alone), **exact)


@every_recipe
@many
@given(rewards=matrices(st.sampled_from([0.0, 0.25, 0.5, 1.0])))
def test_an_advantage_is_positive_exactly_where_the_reward_is_above_what_it_is_compared_with(name, rewards):
    """The group's mean (the mean of the others is above R where the mean is); 0 in reinforce; in sft nothing: A = 1."""
    recipe, rewards = METHODS[name], torch.tensor(rewards)
    found = group_advantages(rewards, recipe.scale, recipe.baseline)
    if recipe.baseline == "constant":
        assert torch.equal(found, torch.ones_like(rewards))
        return
    mean = [[0.0 if recipe.baseline == "none" else sum(map(Fraction, row)) / len(row)] for row in rewards.tolist()]
    wanted = [[(r > m) - (r < m) for r in map(Fraction, row)] for row, (m,) in zip(rewards.tolist(), mean, strict=True)]
    assert found.sign().tolist() == wanted

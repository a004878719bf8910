"""One recipe by another: where two must push alike, or differ by a known factor."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import pushes, random_case, tight, two_responses, update_of
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS

pytestmark = pytest.mark.usefixtures("double_precision")


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

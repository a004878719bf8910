"""analysis.gradients: net shares in closed form, and gradients against autograd and the loss."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_conflict import products
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import dagrpo
import rollout
import tasks
from analysis import gradients
from analysis.gradients import Sampling, chance_mask, cosines, net_share, plane, sides_cosine
from anchors import mix, prepare_anchors

ALL = np.array([True, True])
UP_DOWN = np.array([0.5, -0.5])


# ---------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("vectors", "A", "keep", "share"),
    [
        (([3.0, 4.0], [3.0, 4.0]), UP_DOWN, ALL, 0.0),  # equal responses, opposite advantages: all is lost
        (([1.0, 0.0], [0.0, 1.0]), UP_DOWN, ALL, 1 / math.sqrt(2)),
        (([1.0, 0.0], [-1.0, 0.0]), UP_DOWN, ALL, 1.0),  # opposite gradients: the pushes agree
        (([1.0, 0.0], [1.0, 0.0]), np.array([0.75, -0.25]), ALL, 0.5),
        (([1.0, 0.0], [1.0, 0.0]), UP_DOWN, np.array([True, False]), 1.0),  # one side alone has nothing to cancel
    ],
)
def test_net_share_of_two_responses(vectors, A, keep, share):
    assert net_share(products(*vectors), A, keep) == pytest.approx(share, abs=1e-6)


def test_net_share_counts_cancelling_between_the_sides_only():
    vectors = ([1.0, 0.0], [-1.0, 0.5], [0.0, 1.0], [0.0, 1.0])
    A = np.array([0.5, 0.5, -0.5, -0.5])
    up, down = 0.5 * np.array([0.0, 0.5]), -0.5 * np.array([0.0, 2.0])
    expected = np.linalg.norm(up + down) / (np.linalg.norm(up) + np.linalg.norm(down))
    assert net_share(products(*vectors), A, np.full(4, True)) == pytest.approx(expected)


def test_nothing_kept_is_not_a_number():
    nothing = np.array([False, False])
    assert math.isnan(net_share(np.eye(2), UP_DOWN, nothing)) and math.isnan(sides_cosine(np.eye(2), UP_DOWN, nothing))


def test_sides_pull_against_each_other_where_gradients_are_alike():
    assert sides_cosine(products([1.0, 1.0], [2.0, 2.0]), UP_DOWN, ALL) == pytest.approx(-1)
    assert sides_cosine(products([1.0, 1.0], [-2.0, -2.0]), UP_DOWN, ALL) == pytest.approx(1)


def test_weighted_cosine_of_a_positive_and_a_negative_is_minus_the_unweighted():
    gram = products([1.0, 2.0], [2.0, 1.0], [0.0, 0.0])
    plain, weighted = cosines(gram), cosines(gram, np.array([0.7, -0.3, 1.0]))
    assert plain[0, 1] == pytest.approx(0.8) and weighted[0, 1] == pytest.approx(-0.8)
    assert np.isnan(plain[2]).all()  # a zero vector has no direction


vectors = st.lists(st.lists(st.integers(-9, 9).map(float), min_size=3, max_size=3), min_size=2, max_size=6)


@settings(deadline=None, max_examples=100)
@given(vectors, st.data())
def test_net_share_does_not_depend_on_order_or_scale_and_is_a_share(rows, data):
    n = len(rows)
    A = np.array(data.draw(st.lists(st.sampled_from([-0.5, -0.25, 0.25, 0.75]), min_size=n, max_size=n)))
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    order, gram = data.draw(st.permutations(range(n))), products(*rows)
    share = net_share(gram, A, keep)
    moved = net_share(gram[np.ix_(order, order)], A[order], keep[order])
    assert moved == pytest.approx(share, abs=1e-6, nan_ok=True)
    assert net_share(9 * gram, 3 * A, keep) == pytest.approx(share, abs=1e-6, nan_ok=True)
    assert math.isnan(share) or -1e-9 <= share <= 1 + 1e-9


def test_plane_holds_flat_vectors_as_they_are():
    rows = np.array([[3.0, 0.0, 0.0], [-1.0, 2.0, 0.0], [0.5, 0.5, 0.0], [0.0, -1.0, 0.0]])
    points, inside = plane(products(*rows.tolist()))
    assert inside == pytest.approx(1) and points @ points.T == pytest.approx(rows @ rows.T, abs=1e-6)
    _, inside = plane(np.eye(4))
    assert inside == pytest.approx(0.5)


def test_random_mask_keeps_as_many_of_each_side():
    A, keep = np.array([0.5, 0.5, 0.5, -0.3, -0.3, -0.3]), np.array([True, True, False, True, False, False])
    seen = set()
    for _ in range(100):
        mask = chance_mask(A, keep)
        assert mask[:3].sum() == 2 and mask[3:].sum() == 1
        seen.add(tuple(mask))
    assert len(seen) == 9  # every such mask comes up


# ---------------------------------------------------------------------------------------- gradients


@pytest.fixture
def sampled(tiny, problems):
    """Two groups of three: different lengths, and a response that occurs twice."""
    rollouts = rollout.sample_groups(tiny, problems[:2], [3, 3], max_new_tokens=10)
    rows = torch.tensor([0, 1, 0, 3, 4, 5])
    return rollouts.select(rows)


def slow_gradient(policy, rollouts, row, weight):
    """The row alone, no padding, no cache: one log-prob after the other."""
    prompt = rollouts.prompt_ids[rollouts.group[row]][rollouts.prompt_mask[rollouts.group[row]]]
    response = rollouts.tokens[row][rollouts.mask[row]]
    logits = policy.model(input_ids=torch.cat([prompt, response])[None]).logits[0]
    total = 0.0
    for t, token in enumerate(response.tolist()):
        total = total + weight[row, t] * logits[len(prompt) - 1 + t].log_softmax(-1)[token]
    policy.model.zero_grad()
    total.backward()
    found = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    policy.model.zero_grad()
    return found


@pytest.mark.parametrize("divisor", ["constant", "sequence", "tokens"])
def test_gradients_are_those_of_each_row_alone(tiny, sampled, divisor):
    weight = dagrpo.divisor_weights(sampled.mask, divisor, 10)
    found = gradients.response_gradients(tiny, sampled, torch.arange(6), weight)
    for row in range(6):
        slow = slow_gradient(tiny, sampled, row, weight)
        assert (found[row] - slow).norm() < 1e-5 * slow.norm()
    assert torch.equal(found[0], found[2]) and found[0].abs().max() > 0


def test_equal_responses_in_different_groups_are_different_rows(tiny, sampled):
    same = sampled.tokens.clone()
    same[3], mask = same[0], sampled.mask.clone()
    mask[3] = mask[0]
    changed = replace(sampled, tokens=same, mask=mask)
    found = gradients.response_gradients(tiny, changed, torch.tensor([0, 3]), mask.float())
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("method", ["dr_grpo", "grpo"])
def test_weighted_gradients_add_up_to_that_of_the_loss(tiny, sampled, method):
    recipe, A = dagrpo.METHODS[method], torch.tensor([[0.5, -0.25, -0.25], [0.6, -0.3, -0.3]])
    keep = torch.tensor([[True, True, False], [False, True, True]])
    update = dagrpo.build_update(recipe, A, keep, sampled.tokens, sampled.mask, sampled.logp, sampled.entropy,
                                 sampled.is_anchor, 10)  # fmt: skip
    logp, _ = rollout.token_logprobs(tiny, sampled, torch.arange(6))
    update = replace(update, logp_old=logp.detach())
    parts = torch.autograd.grad(dagrpo.policy_loss(logp, update, recipe), list(tiny.model.parameters()))
    found = gradients.response_gradients(tiny, sampled, torch.arange(6), update.weight)
    assert_close((A * keep).flatten() @ found, -torch.cat([p.flatten() for p in parts]), rtol=1e-3, atol=1e-6)


def test_gram_in_parts_is_gram():
    vectors = torch.randn(4, (1 << 20) + 70)  # a whole part and a bit
    vectors[:, -70:] *= 100
    assert_close(torch.tensor(gradients.gram(vectors)), vectors.double() @ vectors.double().T, rtol=1e-9, atol=1e-3)


def test_shared_text_of_pairs():
    tokens = torch.tensor([[1, 2, 3, 0], [1, 2, 4, 3], [5, 2, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    shared = gradients.shared_text(tokens, mask)
    assert shared[0].tolist() == pytest.approx([1, 4 / 7, 0]) and shared[1, 2] == 0


THREE = Sampling(group_size=3, max_new_tokens=24, batch_prompts=2)


def test_groups_and_batches_are_those_of_the_same_gradients(tiny, monkeypatch):
    """A batch with one group of signal has that group's net share; a demonstration is the last of its group."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])  # the second group has signal by its anchor
    monkeypatch.setattr(gradients.scoring, "rewards", lambda rollouts: rewards)
    some = tasks.arithmetic("train", 2, levels={"1": tasks.LEVELS["1"]})
    measured = gradients.measure(tiny, some, THREE)
    assert [len(measured.groups[setup]) for setup in (gradients.ROLLOUTS, gradients.MIXED)] == [1, 2]
    alone = measured.groups[gradients.ROLLOUTS][0]
    assert measured.batches[gradients.ROLLOUTS][0][0] == pytest.approx(
        net_share(alone.gram, alone.A, np.full(3, True)), abs=1e-4
    )
    mixed = measured.groups[gradients.MIXED][0]
    assert mixed.is_anchor.tolist() == [False, False, True] and mixed.texts[2] == some[0].demo
    assert pytest.approx([1 / 3, -2 / 3, 1 / 3]) == mixed.A


def test_a_batch_sums_its_groups_before_it_takes_the_share(tiny, monkeypatch):
    monkeypatch.setattr(
        gradients.scoring, "rewards", lambda r: torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    )
    some = tasks.arithmetic("train", 2, levels={"1": tasks.LEVELS["1"]})
    prepared, _ = prepare_anchors(tiny, some, 24)
    torch.manual_seed(5)
    found = gradients.measure(tiny, some, THREE).batches[gradients.ROLLOUTS][0][0]
    torch.manual_seed(5)
    rollouts = mix(tiny, rollout.sample_groups(tiny, some, [3, 3], 24), prepared, 4)
    rows = torch.tensor([0, 1, 2, 4, 5, 6])
    each = gradients.response_gradients(tiny, rollouts, rows, rollouts.mask.float())
    A = torch.tensor([2.0, -1.0, -1.0, -1.0, 2.0, -1.0])
    up, down = (A.clamp(min=0) @ each), (A.clamp(max=0) @ each)
    assert found == pytest.approx(((up + down).norm() / (up.norm() + down.norm())).item(), abs=1e-4)

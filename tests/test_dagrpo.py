"""DaGRPO's masks (Eq. 8-9), the weights of dagrpo_soft, and GTPO's token weights."""

import math

import pytest
import torch
from helpers import NAN, advantage_values, deltas, groups, many, matrices, scored, split
from hypothesis import given
from hypothesis import strategies as st

from dagrpo import METHODS, conflict_weights, rectification_mask, soften

pytestmark = pytest.mark.usefixtures("double_precision")

# ---------------------------------------------------------------------------------------- Eq. 8, 9: the masks


def eq_8_9(group, delta):
    """The mask of one group as the paper writes it, in plain Python: `group` is a list of (A, S)."""
    positive = [s for a, s in group if a > 0]  # S of G+
    negative = [s for a, s in group if a < 0]  # S of G-
    if any(math.isnan(s) for s in positive + negative):
        return [False] * len(group)
    mask = []
    for a, s in group:
        if a > 0:
            mask.append(s - max(negative, default=-math.inf) >= delta)  # Eq. 8
        elif a < 0:
            mask.append(min(positive, default=math.inf) - s >= delta)  # Eq. 9
        else:
            mask.append(False)
    return mask


@many
@given(batch=groups, delta=deltas)
def test_the_mask_is_eq_8_and_9(batch, delta):
    assert rectification_mask(*split(batch), delta).tolist() == [eq_8_9(group, delta) for group in batch]


@many
@given(batch=groups, delta=deltas, random=st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_mask(batch, delta, random):
    order = list(range(len(batch[0])))
    random.shuffle(order)
    advantages, scores = split(batch)
    permuted = rectification_mask(advantages[:, order], scores[:, order], delta)
    assert torch.equal(permuted, rectification_mask(advantages, scores, delta)[:, order])


@many
@given(batch=groups, low=deltas, more=deltas)
def test_a_larger_delta_never_keeps_more(batch, low, more):
    strict, lax = (rectification_mask(*split(batch), delta) for delta in (low + more, low))
    assert not (strict & ~lax).any()


@many
@given(batch=groups, delta=deltas)
def test_no_groups_mask_depends_on_another(batch, delta):
    advantages, scores = split(batch)
    alone = [rectification_mask(a[None], s[None], delta) for a, s in zip(advantages, scores, strict=True)]
    assert torch.equal(rectification_mask(advantages, scores, delta), torch.cat(alone))


@many
@given(batch=groups)
def test_no_signal_is_never_kept(batch):
    advantages, scores = split(batch)
    assert not rectification_mask(advantages, scores, 0.0)[advantages == 0].any()


@many
@given(batch=scored, delta=deltas, data=st.data())
def test_a_missing_score_masks_exactly_its_group_and_only_if_it_was_needed(batch, delta, data):
    advantages, scores = split(batch)
    before = rectification_mask(advantages, scores, delta)
    b = data.draw(st.integers(0, len(batch) - 1))
    i = data.draw(st.integers(0, len(batch[0]) - 1))
    scores[b, i] = NAN
    if advantages[b, i] != 0:
        before[b] = False
    assert torch.equal(rectification_mask(advantages, scores, delta), before)


@pytest.mark.parametrize(("gap", "delta", "kept"), [(3.0, 3.0, True), (2.5, 3.0, False), (0.0, 0.0, True)])
def test_the_boundary_belongs_to_the_kept(gap, delta, kept):
    """Eq. 8-9 say >=. A tie is kept by delta = 0."""
    advantages, scores = torch.tensor([[0.5, -0.5]]), torch.tensor([[4.0 + gap, 4.0]])
    assert rectification_mask(advantages, scores, delta).tolist() == [[kept, kept]]


def test_delta_zero_still_masks_a_positive_below_a_negative():
    advantages, scores = torch.tensor([[0.5, -0.5]]), torch.tensor([[4.0, 4.5]])
    assert rectification_mask(advantages, scores, 0.0).tolist() == [[False, False]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_against_an_empty_side_everything_with_a_signal_is_kept(sign):
    advantages, scores = torch.tensor([[0.5, 0.0, 0.25]]) * sign, torch.tensor([[1.0, 1.0, 10.0]])
    assert rectification_mask(advantages, scores, 9.0).tolist() == [[True, False, True]]


@pytest.mark.parametrize("delta", [-0.5, -1e-9, -math.inf, NAN])
def test_a_negative_or_missing_delta_is_an_error(delta):
    with pytest.raises(ValueError, match="delta"):
        rectification_mask(torch.tensor([[0.5, -0.5]]), torch.tensor([[10.0, 1.0]]), delta)


def test_advantages_and_scores_of_different_shapes_are_an_error():
    with pytest.raises(ValueError, match="the same"):
        rectification_mask(torch.tensor([[0.5, -0.5]]), torch.tensor([[10.0], [1.0]]))


# ---------------------------------------------------------------------------------------- dagrpo_soft's weights


@many
@given(batch=groups, delta=st.integers(0, 9))
def test_a_weight_is_a_half_or_more_exactly_where_the_mask_keeps(batch, delta):
    """So it has the mask's sides, its opponents, and its way with missing scores."""
    A, S = split(batch)
    weight, keep = (rectification_mask(A, (2 * S).round() / 2, float(delta), soft) for soft in (True, False))
    assert torch.equal(weight >= 0.5, keep)
    assert ((weight > 0) == ((A != 0) & ~((A != 0) & S.isnan()).any(dim=1, keepdim=True))).all()


@many
@given(batch=groups, low=deltas, more=deltas)
def test_a_larger_delta_never_weighs_more(batch, low, more):
    less, most = (rectification_mask(*split(batch), delta, soft=True) for delta in (low + more, low))
    assert (less <= most).all()


def test_soften_takes_the_recipes_delta_and_leaves_other_recipes_alone():
    A, S = torch.tensor([[0.5, 0.5, -0.5, -0.5]]), torch.tensor([[10.0, 4.5, 5.5, 1.0]])  # gaps 4.5, -1, -1, 3.5
    torch.testing.assert_close(
        soften(METHODS["dagrpo_soft"], A, S, 2.0), A / (1 + torch.tensor([[-2.5, 3.0, 3.0, -1.5]]).exp())
    )
    assert soften(METHODS["dagrpo_on"], A, S, 2.0) is A is soften(METHODS["dr_grpo"], A, S, 2.0)


def test_a_missing_score_takes_all_of_its_group_from_the_soft_mask():
    A, S = torch.tensor([[0.5, -0.5], [0.5, -0.5]]), torch.tensor([[10.0, 1.0], [10.0, NAN]])
    found = soften(METHODS["dagrpo_soft"], A, S)
    assert found[0].all() and not found[1].any()


# ---------------------------------------------------------------------------------------- GTPO's token weights


def test_conflict_weights_by_hand():
    """Letters for tokens, `$` the end token, `.` padding (which repeats tokens of the responses on purpose)."""
    rows = {
        "abxc$": 0.5,  # from the start a b, from the end $ c; x is between the runs
        "abc$b": 0.5,  # length 4: the same runs meet, no token is its own
        "abyzc$": -0.5,
        "x$bcc$": -0.5,  # length 2: x is at another place than in row 0; $ ends it
        "abxc$a": 0.0,  # A = 0: on neither side, weighs 1
    }
    lengths = [5, 4, 6, 2, 5]
    tokens = torch.tensor([[ord(c) for c in row.ljust(6, "b")] for row in rows])  # (N, T)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    weights = conflict_weights(torch.tensor([list(rows.values())]), tokens, mask)
    cut = [row[:length].int().tolist() for row, length in zip(weights, lengths, strict=True)]
    assert cut == [[2, 2, 1, 2, 2], [2, 2, 2, 2], [0, 0, 1, 1, 0, 0], [1, 0], [1, 1, 1, 1, 1]]


def conflict_loop(group):
    """The weights of one group by PAPER.md's words: `group` is a list of (A, the response's tokens)."""

    def holds(sign, token, place):  # does a response of this sign hold this token at this place?
        return any(
            a * sign > 0 and -len(row) <= place < len(row) and row[place] == token for a, row in group
        )  # a place < 0 counts from the end

    def common(row, place):
        return holds(+1, row[place], place) and holds(-1, row[place], place)

    weights = []
    for a, row in group:
        n = len(row)
        prefix = [all(common(row, u) for u in range(t + 1)) for t in range(n)]
        suffix = [all(common(row, u - n) for u in range(t, n)) for t in range(n)]
        in_conflict = {1: 2, 0: 1, -1: 0}[(a > 0) - (a < 0)]
        weights.append([in_conflict if prefix[t] or suffix[t] else 1 for t in range(n)])
    return weights


few_tokens = st.lists(st.integers(0, 2), min_size=5, max_size=5)


@many
@given(batch=matrices(st.tuples(advantage_values, st.integers(1, 5), few_tokens), largest_size=4))
def test_conflict_weights_are_the_slow_loop(batch):
    rows = [row for group in batch for row in group]
    tokens = torch.tensor([row for _, _, row in rows])  # after a row's length comes garbage
    mask = torch.arange(5) < torch.tensor([length for _, length, _ in rows])[:, None]
    advantages = torch.tensor([[a for a, _, _ in group] for group in batch])
    weights = conflict_weights(advantages, tokens, mask)
    wanted = [w for group in batch for w in conflict_loop([(a, row[:length]) for a, length, row in group])]
    assert [row[kept].tolist() for row, kept in zip(weights, mask, strict=True)] == wanted

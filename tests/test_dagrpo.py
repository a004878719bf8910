"""Advantages (Eq. 1, 12), DaGRPO's masks (Eq. 8-9), GTPO's token weights, and dagrpo.py as a file."""

import math
import re
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest
import torch
from helpers import NAN, ROOT, advantage_values, deltas, every_recipe, groups, many, matrices, scored, split
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import dagrpo
from analysis import eight
from analysis.eight import look, note
from analysis.families import FAMILIES, cite
from dagrpo import METHODS, conflict_weights, group_advantages, rectification_mask
from scoring import EXAMPLE

pytestmark = pytest.mark.usefixtures("double_precision")
exact = {"rtol": 0, "atol": 1e-12}
SCALES = ("none", "group", "mean", "batch", "batch_centred")

# ---------------------------------------------------------------------------------------- Eq. 1, 12: advantages


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
    with pytest.raises(ValueError, match="must both be"):
        rectification_mask(torch.tensor([[0.5, -0.5]]), torch.tensor([[10.0], [1.0]]))


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


# ---------------------------------------------------------------------------------------- the file


def test_a_copy_of_the_file_needs_torch_alone(tmp_path):
    """In a folder of its own, without the project on the path."""
    shutil.copy(dagrpo.__file__, tmp_path)
    code = (
        "import sys, dagrpo; print(dagrpo.__file__, sorted({'scoring', 'transformers', 'harness'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'dagrpo.py'} []\n"


def test_python_dagrpo_begins_with_the_families_and_shows_two_recipes():
    command = [sys.executable, "dagrpo.py"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert text.index("Group a") < text.index("The recipes") < text.index("\n1. Advantage")
    assert [name for name in METHODS if f"\n  {name}:" in text] == ["dr_grpo", "dagrpo"]


def test_the_page_shows_what_is_asked_for(capsys):
    """All: every recipe's advantages and pushes; sft has no response whose tokens could be compared."""
    eight.main(["--all"])
    text = capsys.readouterr().out
    for name, recipe in METHODS.items():
        assert len(re.findall(rf"^  {name} ", text, re.MULTILINE)) == 3
        assert text.count(f"\n  {name}: {cite(recipe)}\n") == 2 * recipe.rollouts
    eight.main(["gspo", "luffy"])
    text = capsys.readouterr().out
    assert [name for name in METHODS if f"\n  {name}:" in text] == ["gspo", "luffy"]
    with pytest.raises(SystemExit):
        eight.main(["grpoo"])
    said = capsys.readouterr().err
    assert "there is no recipe grpoo" in said and said.count("\n") == 1


def test_every_recipe_is_in_one_family():
    of_papers = [name for name, recipe in METHODS.items() if recipe.paper != "ours"]  # a reader's own has no family
    assert [name for members in FAMILIES.values() for name in members] == of_papers


def test_the_page_is_right_about_the_shared_tokens():
    """At ratio 1 the shared pushes cancel exactly where signs are opposite and weights equal, and it says so."""
    for name in ("dr_grpo", "grpo", "dapo", "gspo", "rloo", "maxrl", "sapo", "luffy"):
        view = look(METHODS[name])
        shared = EXAMPLE[0].index(";") + 1
        net = view.push[0, 0, :shared] + view.push[0, 3, :shared]
        assert not net.any() and view.push[0, 0, :shared].all()
        notes = [note(METHODS[name], view, 0, i) for i in range(7)]
        assert notes == [""] * 7
    assert look(METHODS["dagrpo"]).push[0, 0].any() and not look(METHODS["dagrpo"]).push[0, 3].any()


def test_the_page_says_why_a_push_is_zero_or_small():
    clipped = look(METHODS["gspo"], moved=True)
    assert not clipped.push[0, 0].any() and note(METHODS["gspo"], clipped, 0, 0) == "its one ratio is clipped"
    assert clipped.push[0, 3].any() and note(METHODS["gspo"], clipped, 0, 3) == ""
    p = math.exp(-0.3)
    for name, wanted in (("luffy", 0.1 * p / (p + 0.1) ** 2), ("chord", p * (1 - p))):
        view = look(METHODS[name])
        said = note(METHODS[name], view, 1, 7)
        assert f"= {wanted:.2f} at" in said
    hard = look(METHODS["luffy"])
    assert (hard.A[1, :7] < 0).all() and hard.A[1, 7] > 0 and hard.push[1, 7].any()
    assert (
        not look(METHODS["dr_grpo"]).A[1].any() and note(METHODS["dr_grpo"], look(METHODS["dr_grpo"]), 1, 0) == "A = 0"
    )
    assert note(METHODS["dagrpo"], look(METHODS["dagrpo"]), 0, 1) == "masked"


def test_recipes_and_updates_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        METHODS["dagrpo"].rectify = False
    update = dagrpo.Update(*[torch.zeros(1)] * 6)
    with pytest.raises(FrozenInstanceError):
        update.keep = torch.ones(1)

"""anchors.py: which demonstrations are usable, and how they enter the groups (Eq. 11)."""

from dataclasses import replace

import pytest
import torch
from helpers import both_paths

from anchors import mix, prepare_anchors
from rollout import sample_groups
from tasks import solve

GOOD = solve("12+5-3=", "2")
WRONG = replace(GOOD, demo="12+5=18;18-3=15;#15")


def test_wrong_missing_and_too_long_demonstrations_are_counted(tiny):
    problems = [GOOD, WRONG, replace(GOOD, demo=""), replace(GOOD, demo="12+5=17;" * 9 + "#14")]
    prepared, fates = prepare_anchors(tiny, problems, max_new_tokens=40)
    assert fates == {"usable": 1, "wrong": 1, "missing": 1, "too long": 1}
    assert [anchor is not None for anchor in prepared] == [True, False, False, False]
    kept, fates = prepare_anchors(tiny, problems, max_new_tokens=40, keep_wrong=True)
    assert kept[1].text == WRONG.demo and fates["usable"] == 2


def test_an_anchor_fits_with_its_end_token_or_not_at_all(tiny):
    length = len(GOOD.demo) + 1  # a token a character, and the end token
    (fits,), _ = prepare_anchors(tiny, [GOOD], max_new_tokens=length)
    (cut,), fates = prepare_anchors(tiny, [GOOD], max_new_tokens=length - 1)
    assert fits.tokens[-1] == tiny.eos_id and len(fits.tokens) == length
    assert cut is None and fates == {"too long": 1}


def test_mixed_groups_all_have_g_rows_and_the_anchor_last(tiny):
    problems = [GOOD, replace(GOOD, demo=""), solve("1+2=", "1")]
    prepared, _ = prepare_anchors(tiny, problems, max_new_tokens=40)
    rollouts = sample_groups(tiny, problems, [3, 4, 3], max_new_tokens=10)
    mixed = mix(tiny, rollouts, prepared, group_size=4)
    assert mixed.group.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert mixed.is_anchor.nonzero().flatten().tolist() == [3, 11]
    assert mixed.texts[3] == GOOD.demo
    assert mixed.tokens[3][mixed.mask[3]].tolist() == tiny.encode_response(GOOD.demo)
    assert mixed.logp[3][mixed.mask[3]].isnan().all() and (mixed.logp[3][~mixed.mask[3]] == 0).all()
    sampled = ~mixed.is_anchor
    assert [t for t, s in zip(mixed.texts, sampled, strict=True) if s] == rollouts.texts
    torch.testing.assert_close(mixed.logp[sampled, : rollouts.logp.shape[1]], rollouts.logp)


@both_paths
def test_without_rollouts_a_group_is_its_anchor(tiny, path):
    """What a step of sft is made of: one row a group, and a group with neither rollout nor anchor is an error."""
    problems = [solve("1+2=", "1"), GOOD]
    prepared, _ = prepare_anchors(tiny, problems, max_new_tokens=40)
    nothing = path.sample_groups(tiny, problems, [0, 0], max_new_tokens=40)
    mixed = mix(tiny, nothing, prepared, group_size=1)
    assert mixed.texts == [problem.demo for problem in problems] and mixed.group.tolist() == [0, 1]
    assert mixed.is_anchor.all() and mixed.ended.all() and mixed.tokens.dtype == torch.long
    for row, problem in enumerate(problems):
        assert mixed.tokens[row][mixed.mask[row]].tolist() == tiny.encode_response(problem.demo)
        assert mixed.prompt_ids[row][mixed.prompt_mask[row]].tolist() == tiny.encode_prompt(problem.question)
    assert mixed.lengths.tolist() == [len(problem.demo) + 1 for problem in problems]
    assert mixed.tokens.shape[1] == max(mixed.lengths) and (mixed.tokens[~mixed.mask] == tiny.pad_id).all()
    with pytest.raises(ValueError, match="cannot be mixed"):
        mix(tiny, nothing, [prepared[0], None], group_size=1)


def test_in_a_full_group_the_anchor_takes_the_last_rollouts_place(tiny):
    prepared, _ = prepare_anchors(tiny, [GOOD, GOOD], max_new_tokens=40)
    rollouts = sample_groups(tiny, [GOOD, GOOD], [4, 4], max_new_tokens=10)
    mixed = mix(tiny, rollouts, [prepared[0], None], group_size=4)
    assert mixed.texts == [*rollouts.texts[:3], GOOD.demo, *rollouts.texts[4:]]


def test_a_group_of_the_wrong_size_is_an_error(tiny):
    rollouts = sample_groups(tiny, [GOOD], [3], max_new_tokens=5)
    with pytest.raises(ValueError, match="cannot be mixed"):
        mix(tiny, rollouts, [None], group_size=4)

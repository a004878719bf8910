"""R and S of a step's rollouts: who is scored, and in which place of the group."""

from types import SimpleNamespace

import pytest
import torch

import scoring
from tasks import solve


def rollouts_of(*texts_of_each):
    """As much of Rollouts as scoring reads: two problems, the same number of responses to each."""
    texts = [text for texts in texts_of_each for text in texts]
    group = torch.tensor([b for b, texts in enumerate(texts_of_each) for _ in texts])
    problems, ended = [solve("12+5-3=", "2"), solve("1+1=", "1")], torch.ones(len(texts), dtype=torch.bool)
    return SimpleNamespace(problems=problems, group=group, texts=texts, ended=ended)


ROLLOUTS = rollouts_of(["12+5=17;17-3=14;#14", "#14", "#9"], ["#2", "1+1=2;#3", "1+1=2;#2"])


def test_rewards_and_scores_have_a_row_for_each_problem():
    assert scoring.rewards(ROLLOUTS).tolist() == [[1, 1, 0], [1, 0, 1]]
    assert scoring.scores(ROLLOUTS).tolist() == [[10, 4.5, 1], [4.5, 6.5, 10]]


def test_a_response_that_was_cut_off_is_right_only_if_its_answer_is_marked():
    rollouts = rollouts_of(["12+5=17;17-3=14", "12+5=17;17-3=14;#14"], ["1+1=2", "2"])
    assert scoring.rewards(rollouts).tolist() == [[1, 1], [1, 1]]
    rollouts.ended[:] = False
    assert scoring.rewards(rollouts).tolist() == [[0, 1], [0, 0]]


def test_a_scorer_gets_the_pairs_that_are_asked_for_and_no_others():
    asked = []

    def scorer(pairs):
        asked.extend(pairs)
        return [float(len(response)) for _, response in pairs]

    where = torch.tensor([[True, False, True], [False, False, False]])
    S = scoring.scores(ROLLOUTS, scorer, where)
    assert [(p.answer, response) for p, response in asked] == [("14", "12+5=17;17-3=14;#14"), ("14", "#9")]
    torch.testing.assert_close(S, torch.tensor([[19, torch.nan, 2], [torch.nan] * 3]), equal_nan=True)
    assert scoring.scores(ROLLOUTS, scorer, ~where | where).isnan().sum() == 0
    assert scoring.scores(ROLLOUTS, scorer, torch.zeros(2, 3, dtype=torch.bool)).isnan().all()


def test_scores_that_could_not_be_had_are_nan_and_a_scorer_that_loses_count_is_an_error():
    assert scoring.scores(ROLLOUTS, lambda pairs: [float("nan")] * len(pairs)).isnan().all()
    for count in (5, 7):
        with pytest.raises(ValueError):
            scoring.scores(ROLLOUTS, lambda pairs, count=count: [1.0] * count)

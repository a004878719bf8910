"""eval.py's figures: intervals that cover what they should, and pass@j against its definition."""

import itertools

import pytest
import torch

from eval import interval, pass_at, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (8, 10, 0.4902, 0.9433)],
)
def test_wilson_gives_the_known_intervals(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def width(right):
    low, high = interval(right.double())
    return high - low


def test_copies_of_a_response_tell_nothing_new():
    once = (torch.arange(40) % 4 == 0)[:, None]  # (n, 1), a quarter is right
    assert interval(once.double()) == pytest.approx(wilson(10, 40))
    assert interval(once.expand(40, 8).double()) == pytest.approx(wilson(10, 40))


def test_independent_responses_count_almost_as_problems_would():
    right = (torch.rand(400, 8, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    low, high = wilson(right.sum().item(), 3200)
    assert high - low <= width(right) < 1.2 * (high - low)


def test_alike_responses_lie_between_the_two():
    chance = torch.rand(400, 1, generator=torch.Generator().manual_seed(0))  # every problem has its own
    right = torch.rand(400, 8, generator=torch.Generator().manual_seed(1)) < chance
    share = right.double().mean().item()
    widths = [high - low for low, high in (wilson(share * n, n) for n in (3200, 400))]
    assert 1.2 * widths[0] < width(right) < 0.95 * widths[1]


def test_the_interval_covers_what_it_should():
    """Whole experiments, 300 of them: their intervals miss the true value (0.5) in about 5 %."""
    random = torch.Generator().manual_seed(0)
    missed = 0
    for _ in range(300):
        chance = torch.rand(60, 1, generator=random)
        low, high = interval((torch.rand(60, 4, generator=random) < chance).double())
        missed += not low <= 0.5 <= high
    assert 0.02 <= missed / 300 <= 0.08


def test_all_wrong_is_not_certain():
    assert interval(torch.zeros(100, 4).double()) == wilson(0, 100)


@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_j_is_the_share_of_choices_with_a_right_one(k):
    """Against all subsets of j of the k responses, of problems with 0, 1 ... k right ones."""
    right = (torch.arange(k) < torch.arange(k + 1)[:, None]).double()  # (k + 1, k)
    for j in range(1, k + 1):
        shares = [[any(row[i] for i in some) for some in itertools.combinations(range(k), j)] for row in right]
        expected = sum(sum(share) / len(share) for share in shares) / len(shares)
        assert pass_at(right, j) == pytest.approx(expected)
    assert pass_at(right, 1) == pytest.approx(right.mean().item())
    assert pass_at(right, k) == k / (k + 1)


def test_pass_at_j_is_unbiased():
    """Where each of 16 responses is right with chance 0.2, pass@4 is 1 - 0.8^4, not what plugging in c/k gives."""
    right = (torch.rand(20_000, 16, generator=torch.Generator().manual_seed(0)) < 0.2).double()
    naive = (1 - (1 - right.mean(dim=1)) ** 4).mean().item()
    assert pass_at(right, 4) == pytest.approx(1 - 0.8**4, abs=0.005)
    assert naive < 1 - 0.8**4 - 0.01

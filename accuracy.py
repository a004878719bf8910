"""From right and wrong to numbers: accuracies with 95 % intervals, and pass@j.

Everything here is a function of `right` (n, k): of n problems, which of their k responses are right, as 0.0 and 1.0.
Problems are the unit of the intervals, as another benchmark would have other problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Answers:
    """What one way of answering, greedy or sampled, came to on the problems of a level or of a benchmark."""

    accuracy: float  # of sampled responses: avg@k, the estimate of pass@1
    low: float  # 95 % interval of the accuracy
    high: float
    length: float  # mean tokens of a response, end token included
    ended: float  # share that came to its end token within max_new_tokens


def wilson(right: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a share: `right` of `n`. Unlike mean +- 1.96 sd it has a width at 0 and at n too.

    >>> [round(x, 3) for x in (*wilson(0, 10), *wilson(8, 10))]
    [0.0, 0.278, 0.49, 0.943]
    """
    z = 1.959964
    centre = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(right: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the accuracy, from right (n, k): Wilson's, for as many responses as these are worth.

    Problems are the unit, not responses: k responses to one problem are more or less right or wrong together, so they
    tell less of the next problem than k problems would. The spread of the problems' own means shows how much less: that
    of k independent responses would be p (1 - p) / k. So they are worth between n and n * k.
    """
    n, k = right.shape
    p, spread = right.mean().item(), right.mean(dim=1).var(correction=0).item()
    worth = n * min(max(p * (1 - p) / spread, 1.0), k) if spread > 0 else n  # no spread to judge by: the safe side
    return wilson(p * worth, worth)


def pass_at(right: torch.Tensor, j: int) -> float:
    """The chance that one of j responses is right, from right (n, k), k >= j: the mean of 1 - C(k-c, j) / C(k, j).

    c is how many of a problem's k responses are right. The fraction is the share of all choices of j of the k that
    holds no right one, so no j is wasted; the naive 1 - (1 - c/k)^j is too low (Chen et al. 2021, arXiv 2107.03374).

    >>> pass_at(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), 2)
    0.25
    """
    k = right.shape[1]
    wrong = (k - right.sum(dim=1)).long().tolist()  # n
    return sum(1 - math.comb(w, j) / math.comb(k, j) for w in wrong) / len(wrong)


def summarise(right: torch.Tensor, length: torch.Tensor, ended: torch.Tensor) -> Answers:
    """From (n, k) each."""
    accuracy, tokens, share = (values.mean().item() for values in (right, length, ended))
    return Answers(accuracy, *interval(right), tokens, share)

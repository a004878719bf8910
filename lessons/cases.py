"""The cases of lessons/check.py: inputs of each exercise, what must come out, and what common mistakes give instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, tensor

import dagrpo
from analysis.stats import t_interval
from eval import pass_at
from rollout import completion_mask, logp_and_entropy

R = tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])  # (B, G)
A = tensor([[0.5, 0.5, -0.5, -0.5], [0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [1, 1, 0, 0]])
S = tensor([[10.0, 4.5, 5.5, 1.0], [6.0, 3.0, 3.5, 1.0], [9, 9, 9, 9], [8, 2, 9, 1]])
BOOL = tensor([[True, True, False], [True, False, False]])


@dataclass(frozen=True)
class Case:
    """One call of an exercise. `mistakes`: what is wrong, in words -> the value that this mistake gives."""

    inputs: tuple[Any, ...]
    wanted: Any
    mistakes: dict[str, Any] = field(default_factory=dict)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=1, keepdim=True)


def group_advantages() -> Iterator[Case]:
    divided = "you divide by the standard deviation: leave that out here (lesson 2)"
    mistakes = {
        "this subtracts the mean of the whole batch; each row (group) has its own mean": R - R.mean(),
        divided: centred(R) / R.std(dim=1, keepdim=True),  # NaN where a group's rewards are equal
        f"{divided} ": centred(R) / (R.std(dim=1, keepdim=True) + 1e-8),
        f" {divided}": centred(R) / (R.std(dim=1, keepdim=True, correction=0) + 1e-8),
        f"{divided}, and its 1e-4": dagrpo.group_advantages(R, "group"),
        "the sign is flipped: better than the mean must be positive": -centred(R),
        "a mean was subtracted from each column, not each row: keepdim=True is missing": R - R.mean(dim=1),
        "this subtracts the mean of each column (dim 0); a group is a row (dim 1)": R - R.mean(dim=0),
    }
    yield Case((R,), dagrpo.group_advantages(R), mistakes)


def rectification_mask() -> Iterator[Case]:
    positive, negative = A > 0, A < 0
    wanted = dagrpo.rectification_mask(A, S, 3.0)

    def mask(best: Tensor, worst: Tensor) -> Tensor:
        return (positive & (S - best >= 3)) | (negative & (worst - S >= 3))

    def bars(fill: float = math.inf, rows: Tensor = A != 0) -> tuple[Tensor, Tensor]:
        best = S.masked_fill(~(negative & rows), -fill).amax(1, True)
        return best, S.masked_fill(~(positive & rows), fill).amin(1, True)

    worst_negative = S.masked_fill(~negative, math.inf).amin(1, True)
    best_positive = S.masked_fill(~positive, -math.inf).amax(1, True)
    mistakes = {
        "each response is compared with its own side; it must be compared with the other one": mask(*bars()[::-1]),
        "you compare with the worst negative and the best positive; it is the other way round": mask(
            worst_negative, best_positive
        ),
        "the bars must count all positives and negatives, also those that do not stay": mask(*bars(rows=wanted)),
        "an empty side must set no bar: fill with -inf and inf": mask(*bars(fill=0.0)),
        "each row has bars of its own; these are over the whole batch": mask(bars()[0].max(), bars()[1].min()),
        "a gap of exactly delta is enough: >=, not >": dagrpo.rectification_mask(A, S, 3.001),
        "responses with A = 0 never stay": wanted | (A == 0),
        "this is True where a response is masked; True must mean that it stays": ~wanted,
    }
    yield Case((A, S, 3.0), wanted, mistakes)
    yield Case((A, S, 0.0), dagrpo.rectification_mask(A, S, 0.0))


def leave_one_out() -> Iterator[Case]:
    mistakes = {
        "this is the mean of all G; a response is compared with the others alone": centred(R),
        "the mean of the others divides by G - 1": R - (R.sum(1, True) - R) / 4,
    }
    yield Case((R,), dagrpo.group_advantages(R, baseline="leave_one_out"), mistakes)


def clipped_objective() -> Iterator[Case]:
    ratio, advantage = tensor([[1.0, 1.5, 0.5]] * 2), tensor([[2.0], [-2.0]]).expand(2, 3)
    bounded = ratio.clamp(0.8, 1.2)
    clamped, product = bounded * advantage, ratio * advantage
    mistakes = {
        "the ratio is clipped and no more; at ratio 0.5 and A > 0 the gradient must stay: take the minimum": clamped,
        "this is the larger of the two; the smaller one is wanted, for both signs of A": product.maximum(clamped),
        "for A < 0 the minimum must be of the products, not of the ratios": torch.minimum(ratio, bounded) * advantage,
        "nothing is clipped; low and high bound the ratio as they are (did you add them to 1?)": product,
        "the objective is maximised: no minus sign": -torch.minimum(product, clamped),
    }
    yield Case((ratio, advantage, 0.8, 1.2), torch.minimum(product, clamped), mistakes)


def k3() -> Iterator[Case]:
    logp, ref = tensor([[-1.0, -0.1, -2.0]]), tensor([[-1.0, -1.5, -0.5]])
    mistakes = {
        "this is k1, -log r: right on average, but negative for some tokens": logp - ref,
        "this is k2, half the square of the log-ratio": (ref - logp).square() / 2,
        "r is pi_ref / pi; this is the other way round": (logp - ref).expm1() - (logp - ref),
    }
    yield Case((logp, ref), (ref - logp).expm1() - (ref - logp), mistakes)


def micro_batch_loss() -> Iterator[Case]:
    objective = tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    mistakes = {
        "the sign: a loss is minimised, an objective maximised": tensor(7 / 40),
        "tokens outside the mask must not count": tensor(-34 / 40),
        "the divisor counts this micro-batch's rows; the parts add up only if it counts the update's": tensor(-7 / 20),
        "this divides by this micro-batch's width T, which depends on the cut: use max_new_tokens": tensor(-7 / 12),
        "this is a token mean of the micro-batch: the update would depend on how it is cut": tensor(-7 / 3),
    }
    yield Case((objective, BOOL, 4, 10), tensor(-7 / 40), mistakes)
    yield Case((objective[:1], BOOL[:1], 4, 10), tensor(-3 / 40))


def mask_of_tokens() -> Iterator[Case]:
    tokens = tensor([[5, 2, 2, 2], [5, 6, 7, 8], [2, 5, 2, 5]])
    wanted, is_end = completion_mask(tokens, [2])[0], tokens == 2
    mistakes = {
        "the end token itself is left out: then stopping is never trained": wanted & ~is_end,
        "only the end tokens are masked; what comes after the first one must not count either": ~is_end,
        "a row without an end token counts whole (argmax is 0 there)": torch.arange(4) <= is_end.int().argmax(1, True),
        "what comes after the first end token must be False": is_end.cumsum(1) <= 1,
        "this masks what comes before the end; True is for tokens that count": ~wanted,
    }
    yield Case((tokens, 2), wanted, mistakes)


def maxrl_advantages() -> Iterator[Case]:
    mean = R.mean(dim=1, keepdim=True)
    mistakes = {
        "a group with no right response gives 0 / 0; it must be 0": centred(R) / mean,
        "the divisor is the mean of the rewards, not their spread": dagrpo.group_advantages(R, "group"),
        "this is not divided by the mean": centred(R),
        "the sign is flipped": -dagrpo.group_advantages(R, "mean"),
    }
    yield Case((R,), dagrpo.group_advantages(R, "mean"), mistakes)


def entropy() -> Iterator[Case]:
    logits = tensor([[[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -math.inf, -math.inf], [500.0, 0.0, 0.0, 0.0]]])
    wanted = logp_and_entropy(logits, torch.zeros(1, 3, dtype=torch.long), 1.0)[1]
    p = logits.softmax(-1)
    mistakes = {
        "0 * -inf is NaN: a token of probability 0 must add 0": -(p * p.log()).sum(-1),
        "this is in bits; use the natural logarithm, for nats": wanted / math.log(2),
        "the sign: an entropy is never below 0": -wanted,
    }
    yield Case((logits,), wanted, mistakes)


def pass_at_k() -> Iterator[Case]:
    right, n, k = [0, 1, 4], 4, 2
    rows = tensor([[1.0] * c + [0.0] * (n - c) for c in right])
    too_low = sum(1 - (1 - c / n) ** k for c in right) / 3
    mistakes = {
        "this is 1 - (1 - c/n)^k, which is too low: it can draw the same response twice": too_low,
        "this is pass@1": sum(right) / 12,
        "this is the sum over problems, not their mean": 3 * pass_at(rows, k),
    }
    yield Case((right, n, k), pass_at(rows, k), mistakes)
    yield Case((right, n, 4), pass_at(rows, 4))


def paired_interval() -> Iterator[Case]:
    a, b = [0.50, 0.62, 0.41, 0.58, 0.55], [0.45, 0.60, 0.37, 0.50, 0.54]
    mean, half = (float(x) for x in t_interval(np.subtract(a, b)))
    t, spread = stats.t.ppf(0.975, 4), math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 5)
    mistakes = {
        "this is the interval of two independent groups; the same seeds make pairs, so take differences first": (
            mean,
            stats.t.ppf(0.975, 8) * spread,
        ),
        "1.96 is the normal distribution's quantile; with 5 seeds it is t's, 2.78": (mean, half * 1.959964 / t),
        "0.95 leaves 5 % on one side; two-sided needs 0.975": (mean, half * stats.t.ppf(0.95, 4) / t),
        "the standard deviation divides by n - 1: ddof=1": (mean, half * math.sqrt(4 / 5)),
        "this is the spread of single differences; that of their mean is smaller by sqrt(n)": (
            mean,
            half * math.sqrt(5),
        ),
        "this is the full width; half of it is wanted": (mean, 2 * half),
        "these are the ends; return the mean and the half-width": (mean - half, mean + half),
    }
    yield Case((a, b), (mean, half), mistakes)


def random_mask(function: Callable) -> str:
    """What is wrong with a random mask, "" if nothing is. It has no single right value, so it is not a Case."""
    keep = tensor([[True, False, False, True, False, False], [True, True, True, True, False, False]])
    signs = tensor([[1.0, 1, 1, -1, -1, 0], [1, 1, -1, -1, -1, 0]])
    drawn = [function(keep, signs, torch.Generator().manual_seed(seed)) for seed in range(40)]
    if any(not isinstance(x, Tensor) or x.shape != keep.shape or x.dtype != torch.bool for x in drawn):
        return "it must return a bool tensor of the shape of `keep`"
    again = function(keep, signs, torch.Generator().manual_seed(0))
    if not torch.equal(again, drawn[0]):
        return "the same generator gave two masks: draw only from the generator that is passed in"
    for x in drawn:
        for side, name in ((signs > 0, "positives"), (signs < 0, "negatives")):
            stay, wanted = ((mask & side).sum(1).tolist() for mask in (x, keep))
            if stay != wanted:
                return f"{stay} of the {name} stay in the two groups, not {wanted}"
        if (x & (signs == 0)).any():
            return "a response with A = 0 stays: it has no side"
    if all(torch.equal(x, keep) for x in drawn):
        return "this is always the mask that was handed in: which ones stay must be random"
    often = torch.stack(drawn).float().mean(0)[0, :3]
    return "" if often.min() > 0.1 else f"one of the first group's positives hardly ever stays: {often.tolist()}"


CASES = {
    "group_advantages": group_advantages,
    "rectification_mask": rectification_mask,
    "leave_one_out": leave_one_out,
    "clipped_objective": clipped_objective,
    "k3": k3,
    "micro_batch_loss": micro_batch_loss,
    "completion_mask": mask_of_tokens,
    "maxrl_advantages": maxrl_advantages,
    "entropy": entropy,
    "pass_at_k": pass_at_k,
    "random_mask": None,
    "paired_interval": paired_interval,
}

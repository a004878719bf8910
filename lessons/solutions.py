"""Short solutions of lessons/exercises.py. There are others: `python -m lessons.check` takes any that is right."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor


def group_advantages(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)


def rectification_mask(advantages: Tensor, scores: Tensor, delta: float) -> Tensor:
    positive, negative = advantages > 0, advantages < 0
    best_negative = scores.where(negative, -math.inf).amax(dim=1, keepdim=True)
    worst_positive = scores.where(positive, math.inf).amin(dim=1, keepdim=True)
    return (positive & (scores - best_negative >= delta)) | (negative & (worst_positive - scores >= delta))


def leave_one_out(rewards: Tensor) -> Tensor:
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def clipped_objective(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    d = logp_ref - logp
    return d.exp() - d - 1


def micro_batch_loss(objective: Tensor, mask: Tensor, rows_of_update: int, max_new_tokens: int) -> Tensor:
    return -(objective * mask).sum() / (rows_of_update * max_new_tokens)


def completion_mask(tokens: Tensor, end_id: int) -> Tensor:
    is_end = tokens == end_id
    return is_end.cumsum(dim=1) - is_end.int() == 0


def maxrl_advantages(rewards: Tensor) -> Tensor:
    mean = rewards.mean(dim=1, keepdim=True)
    return (rewards - mean) / mean.where(mean > 0, 1.0)


def entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(dim=-1)
    return -(logp.exp() * logp).nan_to_num(0.0).sum(dim=-1)


def pass_at_k(right: list[int], samples: int, k: int) -> float:
    return sum(1 - math.comb(samples - c, k) / math.comb(samples, k) for c in right) / len(right)


def random_mask(keep: Tensor, advantages: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.zeros_like(keep)
    for b in range(len(keep)):
        for side in (advantages[b] > 0, advantages[b] < 0):
            rows = side.nonzero().flatten()
            chosen = torch.randperm(len(rows), generator=generator)[: int((keep[b] & side).sum())]
            drawn[b, rows[chosen]] = True
    return drawn


def paired_interval(a: list[float], b: list[float]) -> tuple[float, float]:
    gaps, n = np.subtract(a, b), len(a)
    return gaps.mean(), stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / math.sqrt(n)

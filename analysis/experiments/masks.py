"""Two other ways to use the scores than the mask of Eq. 8-9, which keeps or drops whole responses.

Eq. 8-9 compare each response with one opponent: the best negative, or the worst positive. So one outlier, such as a
lucky guess with a low score, decides about the whole other side; and the kept advantages no longer add up to 0.

    pairs    A is a mean over pairs, A_i = 1/G sum_j (R_i - R_j). Here a pair counts only if its scores are at least
             delta apart, in the direction of R. A still adds up to 0, and an outlier spoils only its own pairs.
    soft     A_i times a sigmoid of (gap to that opponent - delta): half at delta, and nothing is dropped

Both give advantages (B, G) from R and S (B, G); A = 0 where a score of the group is missing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

import dagrpo
from rollout import Groups


def pairs(R: Tensor, S: Tensor, delta: float = 3.0) -> Tensor:
    """
    >>> R, S = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[10.0, 4.5, 5.5, 1.0]])
    >>> pairs(R, S)  # the lucky guess, S = 4.5, is compared with 1, not with 5.5
    tensor([[ 0.5000,  0.2500, -0.2500, -0.5000]])
    """
    differ = R[:, :, None] - R[:, None]  # (B, G, G)
    gap = (S[:, :, None] - S[:, None]) * differ.sign()
    return (differ * (gap >= delta)).mean(dim=2).nan_to_num(0.0) * known(S)


def soft(R: Tensor, S: Tensor, delta: float = 3.0) -> Tensor:
    A = dagrpo.group_advantages(R)
    best_negative = S.masked_fill(A >= 0, -torch.inf).amax(dim=1, keepdim=True)
    worst_positive = S.masked_fill(A <= 0, torch.inf).amin(dim=1, keepdim=True)
    gap = torch.where(A > 0, S - best_negative, worst_positive - S)  # (B, G)
    return (A * torch.sigmoid(gap - delta)).nan_to_num(0.0) * known(S)


def known(S: Tensor) -> Tensor:
    """Does the group have all its scores? (B, 1)"""
    return ~S.isnan().any(dim=1, keepdim=True)


MASKS = {"pairs": pairs, "soft": soft}


def other_mask(groups: Groups, kind: str, delta: float = 3.0) -> Groups:
    """The groups with these advantages; rows with A != 0 are kept. A control of controls.py, for dr_grpo."""
    A = MASKS[kind](groups.rewards, groups.scores, delta)
    return replace(groups, advantages=A, distinct=A != 0, keep=A != 0)

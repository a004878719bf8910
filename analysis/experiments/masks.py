"""Other ways to spend what the scores say than the mask of Eq. 8-9, which keeps or drops whole responses.

Eq. 8-9 compare each response with the *worst* opponent, so that one outlier, a lucky guess with a low score, decides
about the whole other side; and the advantages that are kept do not add up to 0 any more.

    pairs    A is a mean over pairs, A_i = 1/G sum_j (R_i - R_j). Here only pairs count whose scores are at least delta
             apart, in the direction of R. It adds up to 0, and an outlier spoils its own pairs alone.
    soft     A_i times a sigmoid of (gap to the worst opponent - delta): half at delta, nothing dropped at once

Both are advantages, (B, G) from R and S (B, G); A = 0 where a score of the group is missing.
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
    >>> pairs(R, S)  # the lucky 4.5 counts against 1, not against 5.5
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
    """(B, 1): has the group all its scores?"""
    return ~S.isnan().any(dim=1, keepdim=True)


MASKS = {"pairs": pairs, "soft": soft}


def other_mask(groups: Groups, kind: str, delta: float = 3.0) -> Groups:
    """The groups with these advantages, every row kept that has one: a control of controls.py, for dr_grpo."""
    A = MASKS[kind](groups.rewards, groups.scores, delta)
    return replace(groups, advantages=A, distinct=A != 0, keep=A != 0)

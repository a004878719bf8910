"""SFT as two bugs make it, which 2604.23747 found in the libraries behind the baselines of mixed-policy methods.

Both go with micro-batches: MICRO demonstrations at a time, whose gradients are to add up to the whole batch's.

    lost     only the last micro-batch of a batch reaches the optimiser
    means    each micro-batch's loss is a mean over its own tokens, and the batch's the mean of these means: a token of
             a micro-batch of short demonstrations weighs more than one of long ones

A control of controls.py, for sft. Groups have one row there (G = 1), with A = 1, and the divisor counts the tokens of
the whole update, so that a row's weight can be changed by its A.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rollout import Groups

MICRO = 4  # demonstrations; a batch of the experiments has 16
BUGS = ("lost", "means")


def sft_bug(groups: Groups, kind: str) -> Groups:
    """The groups (B, 1) with what the bug makes of their rows."""
    tokens = groups.rollouts.mask.sum(dim=1).cpu().float()  # (B,)
    micro = torch.arange(len(tokens)) // MICRO  # (B,)  which micro-batch a row is in
    if kind == "lost":
        return replace(groups, keep=groups.keep & (micro == micro.max())[:, None])
    sums = torch.zeros(int(micro.max()) + 1).index_add(0, micro, tokens)  # tokens of each of the K micro-batches, (K,)
    weight = sums.mean() / sums[micro]  # (B,)  1 / (K * its tokens), where it should be 1 / (all tokens)
    return replace(groups, advantages=groups.advantages * weight[:, None])

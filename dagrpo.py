"""DaGRPO and its neighbours: tensors in, tensors out. This file needs torch alone and can be copied as it is.

Implements, of the DaGRPO paper (arXiv 2512.06337):
    Eq. 1, 12    group_advantages      how much better a response is than its group
    Eq. 8, 9     rectification_mask    drop responses that are not clearly better, or worse, than the other side
    Eq. 2, 10-13 policy_loss           one loss for every recipe of METHODS
and, of the papers named in METHODS, what each recipe does otherwise. A recipe is data: to make a variant, add a line
to METHODS. Where the papers are silent, or we depart from them:
  1. Eq. 10/13 divide by |o|, Section 6 says "no length normalisation". The recipe says which: `divisor`.
  2. A whole group of equal rewards gets A = 0 exactly, not a rounding error over a tiny standard deviation.
  3. The KL term (0 unless asked for) covers rollouts only: its estimator is an expectation over the policy's own
     samples, and an anchor is not one.
  4. LUFFY's entropy bonus goes through the recipe's divisor like every other token term.
  5. GTPO's entropies are the sampling policy's, and they carry no gradient: they shape the advantage.
  6. SFT on the demonstrations is a recipe too: a group is its demonstration alone, with A = 1.

Letters: B prompts, G responses per prompt, N = B*G rows, T completion tokens. Row n belongs to group n // G.

    python dagrpo.py    one group of eight under every recipe: advantages, what is kept and why, the push on each token
                        (the page is analysis/eight.py)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

INF = float("inf")


@dataclass(frozen=True)
class Recipe:
    """A method as a list of independent choices. The defaults are Dr. GRPO's."""

    paper: str
    rollouts: bool = True  # False: a group is its demonstration alone, and nothing is sampled (SFT)
    baseline: Literal["mean", "leave_one_out", "constant"] = "mean"  # what a reward is compared with; constant: A = 1
    scale: Literal["none", "group"] = "none"  # what the difference is divided by
    ratio: Literal["token", "sequence", "detached", "one"] = "token"  # importance ratio of a rollout's tokens
    clip: tuple[float, float] = (1 - 0.2, 1 + 0.2)  # smallest and largest ratio that still gets a gradient
    divisor: Literal["constant", "sequence", "tokens"] = "constant"  # how token terms become one number
    rectify: bool = False  # DaGRPO's mechanism 1, Eq. 8-9
    anchors: bool = False  # DaGRPO's mechanism 2, Eq. 11: a demonstration takes one place of the group
    anchor_ratio: Literal["one", "shaped", "log"] = "one"  # Eq. 13 writes none; LUFFY: p / (p + 0.1); SFT: log p
    entropy_bonus: float = 0.0  # added to the objective, with gradient
    entropy_penalty: float = 0.0  # taken off the advantage, without
    entropy_limit: float = INF  # rows whose mean entropy is above it are left out
    conflict_tokens: bool = False  # GTPO: shared tokens count double in positives, not at all in negatives
    resample_rounds: int = 0  # DAPO: a group of equal rewards is sampled again, at most so often


METHODS = {
    "grpo": Recipe("arXiv 2402.03300", scale="group", divisor="sequence"),
    "dr_grpo": Recipe("arXiv 2503.20783"),
    "dapo": Recipe("arXiv 2503.14476", scale="group", clip=(1 - 0.2, 1 + 0.28), divisor="tokens", resample_rounds=3),
    "gspo": Recipe("arXiv 2507.18071", scale="group", ratio="sequence", clip=(1 - 3e-4, 1 + 4e-4), divisor="sequence"),
    "cispo": Recipe("arXiv 2506.13585", scale="group", ratio="detached", clip=(0.0, 5.0), divisor="tokens"),
    "rloo": Recipe("arXiv 2402.14740", baseline="leave_one_out", ratio="one", clip=(0.0, INF)),
    "gtpo": Recipe(
        "arXiv 2508.03772",
        clip=(0.0, INF),
        divisor="sequence",
        conflict_tokens=True,
        entropy_penalty=0.1,
        entropy_limit=math.log(2),
    ),
    "luffy": Recipe("arXiv 2504.14945", clip=(0.0, INF), anchors=True, anchor_ratio="shaped", entropy_bonus=0.001),
    "sft": Recipe("", rollouts=False, baseline="constant", divisor="tokens", anchors=True, anchor_ratio="log"),
    "dagrpo_on": Recipe("arXiv 2512.06337, without anchors", rectify=True),
    "dagrpo": Recipe("arXiv 2512.06337", rectify=True, anchors=True),
}


@dataclass(frozen=True)
class Update:
    """All that the loss reads about the N rows of one optimiser update, apart from the log-probs being trained.

    It is built once for the whole update, divisor included, and then cut into micro-batches by `rows`: this is why
    the loss cannot depend on the micro-batch.
    """

    advantages: Tensor  # (N,)    A, Eq. 1/12
    keep: Tensor  # (N,)    bool, Eq. 8-9 (all True for recipes without a sequence mask)
    mask: Tensor  # (N, T)  bool, True on completion tokens up to and including the first end token
    weight: Tensor  # (N, T)  1 / divisor, times GTPO's token weight
    logp_old: Tensor  # (N, T)  log-probs under the policy that sampled; not read on anchors' rows
    is_anchor: Tensor  # (N,)    bool
    logp_ref: Tensor | None = None  # (N, T)  log-probs under the reference, if there is a KL term

    def rows(self, index: Tensor) -> Update:
        """The same update's rows `index`, cut to t, the longest completion among them; nothing is recomputed."""
        t = int(self.mask[index].sum(dim=1).max())
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {name: x if x is None else x[index] for name, x in parts.items()}
        return Update(**{name: x if x is None or x.dim() == 1 else x[:, :t] for name, x in parts.items()})


# ---------------------------------------------------------------------------------------- advantages and masks


def group_advantages(rewards: Tensor, scale: str = "none", baseline: str = "mean") -> Tensor:
    """Eq. 1 and 12: advantages (B, G) of rewards (B, G); the group holds its anchors, if it has any.

    `scale="group"` divides by the unbiased std plus 1e-4. `baseline="leave_one_out"` compares with the mean of the
    others (RLOO). Groups of equal rewards get exact zeros. `baseline="constant"` reads no reward: A = 1 (SFT). Raises
    ValueError for an unknown choice, and for G < 2 where rewards are compared.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    if scale not in ("none", "group") or baseline not in ("mean", "leave_one_out", "constant"):
        raise ValueError(f"unknown scale {scale!r} or baseline {baseline!r}")
    if baseline == "constant":
        return torch.ones_like(rewards)
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be (B, G) with G >= 2, not {tuple(rewards.shape)}")
    groups = rewards.shape[1]
    advantages = rewards - rewards.mean(dim=1, keepdim=True)  # (B, G)
    if baseline == "leave_one_out":
        advantages = advantages * groups / (groups - 1)  # R - mean of the others = (R - mean) * G / (G - 1)
    if scale == "group":
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 1e-4)
    no_signal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)  # (B, 1)
    return advantages.masked_fill(no_signal, 0.0)


def rectification_mask(advantages: Tensor, scores: Tensor, delta: float = 3.0) -> Tensor:
    """Eq. 8-9: which responses are distinct enough to learn from, bool (B, G), True = keep.

    A positive (A > 0) stays if its score S is at least `delta` above the best negative's, a negative (A < 0) if its
    score is at least `delta` below the worst positive's. A = 0 is on neither side and is never kept. Against an empty
    side everything is distinct (a maximum over nothing is minus infinity). A NaN score (not to be had) on a response
    with A != 0 masks its whole group; on one with A = 0 it is not read. Raises ValueError for delta < 0.

    >>> A, S = torch.tensor([[0.5, 0.5, -0.5, -0.5]]), torch.tensor([[10.0, 4.5, 5.5, 1.0]])
    >>> rectification_mask(A, S, delta=3.0)
    tensor([[ True, False, False,  True]])
    """
    if delta < 0 or math.isnan(delta):
        raise ValueError(f"delta must be >= 0, not {delta}")
    if advantages.shape != scores.shape or advantages.dim() != 2:
        raise ValueError(f"advantages {tuple(advantages.shape)} and scores {tuple(scores.shape)} must both be (B, G)")
    positive, negative = advantages > 0, advantages < 0  # (B, G)  G+ and G-
    best_negative = scores.masked_fill(~negative, -INF).amax(dim=1, keepdim=True)  # (B, 1)
    worst_positive = scores.masked_fill(~positive, INF).amin(dim=1, keepdim=True)  # (B, 1)
    keep = (positive & (scores - best_negative >= delta)) | (negative & (worst_positive - scores >= delta))
    unscored = ((positive | negative) & scores.isnan()).any(dim=1, keepdim=True)  # (B, 1)
    return keep & ~unscored


def conflict_weights(advantages: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """GTPO's token weights (N, T) from advantages (B, G), tokens (N, T) and their mask (N, T).

    A token is in conflict if a positive and a negative response of its group share it at its position, and share all
    tokens before it (positions counted from the start) or all after it (counted from the end). It weighs 2 in
    positives and 0 in negatives; every other token weighs 1.
    """
    shape = (*advantages.shape, tokens.shape[1])
    tokens, mask = tokens.view(shape), mask.view(shape)  # (B, G, T)
    length = mask.sum(dim=2, keepdim=True)  # (B, G, 1)
    mirror = (length - 1 - torch.arange(shape[2], device=tokens.device)) % shape[2]  # (B, G, T) its own inverse
    from_start = _shared_run(advantages, tokens, mask)
    from_end = _shared_run(advantages, tokens.gather(2, mirror), mask).gather(2, mirror)
    conflict = from_start | from_end  # (B, G, T)
    weights = torch.ones(shape, device=tokens.device)
    weights[conflict & (advantages > 0)[:, :, None]] = 2.0
    weights[conflict & (advantages < 0)[:, :, None]] = 0.0
    return weights.flatten(0, 1)


def _shared_run(advantages: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The unbroken run from position 0 of tokens that a positive and a negative row share there, bool (B, G, T)."""
    same = (tokens[:, :, None] == tokens[:, None]) & mask[:, :, None] & mask[:, None]  # (B, G, G, T) row, other, token
    in_positive = (same & (advantages > 0)[:, None, :, None]).any(dim=2)  # (B, G, T)
    in_negative = (same & (advantages < 0)[:, None, :, None]).any(dim=2)
    return (in_positive & in_negative).cumprod(dim=2).bool()


# ---------------------------------------------------------------------------------------- the loss


def divisor_weights(mask: Tensor, divisor: str, max_new_tokens: int) -> Tensor:
    """What each token term is multiplied by, (N, T), from the mask (N, T) of all rows of one update.

    constant: 1 / (N * max_new_tokens), Dr. GRPO. sequence: the token mean of each row, then the mean over rows, Eq. 2.
    tokens: 1 / all completion tokens of the update, DAPO. Masked and no-signal rows count in N: Eq. 10's 1/G stays.
    """
    if divisor == "constant":
        return mask / (len(mask) * max_new_tokens)
    if divisor == "sequence":
        return mask / (len(mask) * mask.sum(dim=1, keepdim=True).clamp(min=1))
    if divisor == "tokens":
        return mask / mask.sum().clamp(min=1)
    raise ValueError(f"unknown divisor {divisor!r}")


def build_update(
    recipe: Recipe,
    advantages: Tensor,  # (B, G)
    keep: Tensor,  # (B, G) bool
    tokens: Tensor,  # (N, T)
    mask: Tensor,  # (N, T) bool
    logp_old: Tensor,  # (N, T)
    entropy_old: Tensor,  # (N, T) of the sampling policy; read by GTPO alone
    is_anchor: Tensor,  # (N,) bool
    max_new_tokens: int,
    start_entropy: float = INF,  # mean entropy of the starting policy; read by GTPO alone
    logp_ref: Tensor | None = None,  # (N, T)
) -> Update:
    """Everything about one optimiser update that does not change while its micro-batches run."""
    weight = divisor_weights(mask, recipe.divisor, max_new_tokens)  # (N, T)
    if recipe.conflict_tokens:
        weight = weight * conflict_weights(advantages, tokens, mask)
    advantages, keep = advantages.flatten(), keep.flatten()  # (N,)
    if recipe.entropy_penalty or recipe.entropy_limit < INF:
        row_entropy = (entropy_old * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (N,)
        advantages = advantages - recipe.entropy_penalty * row_entropy
        if start_entropy < recipe.entropy_limit:  # a policy that starts above the limit would lose every row
            keep = keep & (row_entropy <= recipe.entropy_limit)
    return Update(advantages, keep, mask, weight, logp_old, is_anchor, logp_ref)


def surrogate(logp: Tensor, update: Update, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Ratio times advantage, clipped as the recipe says: (N, T), and which tokens the clip deprives, bool (N, T).

    `logp` (N, T) are the log-probs being trained. At ratio 1 the gradient of each term is A * grad log pi (Eq. 4).
    """
    advantage = update.advantages[:, None]  # (N, 1)
    # pads and anchors have no sampling log-prob: with a ratio of 1, their NaN never enters
    sampled = update.mask & ~update.is_anchor[:, None]  # (N, T)
    log_ratio = torch.where(sampled, logp - update.logp_old, 0.0)  # (N, T)
    unit = (logp - logp.detach()).exp()  # its value is 1, its gradient that of log pi
    low, high = recipe.clip
    if recipe.ratio == "one":
        ratio = unit
    elif recipe.ratio == "sequence":  # GSPO: the geometric mean of the row's ratios
        ratio = (log_ratio.sum(dim=1, keepdim=True) / update.mask.sum(dim=1, keepdim=True).clamp(min=1)).exp()  # (N, 1)
    else:
        ratio = log_ratio.exp()
    if recipe.ratio == "detached":  # CISPO: the ratio is a bounded weight, and no token loses its gradient
        objective = ratio.detach().clamp(low, high) * advantage * logp
        clipped = ratio > high
    else:  # Eq. 2. min, for both signs of A: it never rewards going past the clip, and always punishes coming from it
        objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
        clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    if recipe.anchors:
        probability = logp.exp()
        shaped = probability / (probability + 0.1)  # LUFFY: unlikely tokens are pushed hardest
        anchor_ratio = {"one": unit, "shaped": shaped, "log": logp}[recipe.anchor_ratio]  # Eq. 13 writes no ratio: 1
        objective = torch.where(update.is_anchor[:, None], anchor_ratio * advantage, objective)
    return objective.expand_as(logp), clipped.expand_as(logp) & sampled & update.keep[:, None]


def policy_loss(
    logp: Tensor, update: Update, recipe: Recipe, entropy: Tensor | None = None, kl_beta: float = 0.0
) -> Tensor:
    """Eq. 13 and its neighbours: the loss () of these rows; over the rows of an update, micro-batch losses add up.

    `logp` (N, T): log-probs of the completion tokens, with gradient. `entropy` (N, T), with gradient, is read only if
    the recipe has an entropy bonus. Do not watch the value: with one update per batch all ratios are 1, advantages
    are centred, and the loss is about 0 while its gradient is not. Watch the reward.
    """
    objective, _ = surrogate(logp, update, recipe)  # (N, T)
    objective = torch.where(update.keep[:, None], objective, 0.0)  # Eq. 10: the mask; N in the divisor stays
    if recipe.entropy_bonus:
        objective = objective + recipe.entropy_bonus * entropy
    if kl_beta:
        objective = objective - kl_beta * torch.where(update.is_anchor[:, None], 0.0, kl_k3(logp, update.logp_ref))
    return -torch.where(update.mask, objective * update.weight, 0.0).sum()


def kl_k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """The k3 estimate of KL(pi || pi_ref) per token, (N, T): >= 0, and unbiased on the policy's own samples."""
    log_ratio = logp_ref - logp
    return log_ratio.exp() - log_ratio - 1


def signal_rows(update: Update, recipe: Recipe, kl_beta: float = 0.0) -> Tensor:
    """Which rows can have a gradient at all, bool (N,): the others need no forward pass, and no gradient changes."""
    signal = update.keep & (update.advantages != 0)
    if recipe.entropy_bonus:
        signal = torch.ones_like(signal)
    return signal | ~update.is_anchor if kl_beta else signal


if __name__ == "__main__":
    import runpy  # the page has a room of its own: this file needs torch alone, and can be copied as it is

    runpy.run_module("analysis.eight", run_name="__main__")

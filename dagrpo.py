"""DaGRPO and its neighbours: tensors in, tensors out. This file needs torch alone and can be copied as it is.

Of the DaGRPO paper (arXiv 2512.06337), group_advantages is Eq. 1 and 12, rectification_mask Eq. 8-9, and policy_loss
Eq. 2 and 10-13: one loss for every recipe of METHODS. A recipe is data: to make a variant, add a line to METHODS.
docs/methods.md teaches them one by one. Where the papers are silent, or we depart from them:
  1. A group of equal rewards gets A = 0 exactly, not a rounding error over a tiny standard deviation.
  2. The KL term (0 unless asked for) covers rollouts only: it is a mean over the policy's own samples.
  3. LUFFY's entropy bonus goes through the divisor. Entropies that choose or weigh tokens carry no gradient.

Letters: B prompts, G responses per prompt, N = B*G rows, T completion tokens. Row n belongs to group n // G.

    python dagrpo.py    two groups of eight under a few recipes: what is kept and why, and the push on each token
"""

from __future__ import annotations

import runpy
from dataclasses import dataclass, replace
from math import exp, inf, log
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """A method as a list of independent choices. The defaults are Dr. GRPO's."""

    paper: str
    scale: Literal["none", "group", "mean", "batch", "batch_centred"] = "none"  # what R - baseline is divided by
    ratio: Literal["token", "sequence", "geometric", "soft", "detached", "one"] = "token"  # pi / pi_old of rollouts
    divisor: Literal["constant", "sequence", "tokens"] = "constant"  # Eq. 10 divides by |o|, Section 6 does not
    clip: tuple[float, ...] = (0.8, 1.2)  # lower and upper bound of the ratio; a third: the upper bound for A < 0
    trust: tuple[str, float] | None = None  # DPPO, instead of a clip: a token's "tv" or "kl", and its limit
    rollouts: bool = True  # False: a group is its demonstration alone, and nothing is sampled (SFT)
    baseline: Literal["mean", "leave_one_out", "none", "constant"] = "mean"  # what R is compared with; constant: A = 1
    rectify: bool = False  # DaGRPO's mechanism 1, Eq. 8-9
    soft_mask: bool = False  # weights in place of that mask; not the paper's
    anchors: bool = False  # DaGRPO's mechanism 2, Eq. 11: a demonstration takes one place of the group
    anchor_ratio: Literal["one", "shaped", "log", "phi"] = "one"  # Eq. 13 writes none: 1; LUFFY, SFT, CHORD: surrogate
    mu: float | None = None  # anchors stay outside Eq. 12: A = 1, and the loss is (1 - mu) rollouts + mu anchors
    gate: int | None = None  # HPT: an anchor only in groups with at most this many right rollouts
    entropy_bonus: float = 0.0  # added to the objective, with gradient
    entropy_penalty: float = 0.0  # subtracted from the advantage, without gradient
    entropy_limit: float = inf  # rows whose mean entropy is above it are left out
    top_entropy: float = 1.0  # only this share of the update's tokens counts, those of highest entropy
    stale_limit: float = inf  # rows with A < 0 whose mean log-prob has fallen by more are left out
    conflict_tokens: bool = False  # GTPO: shared tokens count double in positives, not at all in negatives
    resample_rounds: int = 0  # DAPO: a group of equal rewards is sampled again, at most this often
    kl: Literal["k1", "k2", "k3", "k3_ratio"] = "k3"  # how KL is estimated, if there is a KL term


# A comment says where a line's numbers come from: the authors' text (paper) or code (script). The usual clip is 0.2.
# fmt: off
METHODS = {
    # 1. Advantages           paper         scale            ratio        divisor     clip, and what else it has
    "reinforce": Recipe("Williams 1992", "none",          "token",     "constant", (0.8, 1.2), baseline="none"),
    "rloo":         Recipe("2402.14740", "none",          "one",       "constant", (0, inf), baseline="leave_one_out"),
    "grpo":         Recipe("2402.03300", "group",         "token",     "sequence", (0.8, 1.2)),
    "dr_grpo":      Recipe("2503.20783", "none",          "token",     "constant", (0.8, 1.2)),
    "maxrl":        Recipe("2602.02710", "mean",          "token",     "tokens",   (0.8, 1.2)),  # script
    "lite_ppo":     Recipe("2508.08221", "batch",         "token",     "tokens",   (0.8, 1.2)),  # paper; ROLL's config
    "reinforce_pp": Recipe("2501.03262", "batch_centred", "token",     "tokens",   (0.8, 1.2), kl="k2"),  # paper
    # 2. Ratios and clips
    "rgra":         Recipe("2603.18756", "group",         "one",       "sequence", (0, inf)),
    "dapo":         Recipe("2503.14476", "group",         "token",     "tokens",   (0.8, 1.28), resample_rounds=3),
    "two_sided":    Recipe("2505.07291", "group",         "token",     "sequence", (0.8, 1.2, 4.0)),  # paper
    "cispo":        Recipe("2506.13585", "group",         "detached",  "tokens",   (0, 5)),  # 5: ScaleRL
    "sapo":         Recipe("2511.20347", "group",         "soft",      "sequence", (0, inf)),  # paper: tau in surrogate
    "dppo_tv":      Recipe("2602.04879", "none",          "detached",  "constant", (0, 20), ("tv", 0.15)),  # script
    "dppo_kl":      Recipe("2602.04879", "none",          "detached",  "constant", (0, 20), ("kl", 0.05)),  # script
    "gspo":         Recipe("2507.18071", "group",         "sequence",  "sequence", (1 - 3e-4, 1 + 4e-4)),  # paper
    "luspo":        Recipe("2602.05261", "group",         "sequence",  "constant", (1 - 2e-3, 1 + 25e-4)),  # paper
    "gmpo":         Recipe("2507.20673", "group",         "geometric", "sequence", (exp(-0.4), exp(0.4))),
    # 3. Which tokens and rows
    "top_entropy":  Recipe("2506.01939", "group",         "token",     "tokens",   (0.8, 1.28), top_entropy=0.2),
    "gtpo":         Recipe("2508.03772", "none",          "token",     "sequence", (0, inf), conflict_tokens=True,
                           entropy_penalty=0.1, entropy_limit=log(2)),
    "deepseek_v32": Recipe("2512.02556", "none",          "token",     "sequence", (0.8, 1.2), stale_limit=0.5,
                           kl="k3_ratio"),  # the paper gives no limit: TRL's example
    "dagrpo_on":    Recipe("2512.06337", "none",          "token",     "constant", (0.8, 1.2), rectify=True),
    "dagrpo_soft": Recipe("docs/beyond", "none",          "token",     "constant", (0.8, 1.2), soft_mask=True),
    # 4. Demonstrations
    "sft":          Recipe("",           "none",          "token",     "tokens",   (0.8, 1.2), rollouts=False,
                           baseline="constant", anchors=True, anchor_ratio="log"),
    "luffy":        Recipe("2504.14945", "none",          "token",     "constant", (0, inf), anchors=True,
                           anchor_ratio="shaped", entropy_bonus=0.001),
    "chord":        Recipe("2508.11408", "group",         "token",     "tokens",   (0.8, 1.2), anchors=True,
                           anchor_ratio="phi", mu=0.1),  # paper: the mu of CHORD-phi
    "hpt":          Recipe("2509.04419", "none",          "token",     "constant", (0.8, 1.2), anchors=True,
                           anchor_ratio="log", mu=1.0, gate=0),  # paper: gate 0 for Qwen, 2 of 8 for Llama
    "dagrpo":       Recipe("2512.06337", "none",          "token",     "constant", (0.8, 1.2), anchors=True,
                           rectify=True),
}
# fmt: on


@dataclass(frozen=True)
class Update:
    """What the loss reads of an update's N rows, besides the trained log-probs. Built once, then cut by `rows`."""

    advantages: Tensor  # (N,)    A, Eq. 1/12, softened
    keep: Tensor  # (N,)    bool, Eq. 8-9 (all True for recipes without a sequence mask)
    mask: Tensor  # (N, T)  bool, True on completion tokens up to and including the first end token
    weight: Tensor  # (N, T)  1 / divisor, times what the recipe makes of the token
    logp_old: Tensor  # (N, T)  log-probs under the policy that sampled; not read on anchors' rows
    is_anchor: Tensor  # (N,)    bool
    logp_ref: Tensor | None = None  # (N, T)  log-probs under the reference, if there is a KL term

    def rows(self, index: Tensor) -> Update:
        """The rows `index` (n,) as a micro-batch, cut to their longest completion (t). Weights are not recomputed."""
        t = int(self.mask[index].sum(dim=1).max())
        parts = ((name, x) for name, x in vars(self).items() if x is not None)
        return replace(self, **{name: x[index] if x.dim() == 1 else x[index, :t] for name, x in parts})

    def log_ratio(self, logp: Tensor) -> Tensor:
        """log(pi / pi_old), (N, T). 0 on padding and on anchors, which nobody sampled: their NaN never enters."""
        return torch.where(self.mask & ~self.is_anchor[:, None], logp - self.logp_old, 0.0)


def group_advantages(rewards: Tensor, scale: str = "none", baseline: str = "mean",
                     apart: Tensor | None = None) -> Tensor:  # fmt: skip
    """Eq. 1 and 12: advantages (B, G) from the rewards (B, G) of the whole rollout batch, anchors included.

    Rows `apart`, bool (B, G), never a group's first, are compared with nothing: A = 1. Groups of equal rewards get
    exactly 0, except with baseline "none". Raises ValueError for an unknown choice, G < 2, or scale "mean" with R < 0.
    """
    if baseline == "constant":
        return torch.ones_like(rewards)
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be (B, G) with G >= 2, not {tuple(rewards.shape)}")
    apart = torch.zeros_like(rewards, dtype=torch.bool) if apart is None else apart
    size = (~apart).sum(dim=1, keepdim=True)  # (B, 1)
    mean = rewards.masked_fill(apart, 0.0).sum(dim=1, keepdim=True) / size
    centred = (rewards - mean).masked_fill(apart, 0.0)  # (B, G)
    known = ~(apart | centred.isnan())  # NaN: a reward of the group is missing
    differences = {"mean": centred, "leave_one_out": centred * size / (size - 1), "none": rewards}
    spreads = {  # stds are unbiased, plus 1e-4, as TRL has them; those of the batch are over all groups
        "group": lambda: (centred.square().sum(dim=1, keepdim=True) / (size - 1)).sqrt() + 1e-4, "none": lambda: 1.0,
        "batch": lambda: rewards[known].std() + 1e-4, "batch_centred": lambda: centred[known].std() + 1e-4,
        "mean": lambda: mean.where(mean > 0, 1.0),
    }  # fmt: skip
    if scale not in spreads or baseline not in differences or (scale == "mean" and (rewards < 0).any()):
        raise ValueError(f"unknown scale {scale!r} or baseline {baseline!r}, or a reward below 0 with scale 'mean'")
    no_signal = ((rewards == rewards[:, :1]) | apart).all(dim=1, keepdim=True) & (baseline != "none")  # (B, 1)
    return (differences[baseline] / spreads[scale]()).masked_fill(no_signal, 0.0).masked_fill(apart, 1.0)


def rectification_mask(advantages: Tensor, scores: Tensor, delta: float = 3.0, soft: bool = False) -> Tensor:
    """Eq. 8-9: which responses are distinct enough to learn from, bool (B, G), True = keep. A and S are (B, G).

    A positive (A > 0) stays if its score S is at least `delta` above the best negative's, a negative (A < 0) if it is
    as far below the worst positive's; if one side is empty, the other stays. A = 0 is never kept, nor is any response
    of a group in which a score is missing (NaN). ValueError for delta < 0. `soft`, which is ours: sigmoid(gap - delta).

    >>> A, S = torch.tensor([[0.5, 0.5, -0.5, -0.5]]), torch.tensor([[10.0, 4.5, 5.5, 1.0]])
    >>> rectification_mask(A, S, delta=3.0)
    tensor([[ True, False, False,  True]])
    """
    if not delta >= 0 or advantages.shape != scores.shape or advantages.dim() != 2:
        raise ValueError(f"delta {delta} must be >= 0, and A {advantages.shape} and S {scores.shape} the same (B, G)")
    positive, negative = advantages > 0, advantages < 0  # (B, G)  G+ and G-
    best_negative = scores.masked_fill(~negative, -inf).amax(dim=1, keepdim=True)  # (B, 1)
    worst_positive = scores.masked_fill(~positive, inf).amin(dim=1, keepdim=True)  # (B, 1)
    gap = torch.where(positive, scores - best_negative, torch.where(negative, worst_positive - scores, -inf))  # (B, G)
    gap = gap.masked_fill(gap.isnan().any(dim=1, keepdim=True), -inf)  # a score is missing: the group is masked
    return torch.sigmoid(gap - delta) if soft else gap >= delta


def soften(recipe: Recipe, advantages: Tensor, scores: Tensor, delta: float = 3.0) -> Tensor:
    """A (B, G) as the loss takes it: for a recipe with a soft mask, times its weights, else as it is."""
    return advantages * rectification_mask(advantages, scores, delta, soft=True) if recipe.soft_mask else advantages


def conflict_weights(advantages: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """GTPO's token weights (N, T) from advantages (B, G), tokens (N, T) and their mask (N, T).

    A token is in conflict if a positive and a negative of its group share it and all before it, place by place, or it
    and all after it, counted from the end. It then weighs 2 in positives, 0 in negatives. Other tokens weigh 1.
    """
    tokens, mask = (x.unflatten(0, advantages.shape) for x in (tokens, mask))  # (B, G, T)
    positive, negative = (advantages > 0)[:, None, :, None], (advantages < 0)[:, None, :, None]

    def shared_run(tokens: Tensor) -> Tensor:  # the unbroken run from position 0 that both signs share, (B, G, T)
        same = (tokens[:, :, None] == tokens[:, None]) & mask[:, :, None] & mask[:, None]  # (B, G, G, T)
        return ((same & positive).any(dim=2) & (same & negative).any(dim=2)).cumprod(dim=2).bool()

    mirror = (mask.sum(dim=2, keepdim=True) - torch.ones_like(tokens).cumsum(dim=2)) % mask.shape[2]  # its own inverse
    conflict = shared_run(tokens) | shared_run(tokens.gather(2, mirror)).gather(2, mirror)
    return torch.where(conflict, 1 + advantages.sign()[:, :, None], 1.0).flatten(0, 1)  # 1 + 1, 1 - 1


def divisor_weights(mask: Tensor, divisor: str, max_new_tokens: int) -> Tensor:
    """What each token term is multiplied by, (N, T), from the mask (N, T) of all rows of one update.

    constant: 1 / (N * max_new_tokens), Dr. GRPO. sequence: the token mean of each row, then the mean over rows, Eq. 2.
    tokens: 1 / all completion tokens of the update, DAPO. Masked and no-signal rows count in N: Eq. 10's 1/G stays.
    """
    lengths, N = mask.sum(dim=1, keepdim=True), len(mask)  # (N, 1)
    over = {"constant": N * max_new_tokens, "sequence": N * lengths.clamp(min=1), "tokens": lengths.sum().clamp(min=1)}
    if divisor not in over:
        raise ValueError(f"unknown divisor {divisor!r}")
    return mask / over[divisor]


def build_update(recipe: Recipe, advantages: Tensor, keep: Tensor, tokens: Tensor, mask: Tensor, logp_old: Tensor,
                 entropy_old: Tensor, is_anchor: Tensor, max_new_tokens: int, start_entropy: float = inf,
                 logp_ref: Tensor | None = None) -> Update:  # fmt: skip
    """All that an update's micro-batches share. advantages, keep: (B, G); is_anchor: (N,); other tensors: (N, T)."""
    weight = divisor_weights(mask, recipe.divisor, max_new_tokens)  # (N, T)
    sampled = mask & ~is_anchor[:, None]  # (N, T)
    if recipe.mu is not None:  # CHORD, HPT: each part has its own divisor; without an anchor a group's rollouts weigh 1
        shown = is_anchor.view_as(advantages).any(dim=1, keepdim=True)  # (B, 1)
        part = (1 - recipe.mu * shown).expand_as(advantages).reshape(-1, 1)  # (N, 1)
        anchors = divisor_weights(mask & ~sampled, "tokens", max_new_tokens) * recipe.mu * shown.sum() / len(shown)
        weight = divisor_weights(sampled, recipe.divisor, max_new_tokens) * part + anchors
    if recipe.conflict_tokens:
        weight = weight * conflict_weights(advantages, tokens, mask)
    if recipe.top_entropy < 1:  # entropies are the sampling policy's; start_entropy is the starting policy's mean
        weight = weight * ((entropy_old >= entropy_old[sampled].quantile(1 - recipe.top_entropy)) | ~sampled)
    advantages, keep = advantages.flatten(), keep.flatten()  # (N,)
    if recipe.entropy_penalty or recipe.entropy_limit < inf:
        row_entropy = (entropy_old * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (N,)
        advantages = advantages - recipe.entropy_penalty * row_entropy
        if start_entropy < recipe.entropy_limit:  # a policy that starts above the limit would lose every row
            keep = keep & (row_entropy <= recipe.entropy_limit)
    return Update(advantages, keep, mask, weight, logp_old, is_anchor, logp_ref)


def surrogate(logp: Tensor, update: Update, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Ratio times advantage, bounded as the recipe says, (N, T); and which tokens are clipped or dropped, bool (N, T).

    `logp` (N, T) are the log-probs being trained. At ratio 1 the gradient of a rollout term is A * grad log pi (Eq. 4).
    """
    A, (low, high, cap) = update.advantages[:, None], (*recipe.clip, inf)[:3]  # (N, 1)
    unit = (logp - logp.detach()).exp()  # its value is 1, its gradient that of log pi
    log_ratio, length = update.log_ratio(logp), update.mask.sum(dim=1, keepdim=True).clamp(min=1)  # (N, T), (N, 1)
    row_mean = log_ratio.sum(dim=1, keepdim=True) / length  # (N, 1)
    ratio = unit if recipe.ratio == "one" else (row_mean if recipe.ratio == "sequence" else log_ratio).exp()
    clipped = ((A > 0) & (ratio > high)) | ((A < 0) & ((ratio < low) | (ratio > cap)))
    if recipe.ratio == "detached":  # CISPO: the ratio is a bounded weight, and no token loses its gradient
        objective, clipped = ratio.detach().clamp(low, high) * A * logp, ratio > high
    elif recipe.ratio == "soft":  # SAPO: a gate with slope 1 at ratio 1 that closes on both sides, sooner for A < 0
        tau = torch.where(A > 0, 1.0, 1.05)
        objective = 4 / tau * torch.sigmoid(tau * (ratio - 1)) * A
    elif recipe.ratio == "geometric":  # GMPO: first each token is clipped on A's side, then the mean is taken
        bounded = torch.where(A > 0, log_ratio.clamp(max=log(high)), log_ratio.clamp(min=log(low)))
        objective = (bounded.sum(dim=1, keepdim=True) / length).exp() * A
    else:  # Eq. 2. min for both signs of A: past the clip A pushes no further, on the wrong side it still pulls back
        objective = torch.minimum(ratio.clamp(max=cap) * A, ratio.clamp(low, high) * A)
    dropped = (A < 0) & (-row_mean > recipe.stale_limit)  # (N, 1)  DeepSeek-V3.2
    if recipe.trust:  # DPPO: has p moved too far in A's direction? kl is that of a coin: this token or another
        p, p_old = logp.detach().exp(), (logp - log_ratio).detach().exp()  # (N, T)
        kl = (1 - p_old) * ((1 - p_old + 1e-8) / (1 - p + 1e-8)).log() - p_old * log_ratio.detach()
        distance = {"tv": (p - p_old).abs(), "kl": kl}[recipe.trust[0]]
        dropped, clipped = dropped | (((p - p_old) * A > 0) & (distance > recipe.trust[1])), False
    objective, clipped = torch.where(dropped, 0.0, objective), dropped | clipped
    if recipe.anchors:
        p = logp.exp()  # LUFFY (shaped) pushes hardest at p = 0.1, CHORD (phi) at p = 0.5, SFT (log) equally
        shapes = {"one": unit, "shaped": p / (p + 0.1), "log": logp, "phi": (p * (1 - p)).detach() * logp}
        objective = torch.where(update.is_anchor[:, None], shapes[recipe.anchor_ratio] * A, objective)
    return objective.expand_as(logp), clipped & update.mask & (update.keep & ~update.is_anchor)[:, None]


def policy_loss(logp: Tensor, update: Update, recipe: Recipe, entropy: Tensor | None = None,
                kl_beta: float = 0.0) -> Tensor:  # fmt: skip
    """Eq. 13 and its neighbours: the loss, a scalar, of these rows. Micro-batch losses add up to the update's loss.

    `logp` (N, T), and `entropy` (N, T) if the recipe has an entropy bonus, are of the policy now, with gradient. Do not
    watch the loss: at ratio 1 it is about 0, because A is centred, while its gradient is not 0. Watch the reward.
    """
    objective, _ = surrogate(logp, update, recipe)  # (N, T)
    objective = torch.where(update.keep[:, None], objective, 0.0)  # Eq. 10: the mask; N in the divisor stays
    if recipe.entropy_bonus:
        objective = objective + recipe.entropy_bonus * entropy
    if kl_beta:
        objective = objective - kl_beta * kl_estimate(logp, update, recipe.kl)
    return -torch.where(update.mask, objective * update.weight, 0.0).sum()


def kl_estimate(logp: Tensor, update: Update, kind: str) -> Tensor:
    """KL(pi || pi_ref) per token, (N, T), 0 on anchors. Not every `kind` has the KL's own gradient: docs/methods.md."""
    d = update.logp_ref - logp
    k3 = torch.expm1(d) - d  # never below 0; exp(d) - d - 1 can be, for small d in fp32
    kl = {"k1": -d, "k2": d.square() / 2, "k3": k3, "k3_ratio": update.log_ratio(logp).exp() * k3}[kind]
    return kl.masked_fill(update.is_anchor[:, None], 0.0)


def signal_rows(update: Update, recipe: Recipe, kl_beta: float = 0.0) -> Tensor:
    """Which rows can have a gradient, bool (N,). The others need no forward pass: skipping them changes no gradient."""
    return (update.keep & (update.advantages != 0)) | (recipe.entropy_bonus > 0) | (~update.is_anchor & (kl_beta > 0))


if __name__ == "__main__":  # the page is made in analysis/, so that this file can be copied as it is
    runpy.run_module("analysis.eight", run_name="__main__")

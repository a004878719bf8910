"""The groups of one step: rewards, scores, advantages and masks side by side, and what is reported of them.

Every figure in metrics.csv is logged for every method, also where its loss does not use it: `distinct_fraction` tells
what DaGRPO would keep of a plain Dr. GRPO run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dagrpo
import worker
from rollout import Rollouts


@dataclass(frozen=True)
class Groups:
    """What a step knows of its groups before it learns from them. All but `rollouts` and the counts are (B, G)."""

    rollouts: Rollouts  # N = B * G rows, G_mix
    rewards: Tensor  # R
    scores: Tensor  # S
    advantages: Tensor  # A
    distinct: Tensor  # bool, what Eq. 8-9 would keep, whether the recipe masks or not
    keep: Tensor  # bool, what the recipe keeps
    responses: int  # generated, with those that an anchor or another sample has replaced
    tokens: int  # generated
    seconds: float


def mean_over(values: Tensor, where: Tensor) -> float | None:
    """The mean of the values where `where` is True; None if that is nowhere."""
    return values[where].float().mean().item() if where.any() else None


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def measure(groups: Groups, levels: Iterable[str]) -> dict[str, float | None]:
    """A step's row for metrics.csv, apart from what `learn` adds. None: there was nothing to take the mean of.

    Reward, length, entropy and `ended` are over rollouts, anchors apart. Kept shares are of the rows with A != 0.
    The verifier's time-outs are those since the last step: this takes them.
    """
    rollouts, A, keep = groups.rollouts, groups.advantages, groups.keep
    anchor = rollouts.is_anchor.view(A.shape).cpu()  # (B, G)
    signal = A != 0  # (B, G)
    level = [problem.level for problem in rollouts.problems]  # B
    sampled = ~rollouts.is_anchor  # (N,)
    by_level = {
        f"reward_level_{name}": mean_over(groups.rewards, ~anchor & torch.tensor([at == name for at in level])[:, None])
        for name in levels
    }
    return {
        "reward": mean_over(groups.rewards, ~anchor),
        **by_level,
        "score": mean_over(groups.scores, ~anchor & ~groups.scores.isnan()),
        "response_length": mean_over(rollouts.lengths, sampled),
        "ended_fraction": mean_over(rollouts.ended, sampled),
        "entropy": mean_over(rollouts.entropy, rollouts.mask & sampled[:, None]),
        "no_signal_groups": int((~signal).all(dim=1).sum()),
        "masked_groups": int((signal.any(dim=1) & ~(signal & keep).any(dim=1)).sum()),
        "unscored_groups": int((signal & groups.scores.isnan()).any(dim=1).sum()),
        "kept_rows": int((keep & signal).sum()),
        "kept_fraction": mean_over(keep, signal),
        "kept_positive": mean_over(keep, A > 0),
        "kept_negative": mean_over(keep, A < 0),
        "distinct_fraction": mean_over(groups.distinct, signal),
        "anchors": int(anchor.sum()),
        "anchors_kept": mean_over(keep & signal, anchor),
        "responses": groups.responses,
        "tokens": groups.tokens,
        "verifier_timeouts": worker.take_timeouts(),
        "rollout_seconds": groups.seconds,
    }


def records(groups: Groups, step: int) -> list[dict[str, Any]]:
    """A step's lines for rollouts.jsonl, one a group. What is not a number (a missing score) is None."""
    rollouts, G = groups.rollouts, groups.rewards.shape[1]
    lines = []
    for b, problem in enumerate(rollouts.problems):
        rows = range(b * G, (b + 1) * G)
        lengths = rollouts.lengths[rows.start : rows.stop].tolist()
        lines.append(
            {
                "step": step,
                "group": b,
                "level": problem.level,
                "question": problem.question,
                "answer": problem.answer,
                "demonstration": problem.demo,
                "responses": [rollouts.texts[n] for n in rows],
                "tokens": [rollouts.tokens[n, :t].tolist() for n, t in zip(rows, lengths, strict=True)],
                "logp": [numbers(rollouts.logp[n, :t], digits=5) for n, t in zip(rows, lengths, strict=True)],
                "R": groups.rewards[b].tolist(),
                "S": numbers(groups.scores[b]),
                "A": groups.advantages[b].tolist(),
                "keep": groups.keep[b].tolist(),
                "is_anchor": rollouts.is_anchor[rows.start : rows.stop].tolist(),
            }
        )
    return lines


def numbers(values: Tensor, digits: int = 9) -> list[float | None]:
    """JSON knows neither NaN nor infinity."""
    return [round(x, digits) if math.isfinite(x) else None for x in values.tolist()]


def show(groups: Groups, step: int, delta: float) -> str:
    """Two groups for a person to read, one with signal and one without if there are such: R, S, A, masked or kept."""
    signal = (groups.advantages != 0).any(dim=1).tolist()  # (B,)
    first = signal.index(True) if True in signal else 0
    other = signal.index(False) if False in signal else len(signal) - 1
    shown = [_show_group(groups, b, delta) for b in dict.fromkeys((first, other))]
    return "\n".join([f"step {step}, {len(shown)} of {len(signal)} groups", *shown])


def _show_group(groups: Groups, b: int, delta: float) -> str:
    rollouts, G, problem = groups.rollouts, groups.rewards.shape[1], groups.rollouts.problems[b]
    why = dagrpo.reasons(groups.advantages[b : b + 1], groups.scores[b : b + 1], delta)[0]
    lines = [f"  level {problem.level}: {problem.question}   answer {problem.answer}", "      R     S       A"]
    for i in range(G):
        R, S, A = (x[b, i].item() for x in (groups.rewards, groups.scores, groups.advantages))
        kept = bool(groups.keep[b, i])
        mark = "anchor " if rollouts.is_anchor[b * G + i] else ""
        # the reason is Eq. 8-9's, and told only where it is what decided
        note = (
            why[i] if A and not kept and not groups.distinct[b, i] else "kept" if A and kept else "masked" if A else ""
        )
        lines.append(f"      {R:.0f}  {S:4.1f}  {A:+.3f}  {mark}{rollouts.texts[b * G + i]}   {note}")
    if not groups.advantages[b].any():
        kind = "right" if groups.rewards[b].all() else "wrong"
        lines.append(f"      no signal: all {G} are {kind}, so that every A is 0 and nothing is learned here")
    elif not (groups.keep[b] & (groups.advantages[b] != 0)).any():
        lines.append("      no signal: every response is masked, none is clearly better or worse than the other side")
    return "\n".join(lines)

"""What is reported about a step: its row of metrics.csv, its lines of rollouts.jsonl, and two groups to read.

Every figure in metrics.csv is logged for every method, even if its loss does not use it: `distinct_fraction` shows
which share of the rows of a plain Dr. GRPO run DaGRPO would keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dagrpo import rectification_mask
from harness.console import visible
from maths import worker

if TYPE_CHECKING:  # so that what is reported can be read without transformers
    from rollout import Groups


def mean_over(values: Tensor, where: Tensor) -> float | None:
    """The mean of the values where `where` is True; None if it is True nowhere."""
    return values[where].float().mean().item() if where.any() else None


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def measure(groups: Groups, levels: Iterable[str]) -> dict[str, float | None]:
    """A step's row for metrics.csv, without what `learn` adds. None: there were no values to take the mean of.

    Reward, score, length, `ended` and entropy are means over rollouts, without anchors. Kept shares are of the rows
    with A != 0. The verifier's time-outs are those since the last call, which takes them.
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
    }


def records(groups: Groups, step: int, change: Tensor | None = None) -> list[dict[str, Any]]:
    """A step's lines for rollouts.jsonl, one for each group. NaN (a missing score) becomes None.

    `change` (N, T) is how the step changed each token's log-prob, if that was recorded.
    """
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
                "ended": rollouts.ended[rows.start : rows.stop].tolist(),
            }
        )
        if change is not None:
            lines[-1]["change"] = [numbers(change[n, :t], digits=5) for n, t in zip(rows, lengths, strict=True)]
    return lines


def numbers(values: Tensor, digits: int = 9) -> list[float | None]:
    """The values, rounded; None for NaN and infinity, which JSON does not have."""
    return [round(x, digits) if math.isfinite(x) else None for x in values.tolist()]


def show(groups: Groups, step: int, delta: float) -> str:
    """Two groups for a person to read, if possible one with signal and one without: R, S, A, masked or kept."""
    signal = (groups.advantages != 0).any(dim=1).tolist()  # (B,)
    first = signal.index(True) if True in signal else 0
    other = signal.index(False) if False in signal else len(signal) - 1
    shown = [_show_group(groups, b, delta) for b in dict.fromkeys((first, other))]
    return visible("\n".join([f"step {step}, {len(shown)} of {len(signal)} groups", *shown]))


def _show_group(groups: Groups, b: int, delta: float) -> str:
    rollouts, G, problem = groups.rollouts, groups.rewards.shape[1], groups.rollouts.problems[b]
    why = reasons(groups.advantages[b : b + 1], groups.scores[b : b + 1], delta)[0]
    lines = [f"  level {problem.level}: {problem.question}   answer {problem.answer}", "      R     S       A"]
    for i in range(G):
        R, S, A = (x[b, i].item() for x in (groups.rewards, groups.scores, groups.advantages))
        kept = bool(groups.keep[b, i])
        mark = "anchor " if rollouts.is_anchor[b * G + i] else ""
        # Eq. 8-9's reason, only if Eq. 8-9 decided
        note = (
            why[i] if A and not kept and not groups.distinct[b, i] else "kept" if A and kept else "masked" if A else ""
        )
        lines.append(f"      {R:.0f}  {S:4.1f}  {A:+.3f}  {mark}{rollouts.texts[b * G + i]}   {note}")
    if not groups.advantages[b].any():
        kind = "right" if groups.rewards[b].all() else "wrong"
        lines.append(f"      no signal: all {G} are {kind}, so every A is 0 and nothing is learned here")
    elif not (groups.keep[b] & (groups.advantages[b] != 0)).any():
        missing = groups.scores[b][groups.advantages[b] != 0].isnan().any()
        why_all = "a score is missing" if missing else "none is clearly better or worse than the other side"
        lines.append(f"      no signal: every response is masked, {why_all}")
    return "\n".join(lines)


def reasons(advantages: Tensor, scores: Tensor, delta: float = 3.0) -> list[list[str]]:
    """From A and S, (B, G) each: B lists of G short texts that say what rectification_mask decides, and why."""
    keep = rectification_mask(advantages, scores, delta)
    return [
        [_reason(a, s, i, keep, delta) for i in range(len(a))]
        for a, s, keep in zip(advantages, scores, keep, strict=True)
    ]


def _reason(advantages: Tensor, scores: Tensor, i: int, keep: Tensor, delta: float) -> str:
    """Response i of one group, given its A, S and mask, each (G,)."""
    mine = advantages[i].sign()
    if mine == 0:
        return "no signal: A = 0"
    if scores[advantages != 0].isnan().any():
        return "masked: a score of its group is missing"
    others = scores[advantages.sign() == -mine]
    if not len(others):
        return "kept: nothing on the other side"
    gap = scores[i] - others.max() if mine > 0 else others.min() - scores[i]
    against = (
        f"S {scores[i]:g} against the best negative's {others.max():g}"
        if mine > 0
        else (f"S {scores[i]:g} against the worst positive's {others.min():g}")
    )
    return f"{'kept' if keep[i] else 'masked'}: {against}, gap {gap:g} {'>=' if keep[i] else '<'} {delta:g}"

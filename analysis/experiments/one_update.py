"""What one update does to the responses of its own group: are right ones made likelier, and do shared tokens drift?

Two papers read Eq. 6 differently. arXiv 2505.18830: pushing down every token of wrong responses also lowers, or hardly
raises, the likelihood of right ones, because they share correct steps. 2604.13088: on tokens that a whole group shares,
pushes *should* cancel; where they do not, the policy drifts.

For every question: sample a group of 8, take one step of a fresh AdamW under each variant below, measure, and restore
the weights. Only groups with right and wrong responses count. We measure the mean change of log-prob per token:

    derived, lucky    of right responses with steps, and of right responses without any
    wrong             of wrong responses
    shared            of the tokens that all 8 share from the start; the table also has the push there

    dr_grpo, gtpo         the methods
    positives alone       dr_grpo on the rows with A > 0
    Eq. 8-9, random       dr_grpo with the mask, and with a random mask that keeps as many of each side
    Eq. 8-9, centred      the mask, and A centred again over the rows that it keeps
    pairs, soft           other ways to use the scores: masks.py

    python -m analysis.experiments.one_update [--world guess] [--model RUN] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

import dagrpo
import rollout
import scoring
import tasks
from analysis.experiments.controls import random_like
from analysis.experiments.masks import MASKS
from analysis.experiments.questions import ask
from analysis.stats import markdown, signed_interval, t_interval
from dagrpo import METHODS
from harness.console import Parser
from policy import Policy
from rollout import Rollouts

LR, G, MAX_NEW_TOKENS = 3e-5, 8, 64
SHOWN = ("derived", "lucky", "wrong", "shared")
VARIANTS = ("dr_grpo", "positives alone", "Eq. 8-9", "random", "Eq. 8-9, centred", "pairs", "soft", "gtpo")


@dataclass(frozen=True)
class Change:
    """A row of the CSV: one question under one variant; changes are in nats per token."""

    world: str
    variant: str
    question: str
    kept: float  # share of the rows
    derived: float  # NaN: there is no such response
    lucky: float
    wrong: float
    shared: float  # NaN: the group shares no token from the start
    push: float  # mean over shared tokens of the sum of pushes, times G * MAX_NEW_TOKENS: without the divisor


def choices(A: Tensor, R: Tensor, S: Tensor) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yields variant, method, advantages (1, G) and the rows that are kept (1, G)."""
    mask = dagrpo.rectification_mask(A, S)
    kept = A * mask
    centred = torch.where(mask, A - kept.sum() / mask.sum().clamp(min=1), 0.0)
    everything = torch.ones_like(mask)
    yield "dr_grpo", "dr_grpo", A, everything
    yield "positives alone", "dr_grpo", A, A > 0
    yield "Eq. 8-9", "dr_grpo", A, mask
    yield "random", "dr_grpo", A, random_like(A, mask)
    yield "Eq. 8-9, centred", "dr_grpo", centred, mask
    for kind, advantages in MASKS.items():
        yield kind, "dr_grpo", advantages(R, S), advantages(R, S) != 0
    yield "gtpo", "gtpo", A, everything


def shared_tokens(rollouts: Rollouts) -> int:
    """How many tokens all rows share from the start."""
    same = ((rollouts.tokens == rollouts.tokens[:1]) & rollouts.mask).all(dim=0)  # (T,)
    return int(same.cumprod(dim=0).sum())


def step(policy: Policy, rollouts: Rollouts, name: str, A: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """One AdamW step on this group: the pushes (G, T), and the log-probs (G, T) after it. Changes the policy."""
    parts = (rollouts.tokens, rollouts.mask, rollouts.logp, rollouts.entropy, rollouts.is_anchor, MAX_NEW_TOKENS)
    update = dagrpo.build_update(METHODS[name], A, keep, *parts)
    rows = torch.arange(G)
    logp = rollout.token_logprobs(policy, rollouts, rows)[0]  # (G, T)
    logp.retain_grad()
    dagrpo.policy_loss(logp, update.rows(rows), METHODS[name]).backward()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=LR, weight_decay=0.0)
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        return -logp.grad, rollout.token_logprobs(policy, rollouts, rows)[0]


def changes(policy: Policy, problem: tasks.Problem, world: str) -> list[Change]:
    """The changes for one question, one per variant; [] if its group has no signal."""
    rollouts = rollout.sample_groups(policy, [problem], [G], MAX_NEW_TOKENS)
    R, S = scoring.rewards(rollouts), scoring.scores(rollouts)  # (1, G)
    A = dagrpo.group_advantages(R)
    if not A.any():
        return []
    with torch.no_grad():
        before = rollout.token_logprobs(policy, rollouts, torch.arange(G))[0]  # (G, T)
    weights, found, right = deepcopy(policy.model.state_dict()), [], R[0] == 1
    bare = torch.tensor([not scoring.steps(text) for text in rollouts.texts])  # (G,)
    t = shared_tokens(rollouts)
    for variant, name, advantages, keep in choices(A, R, S):
        push, after = step(policy, rollouts, name, advantages, keep)
        policy.model.load_state_dict(weights)
        moved = after - before  # (G, T)
        sides = [moved[rows][rollouts.mask[rows]].mean().item() for rows in (right & ~bare, right & bare, ~right)]
        on_shared = [moved[0, :t].mean().item(), push[:, :t].sum(dim=0).mean().item() * G * MAX_NEW_TOKENS]
        on_shared = on_shared if t else [float("nan")] * 2
        found.append(Change(world, variant, problem.question, keep.float().mean().item(), *sides, *on_shared))
    return found


def table(rows: pd.DataFrame) -> str:
    """Markdown: means over questions with their 95 % intervals, in thousandths of a nat a token."""
    lines = []
    for variant in VARIANTS:
        here = rows[rows["variant"] == variant]
        cells = [signed_interval(t_interval(1000 * here[name]), digits=1) for name in SHOWN]
        lines.append([variant, f"{here['kept'].mean():.2f}", *cells, f"{here['push'].abs().mean():.2f}"])
    return markdown(["variant", "kept", *SHOWN, "size of the push on shared tokens"], lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.one_update", description=__doc__)
    rows, world = ask(parser, changes, "guess", 200, argv)
    print(f"World {world}, {rows['question'].nunique()} questions; thousandths of a nat a token\n\n{table(rows)}")


if __name__ == "__main__":
    main()

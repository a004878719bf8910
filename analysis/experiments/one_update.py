"""What one update does to the responses of its own group: are right ones made likelier, and do shared tokens drift?

Two papers read Eq. 6 differently. arXiv 2505.18830: pushing down every token of wrong responses also lowers, or hardly
raises, the likelihood of right ones, because they share correct steps. 2604.13088: on tokens that a whole group shares,
pushes *should* cancel; where they do not, the policy drifts.

For every question: sample a group of 8, take one step of a fresh AdamW under each variant below, measure, and restore
the weights. Only groups with right and wrong responses count. We measure the mean change of log-prob per token:

    derived, lucky    of right responses with steps, and of right responses without any
    wrong             of wrong responses
    shared            of the tokens that all 8 share from the start; also the change of entropy there, and the size of
                      the push, the sum of A (in grpo and gtpo of A * 64 / length, in gtpo also doubled). As pushes have
                      both signs, the last columns are of the groups with a push: the change beyond dr_grpo's on the
                      same group, times the push's sign

and the net share of Eq. 5, |v+ + v-| / (|v+| + |v-|), of the exact gradients of right and wrong responses.

    dr_grpo, gtpo, grpo   the methods; grpo divides by length, so its pushes on shared tokens need not cancel. Its
                          standard deviation is left out: AdamW's first step has the same size without it
    positives alone       dr_grpo on the rows with A > 0
    Eq. 8-9, random       dr_grpo with the mask, and with a random mask that keeps as many of each side
    Eq. 8-9, centred      the mask, and A centred again over the rows that it keeps
    soft                  dagrpo_soft
    pairs, tokens, gradients, in results/one_update/guess.csv: three other masks, which left the code after commit
                          0e44634; these rows lack grpo and shared_entropy

    python -m analysis.experiments.one_update [--world guess] [--model RUN] [--csv FILE]
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import dagrpo
import rollout
import scoring
import tasks
from analysis.experiments.controls import centre, random_like
from analysis.experiments.questions import ask
from analysis.stats import markdown, signed_interval, t_interval
from dagrpo import METHODS, Update
from harness.console import Parser
from policy import Policy
from rollout import Rollouts

LR, G, MAX_NEW_TOKENS = 3e-5, 8, 64
SHOWN = ("derived", "lucky", "wrong", "shared", "shared_entropy")


@dataclass(frozen=True)
class Change:
    """A row of the CSV: one question under one variant; changes are in nats per token."""

    world: str
    variant: str
    question: str
    kept: float  # share of the rows
    net: float  # net share of Eq. 5; NaN: there is no push
    derived: float  # NaN: there is no such response
    lucky: float
    wrong: float
    shared: float  # NaN: the group shares no token from the start
    shared_entropy: float  # nats
    push: float  # mean over shared tokens of the sum of pushes, times dr_grpo's divisor, G * MAX_NEW_TOKENS


def variants(A: Tensor, S: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each variant: the advantages (1, G), and the rows that are kept (1, G)."""
    mask = dagrpo.rectification_mask(A, S)
    everything = torch.ones_like(mask)
    return {
        "dr_grpo": (A, everything),
        "positives alone": (A, A > 0),
        "Eq. 8-9": (A, mask),
        "random": (A, random_like(A, mask)),
        "Eq. 8-9, centred": (centre(A, mask), mask),
        "soft": (A * dagrpo.rectification_mask(A, S, soft=True), everything),
        "gtpo": (A, everything),
        "grpo": (A, everything),
    }


def shared_tokens(rollouts: Rollouts) -> int:
    """How many tokens all rows share from the start."""
    same = ((rollouts.tokens == rollouts.tokens[:1]) & rollouts.mask).all(dim=0)  # (T,)
    return int(same.cumprod(dim=0).sum())


def update_of(rollouts: Rollouts, variant: str, A: Tensor, keep: Tensor) -> Update:
    parts = (rollouts.tokens, rollouts.mask, rollouts.logp, rollouts.entropy, rollouts.is_anchor, MAX_NEW_TOKENS)
    return dagrpo.build_update(METHODS[recipe_of(variant)], A, keep, *parts)


def recipe_of(variant: str) -> str:
    return variant if variant in METHODS else "dr_grpo"


def step(policy: Policy, rollouts: Rollouts, variant: str, A: Tensor, keep: Tensor,
         right: Tensor) -> tuple[Tensor, float]:  # fmt: skip
    """One AdamW step on this group: the pushes (G, T), and the net share of the gradients of `right` (G,) and other
    responses. Changes the policy."""
    update, parameters, rows = update_of(rollouts, variant, A, keep), list(policy.model.parameters()), torch.arange(G)
    logp = rollout.token_logprobs(policy, rollouts, rows)[0]  # (G, T)
    sides, push = [], torch.zeros_like(logp)
    for side in (right, ~right):
        part = replace(update, keep=update.keep & side).rows(rows)
        loss = dagrpo.policy_loss(logp, part, METHODS[recipe_of(variant)])
        on_tokens, *found = torch.autograd.grad(loss, [logp, *parameters], retain_graph=True)
        push, sides = push - on_tokens, [*sides, torch.cat([x.flatten() for x in found])]
    total, apart = (sides[0] + sides[1]).norm().item(), sides[0].norm().item() + sides[1].norm().item()
    for p, x in zip(parameters, (sides[0] + sides[1]).split([p.numel() for p in parameters]), strict=True):
        p.grad = x.view_as(p)
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return push, total / apart if apart else float("nan")


@torch.no_grad()
def measure(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Log-probs and entropies, (2, G, T), of the group under the policy as it is."""
    return torch.stack(rollout.token_logprobs(policy, rollouts, torch.arange(G), with_entropy=True))


def changes(policy: Policy, problem: tasks.Problem, world: str) -> list[Change]:
    """The changes for one question, one per variant; [] if its group has no signal."""
    rollouts = rollout.sample_groups(policy, [problem], [G], MAX_NEW_TOKENS)
    R, S = scoring.rewards(rollouts), scoring.scores(rollouts)  # (1, G)
    A = dagrpo.group_advantages(R)
    if not A.any():
        return []
    before = measure(policy, rollouts)  # (2, G, T)
    weights, found, right = deepcopy(policy.model.state_dict()), [], R[0] == 1
    bare = torch.tensor([not scoring.steps(text) for text in rollouts.texts])  # (G,)
    t = shared_tokens(rollouts)
    for variant, (advantages, keep) in variants(A, S).items():
        push, net = step(policy, rollouts, variant, advantages, keep, right)
        moved, entropy_change = measure(policy, rollouts) - before  # (G, T) each
        policy.model.load_state_dict(weights)
        sides = [moved[rows][rollouts.mask[rows]].mean().item() for rows in (right & ~bare, right & bare, ~right)]
        pushed = push[:, :t].sum(dim=0) * G * MAX_NEW_TOKENS  # (t,)
        on_shared = [x.mean().item() for x in (moved[0, :t], entropy_change[0, :t], pushed)]  # NaN: nothing is shared
        found.append(Change(world, variant, problem.question, keep.float().mean().item(), net, *sides, *on_shared))
    return found


def table(rows: pd.DataFrame) -> str:
    """Markdown: means over questions with their 95 % intervals, in thousandths of a nat a token."""
    rows, lines = rows.set_index("question"), []
    baseline = rows[rows["variant"] == "dr_grpo"]
    for variant, here in rows.groupby("variant", sort=False):
        cells = [signed_interval(t_interval(1000 * here[name]), digits=1) for name in SHOWN]
        means = [f"{here[name].mean():.2f}" for name in ("kept", "net")]
        with_push = [along_push(here, baseline, name) for name in ("shared", "shared_entropy")]
        lines.append([variant, *means, *cells, f"{here['push'].abs().mean():.2f}", *with_push])
    heads = ["variant", "kept", "net share", *SHOWN, "push", "groups: shared, along it", "groups: entropy, along it"]
    return markdown(heads, lines)


def along_push(here: pd.DataFrame, baseline: pd.DataFrame, name: str) -> str:
    """Of groups with a push on shared tokens: their number, and the change beyond the baseline's, times its sign."""
    effect = (np.sign(here["push"]) * (here[name] - baseline[name]))[here["push"].abs() > 1e-3]
    return f"{len(effect)}: {signed_interval(t_interval(1000 * effect), digits=1)}" if len(effect) > 1 else ""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.one_update", description=__doc__)
    rows, world = ask(parser, changes, "guess", 200, argv)
    counts = f"{rows['question'].nunique()} questions, {rows.dropna(subset='shared')['question'].nunique()} with shared"
    print(f"World {world}, {counts} tokens; thousandths of a nat a token\n\n{table(rows)}")


if __name__ == "__main__":
    main()

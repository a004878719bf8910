"""Is the group's mean a biased baseline? 2601.08521 says so, of the groups that have a signal; here it is measured.

A question has p, the share of right responses of the policy, and a group's mean m estimates it. Over all groups m is
right on average. Over those with a signal, 0 < m < 1, it is not: E[m | signal] = (p - p^G) / s, where s = 1 - p^G -
(1-p)^G is the share of such groups. So hard questions look easier than they are, and easy ones harder. What does this
do to the gradient? With true advantages R - p it would be g. The mean over all groups is (1 - 1/G) g exactly, whatever
p is: groups without a signal have gradient 0, and make up for it. Where they are sampled again until they have one, as
DAPO does, it is (1 - 1/G) g / s: the same direction for one question, but questions with a small s count for more.

Each question has GROUPS groups of G responses, and its exact gradients are taken: of all groups, each with its own
mean, and of all responses with their common mean (in place of p).

    python -m analysis.experiments.bias [--world plain] [--model RUN] [--csv FILE]
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

import dagrpo
import fast
import scoring
import tasks
from analysis.experiments.questions import ask
from analysis.stats import markdown, signed_interval, t_interval
from harness.console import Parser
from policy import Policy
from rollout import Rollouts

G, GROUPS, MAX_NEW_TOKENS, ROWS = 8, 64, 64, 128  # ROWS: of a micro-batch


@dataclass(frozen=True)
class Bias:
    """A row of the CSV: one question. Ratios are of a gradient's part along g to g."""

    world: str
    level: str
    question: str
    p: float  # share of right responses
    signal: float  # share of the groups that have one
    bias: float  # mean of m over those groups, minus p
    cosine: float  # of the gradient of all groups and g
    ratio: float  # all groups
    resampled: float  # groups with a signal alone: ratio / signal, as the others have gradient 0


def gradient(policy: Policy, rollouts: Rollouts, A: Tensor) -> Tensor:
    """The mean over rows of A_i grad log pi(o_i), flat, (D,). A (N,)."""
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    active = A.nonzero().squeeze(1)
    for rows in active.split(ROWS):
        logp = fast.token_logprobs(policy, rollouts, rows)[0]  # (n, t)
        mask = rollouts.mask[rows, : logp.shape[1]]
        (torch.where(mask, logp, 0.0).sum(dim=1) @ A[rows] / len(A)).backward()
    found = torch.cat([weight.grad.flatten() for weight in trained])
    policy.model.zero_grad()
    return found


def measure(policy: Policy, problem: tasks.Problem, world: str) -> list[Bias]:
    """Of one question; none if all responses are right, or all wrong."""
    rollouts = fast.sample_groups(policy, [problem], [G * GROUPS], MAX_NEW_TOKENS)
    R = scoring.rewards(rollouts)  # (1, G * GROUPS)
    if R.min() == R.max():
        return []
    A = dagrpo.group_advantages(R.view(GROUPS, G))  # (GROUPS, G)
    p, means, signal = R.mean().item(), R.view(GROUPS, G).mean(dim=1), (A != 0).any(dim=1)
    true, grouped = gradient(policy, rollouts, (R - p).flatten()), gradient(policy, rollouts, A.flatten())
    cosine = torch.nn.functional.cosine_similarity(true, grouped, dim=0).item()
    ratio, share = (grouped @ true / true.square().sum()).item(), signal.float().mean().item()
    bias = means[signal].mean().item() - p
    return [Bias(world, problem.level, problem.question, p, share, bias, cosine, ratio, ratio / share)]


def expected(p: float) -> tuple[float, float, float]:
    """The closed forms of a question: bias, ratio, and ratio after resampling.

    >>> [round(x, 3) for x in expected(0.5)], [round(x, 3) for x in expected(0.01)]
    ([0.0, 0.875, 0.882], [0.119, 0.875, 11.326])
    """
    s = 1 - p**G - (1 - p) ** G
    return (p - p**G) / s - p, 1 - 1 / G, (1 - 1 / G) / s


def table(rows: pd.DataFrame) -> str:
    """Markdown by level: means over questions, and in brackets what the closed forms say."""
    lines = []
    for level, here in rows.groupby("level"):
        forms = pd.DataFrame(map(expected, here["p"]), columns=["bias", "ratio", "resampled"]).mean()
        cells = [f"{signed_interval(t_interval(here['bias']))} ({forms['bias']:+.3f})"]
        cells += [f"{here[x].mean():.3f} ({forms[x]:.3f})" for x in ("ratio", "resampled")]
        lines.append([level, str(len(here)), f"{here['p'].mean():.2f}", *cells, f"{here['cosine'].mean():.3f}"])
    heads = ["level", "questions", "p", "m - p, groups with signal", "ratio, all groups", "ratio, resampled", "cosine"]
    return markdown(heads, lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.bias", description=__doc__)
    rows, world = ask(parser, measure, "plain", 30, argv)
    print(f"World {world}, {G * GROUPS} responses to each of {len(rows)} questions with right and wrong ones")
    print(f"In brackets: the closed forms\n\n{table(rows)}")


if __name__ == "__main__":
    main()

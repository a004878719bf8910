"""Scores without a judge or a demonstration, from what sampling already knows (for the built-in task).

The paper's mask needs S of every response from a model such as GPT-4o. Each candidate here is a number f in [0, 1] that
takes the place of "valid and complete", so that S = 1 + 9 (0.4 right + 0.6 f):

    sure      how likely the policy finds its final answer, given what it has written: the product of its tokens'
              probabilities. About 1/3 for a lucky guess, nearly 1 for a derivation that holds.
    agree     of the group's responses with other steps, the share with the same answer
    fluent    the mean probability of all tokens: a baseline that ignores answers
    steps     f = 1 with steps, 0 without: a baseline that looks only at the form

How well does each order the responses of a group? We compare it with the exact S of scoring.score: rank correlation in
a group, the share of rows (with A != 0) that both masks treat alike, and the share of lucky guesses that is kept.

    python -m analysis.experiments.own_scores [--world guess] [--model RUN ...] [--csv FILE]

`python -m analysis.experiments.controls own_score=sure --method dagrpo_on --world guess --out DIR` trains with one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import dagrpo
import rollout
import scoring
import tasks
from analysis.saved import check_writable, write_rows
from analysis.stats import markdown, spearman, t_interval
from harness.console import Parser, fail, progress
from harness.warm_start import find_start
from policy import Policy, load_policy
from rollout import Groups, Rollouts

G, MAX_NEW_TOKENS = 8, 64


def sure(rollouts: Rollouts) -> Tensor:
    """The probability of each final answer given the response before it, end token included, (N,); 0 without a `#`."""
    begins = torch.tensor([text.rfind("#") + 1 for text in rollouts.texts])  # (N,); one token per character
    answer = rollouts.mask & (torch.arange(rollouts.mask.shape[1]) >= begins[:, None])  # (N, T)
    return (rollouts.logp * answer).sum(dim=1).exp() * (begins > 0)


def agree(rollouts: Rollouts) -> Tensor:
    """Of the group's responses with other steps, the share with the same answer, (N,). 0 if all have the same steps."""
    ways = [text.rpartition("#")[::2] for text in rollouts.texts]  # N pairs: steps, answer
    group = rollouts.group.tolist()
    found = []
    for n, (steps, answer) in enumerate(ways):
        others = [a for b, (s, a) in zip(group, ways, strict=True) if b == group[n] and s != steps]
        found.append(sum(a == answer for a in others) / len(others) if others and answer else 0.0)
    return torch.tensor(found)


def fluent(rollouts: Rollouts) -> Tensor:
    return ((rollouts.logp.exp() * rollouts.mask).sum(dim=1) / rollouts.lengths).clamp(0, 1)


def with_steps(rollouts: Rollouts) -> Tensor:
    return torch.tensor([float(bool(scoring.steps(text))) for text in rollouts.texts])


OWN: dict[str, Callable[[Rollouts], Tensor]] = {"sure": sure, "agree": agree, "fluent": fluent, "steps": with_steps}


def own_scores(kind: str, rollouts: Rollouts, R: Tensor) -> Tensor:
    """S (B, G) in [1, 10] by the candidate `kind`, from the rollouts and their rewards R (B, G)."""
    return 1 + 9 * (0.4 * R + 0.6 * OWN[kind](rollouts).view(R.shape))


def own_score(groups: Groups, kind: str, delta: float = 3.0) -> Groups:
    """The groups with these scores instead, and the mask that follows from them: a control of controls.py."""
    S = own_scores(kind, groups.rollouts, groups.rewards)
    distinct = dagrpo.rectification_mask(groups.advantages, S, delta)
    return replace(groups, scores=S, distinct=distinct, keep=distinct)


# ---------------------------------------------------------------------------------------- how well they order responses


@dataclass(frozen=True)
class Ordering:
    """A row of the CSV: one candidate in one group."""

    world: str
    model: str
    kind: str
    question: str
    correlation: float  # Spearman, with the exact S in the group; NaN: all scores of one are equal
    same_mask: float  # share of the rows that both masks treat alike
    lucky_kept: float  # share of the right responses without steps; NaN: there are none


def orderings(policy: Policy, problems: list[tasks.Problem], world: str, model: str) -> list[Ordering]:
    """Every group with right and wrong responses under every candidate, and under "exact": S by scoring.score."""
    found = []
    for begin in progress(range(0, len(problems), 16), desc=model, unit="batch"):
        some = problems[begin : begin + 16]
        rollouts = rollout.sample_groups(policy, some, [G] * len(some), MAX_NEW_TOKENS)
        R, S = scoring.rewards(rollouts), scoring.scores(rollouts)  # (B, G)
        A = dagrpo.group_advantages(R)
        bare = with_steps(rollouts).view(R.shape) == 0
        kept = dagrpo.rectification_mask(A, S)
        for kind in ("exact", *OWN):
            own = S if kind == "exact" else own_scores(kind, rollouts, R)
            mask = dagrpo.rectification_mask(A, own)
            for b in (A != 0).all(dim=1).nonzero().flatten().tolist():
                lucky = bare[b] & (R[b] > 0)
                share = mask[b][lucky].float().mean().item()  # of nothing: NaN
                same = (mask[b] == kept[b]).float().mean().item()
                rank = spearman(S[b].tolist(), own[b].tolist())
                found.append(Ordering(world, model, kind, some[b].question, rank, same, share))
    return found


def table(rows: pd.DataFrame) -> str:
    """Means over groups, with 95 % intervals."""
    lines = []
    for (model, kind), part in rows.groupby(["model", "kind"], sort=False):
        cells = [t_interval(part[name].dropna()) for name in ("correlation", "same_mask", "lucky_kept")]
        lines.append(
            [model, kind, str(len(part)), *(f"{mean:.2f} [{mean - h:.2f}, {mean + h:.2f}]" for mean, h in cells)]
        )
    return markdown(
        ["policy", "score", "groups", "rank correlation", "masks as the exact", "lucky guesses kept"], lines
    )


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.own_scores", description=__doc__)
    parser.add_argument("--world", choices=tasks.WORLDS, default="guess", help="of the built-in task")
    parser.add_argument("--model", nargs="*", default=["warm_start"], metavar="M", help="run or model folders")
    parser.add_argument("--problems", type=int, default=128, metavar="N", help="of the world's hardest level")
    parser.add_argument("--csv", metavar="FILE", help="write the rows there, one per group and candidate")
    args = parser.parse_args(argv)
    if args.problems < 1:
        fail("--problems must be at least 1")
    if args.csv:
        check_writable("--csv", Path(args.csv))
    world, rows = tasks.WORLDS[args.world], []
    level = world.trained[-1]
    problems = tasks.arithmetic("validation", args.problems, seed=1, levels={level: world.levels[level]})
    for name in args.model:
        torch.manual_seed(0)
        policy, called = load_policy(find_start(name, args.world)), "/".join(Path(name).parts[-2:])
        rows += orderings(policy, problems, args.world, called)
    if not rows:
        fail("no group has right and wrong responses, so nothing to order: use more --problems")
    if args.csv:
        write_rows(rows, Path(args.csv))
    print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()

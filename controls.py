"""Controls: what training would be with one part of the method taken away, or broken on purpose.

A method that beats a baseline may do so for another reason than the one it is named after. Each switch here takes one
such reason apart; the experiments (analysis/experiments.py) run them. None is part of DaGRPO.

    --random-mask           as many positives and negatives are masked in each group as Eq. 8-9 would mask, but at
                            random: is it distinctiveness that helps, or that there are fewer terms?
    --reward-is-score       advantages from S instead of R: is it the mask that helps, or knowing about the steps?
    --score-noise SIGMA     Gaussian noise on S: how bad may a judge be before masking hurts?
    --anchor-flaw steps     anchors whose steps are wrong and whose answer is right: does the mask shield the update?
    --anchor-flaw answer    anchors whose answer is wrong too

    python controls.py    shows each on one problem
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import scoring
import tasks
from rollout import Rollouts
from scoring import Scorer
from tasks import Problem

WRONG, CARRIED, DROPPED, SWAPPED = "wrong result", "wrong, carried", "dropped", "swapped"  # of `corrupt`
FLAWS = ("steps", "answer")


def random_mask(advantages: Tensor, keep: Tensor) -> Tensor:
    """A mask (B, G) that keeps as many positives and as many negatives of each group as `keep` does, at random.

    advantages and keep (B, G). Draws from torch's global random state.
    """
    drawn = torch.zeros_like(keep)
    for side in (advantages > 0, advantages < 0):  # (B, G)
        rank = torch.rand(keep.shape).masked_fill(~side, torch.inf).argsort(dim=1).argsort(dim=1)  # (B, G)
        drawn |= side & (rank < (keep & side).sum(dim=1, keepdim=True))
    return drawn


def score_as_reward(rollouts: Rollouts, scorer: Scorer) -> Tensor:
    """(S - 1) / 9, so that it goes from 0 to 1 as R does: (B, G)."""
    return (scoring.scores(rollouts, scorer) - 1) / 9


def noisy(scorer: Scorer, sigma: float) -> Callable[[list[tuple[Problem, str]]], list[float]]:
    """The scorer with Gaussian noise of this standard deviation on its scores, bounded to [1, 10].

    Draws from torch's global random state, so that a resumed run sees the same noise.
    """

    def scores(pairs: list[tuple[Problem, str]]) -> list[float]:
        exact = torch.tensor(scorer(pairs), dtype=torch.float64)
        return (exact + sigma * torch.randn(exact.shape, dtype=torch.float64)).clamp(1, 10).tolist()

    return scores


def flawed(problems: list[Problem], flaw: str, seed: int = 0) -> list[Problem]:
    """The problems of the built-in task with demonstrations that are wrong; `flaw` is one of FLAWS.

    steps: the result of every step is wrong and the answer right, as in a lucky guess. answer: one step is wrong, the
    error is carried on, and the answer is wrong with it.
    """

    def spoil(problem: Problem) -> str:
        rng = random.Random(f"{problem.question} {flaw} {seed}")
        if flaw == "steps":
            return corrupt(problem, WRONG, "right", len(scoring.steps(problem.demo)), rng)
        return corrupt(problem, CARRIED, "follows", 1, rng)

    return [replace(problem, demo=spoil(problem)) for problem in problems]


def corrupt(problem: Problem, kind: str, answer: str, k: int, rng: random.Random) -> str:
    """The demonstration of a problem of the built-in task with k of its steps corrupted.

    >>> problem = tasks.solve("12+5-3=", "3")
    >>> corrupt(problem, SWAPPED, "right", 2, random.Random(0)), corrupt(problem, DROPPED, "right", 2, random.Random(0))
    ('17+5=12;14-3=17;#14', '#14')
    >>> corrupt(problem, CARRIED, "follows", 1, random.Random(1))
    '12+5=19;19-3=16;#16'
    """
    steps = scoring.steps(problem.demo)
    chosen = set(rng.sample(range(len(steps)), k))
    said, error = [], 0  # error: what is carried on, by which the total is wrong
    for i, step in enumerate(steps):
        first, sign, second, result = map(_number, scoring.STEP.fullmatch(step).groups())
        if kind == CARRIED:
            first, result = first + error, result + error
        if i in chosen and kind in (WRONG, CARRIED):
            wrong_by = rng.randint(1, 9)
            result, error = result + wrong_by, error + wrong_by
        elif i in chosen and kind == SWAPPED:
            first, result = result, first
        if i not in chosen or kind != DROPPED:
            said.append(f"{first}{sign}{second}={result}")
    final = int(problem.answer) + {"right": 0, "wrong": rng.randint(1, 9), "follows": error}[answer]
    return ";".join([*said, f"#{final}"])


def _number(text: str) -> int | str:
    return text if text in "+-" else int(text)


if __name__ == "__main__":
    problem = tasks.solve("12+5-3=", "3")
    print(f"{problem.question}   S of the demonstration {problem.demo}: {scoring.score(problem.demo, problem)}")
    for flaw in FLAWS:
        demo = flawed([problem], flaw)[0].demo
        print(f"  --anchor-flaw {flaw:7s} {demo:22s} S {scoring.score(demo, problem)}")
    some = [(problem, text) for text in (problem.demo, "#14", "12+5=17;17-3=15;#15", "#9")]
    torch.manual_seed(0)
    for sigma in (0.0, 1.0, 3.0):
        print(
            f"  --score-noise {sigma:3.1f}     S",
            "  ".join(f"{s:4.1f}" for s in noisy(scoring.rule_scores, sigma)(some)),
        )
    A, keep = torch.tensor([[0.5, 0.5, -0.5, -0.5]]), torch.tensor([[True, False, False, True]])
    print("  Eq. 8-9 keep", keep.int().tolist()[0], "  --random-mask", random_mask(A, keep).int().tolist()[0])

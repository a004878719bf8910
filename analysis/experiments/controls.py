"""Controls: what training would be with one part of the method taken away, or broken on purpose.

A method that beats a baseline may do so for another reason than the one it is named after. Each control takes one such
reason apart. None is part of DaGRPO; train.py knows none of them: a control is a function that is handed in.

    random_mask        as many positives and negatives are masked in each group as Eq. 8-9 would mask, but at random:
                       is it distinctiveness that helps, or that there are fewer terms? (methods that mask)
    score_as_reward    advantages from S instead of R: is it the mask that helps, or knowing about the steps? (dr_grpo)
    score_noise=SIGMA  Gaussian noise on S: how bad may a judge be before masking hurts? (methods that mask)
    centred            A centred again over the rows that the mask keeps: do pushes that add up to 0 matter?
                       (methods that mask)
    positives          the rows with A > 0 alone: what do negatives do? (methods without a mask)
    sft_bug=KIND       SFT as two bugs make it: sft_bugs.py (sft)
    flawed_steps       anchors whose steps are wrong and whose answer is right: does the mask shield the update?
    flawed_answer      anchors whose answer is wrong too (built-in task; methods with anchors)

    python -m analysis.experiments.controls                                            shows each on one problem
    python -m analysis.experiments.controls random_mask --method dagrpo_on --out DIR   trains with it, flags of train.py
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import scoring
import train
from analysis.experiments.sft_bugs import BUGS, sft_bug
from dagrpo import group_advantages, rectification_mask
from harness.config import Config, parse
from harness.console import fail
from rollout import Groups
from tasks import Problem, solve

WRONG, CARRIED, DROPPED, SWAPPED = "wrong result", "wrong, carried", "dropped", "swapped"  # of `corrupt`
FLAWS = ("steps", "answer")


def positives(groups: Groups) -> Groups:
    """Rows with A > 0 alone. The divisor still counts all rows, as with a mask."""
    return replace(groups, keep=groups.keep & (groups.advantages > 0))


def centred(groups: Groups) -> Groups:
    """A centred again over the kept rows: a mask leaves advantages that no longer add up to 0 (2604.13088)."""
    return replace(groups, advantages=centre(groups.advantages, groups.keep))


def centre(advantages: Tensor, keep: Tensor) -> Tensor:
    """A (B, G), in each group minus its mean over the rows that `keep` (B, G) keeps; other rows are as they were."""
    mean = (advantages * keep).sum(dim=1, keepdim=True) / keep.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    return torch.where(keep, advantages - mean, advantages)


def random_mask(groups: Groups) -> Groups:
    """A mask that keeps as many positives and as many negatives of each group as Eq. 8-9 keep, at random."""
    drawn = random_like(groups.advantages, groups.distinct)
    return replace(groups, distinct=drawn, keep=drawn)


def random_like(advantages: Tensor, keep: Tensor) -> Tensor:
    """A mask (B, G) that keeps as many positives and as many negatives of each group as `keep` does, at random.

    advantages and keep (B, G). Draws from torch's global random state.
    """
    drawn = torch.zeros_like(keep)
    for side in (advantages > 0, advantages < 0):  # (B, G)
        rank = torch.rand(keep.shape).masked_fill(~side, torch.inf).argsort(dim=1).argsort(dim=1)  # (B, G)
        drawn |= side & (rank < (keep & side).sum(dim=1, keepdim=True))
    return drawn


def score_as_reward(groups: Groups, delta: float = 3.0) -> Groups:
    """Advantages from (S - 1) / 9, so that it goes from 0 to 1 as R does. A = 0 in a group with a missing score."""
    missing = groups.scores.isnan().any(dim=1, keepdim=True)  # (B, 1)
    A = group_advantages((groups.scores - 1) / 9).masked_fill(missing, 0.0)  # (B, G)
    return replace(groups, advantages=A, distinct=rectification_mask(A, groups.scores, delta))


def score_noise(groups: Groups, sigma: float, delta: float = 3.0) -> Groups:
    """S with Gaussian noise of this standard deviation, bounded to [1, 10], and the mask that follows from it.

    Draws from torch's global random state, so that a resumed run sees the same noise.
    """
    S = (groups.scores + sigma * torch.randn(groups.scores.shape)).clamp(1, 10)  # (B, G)
    distinct = rectification_mask(groups.advantages, S, delta)
    return replace(groups, scores=S, distinct=distinct, keep=distinct)


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

    >>> problem = solve("12+5-3=", "3")
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


# ---------------------------------------------------------------------------------------- the command line

MASKING = ("random_mask", "score_noise", "centred")
KINDS = (*MASKING, "score_as_reward", "positives", "sft_bug", *(f"flawed_{flaw}" for flaw in FLAWS))


def run(name: str, argv: list[str]) -> None:
    """train.py with the control `name`, as the list at the head of this file spells it."""
    kind, _, value = name.partition("=")
    config = parse(argv)
    check(kind, config)
    if kind == "sft_bug" and value not in BUGS:
        fail(f"{name}: choose from {', '.join(BUGS)}, as in sft_bug={BUGS[0]}")
    if value and kind not in ("sft_bug", "score_noise"):
        fail(f"{name}: {kind} takes no value")
    sigma, delta = read_sigma(value) if kind == "score_noise" else 0.0, config.delta
    control = {
        "random_mask": partial(random_mask),
        "score_as_reward": partial(score_as_reward, delta=delta),
        "score_noise": partial(score_noise, sigma=sigma, delta=delta),
        "centred": partial(centred),
        "positives": partial(positives),
        "sft_bug": partial(sft_bug, kind=value),
        **{f"flawed_{flaw}": partial(flawed, flaw=flaw) for flaw in FLAWS},
    }[kind]
    control.__name__ = name  # what config.json says
    handed_in = {"demonstrate" if kind.startswith("flawed_") else "change": control}
    train.main(argv, **handed_in, score_all=kind == "score_as_reward")


def read_sigma(text: str) -> float:
    try:
        sigma = float(text)
    except ValueError:
        sigma = math.nan
    return (
        sigma if 0 <= sigma < math.inf else fail(f"score_noise={text}: give a standard deviation, as in score_noise=2")
    )


def check(kind: str, config: Config) -> None:
    """A control that the method does not notice would be a run that is taken for another one."""
    if kind not in KINDS:
        fail(f"there is no control {kind}: choose from {', '.join(KINDS)}")
    if kind in MASKING and not config.recipe.rectify:
        fail(f"{kind} is for methods that mask: {config.method} does not")
    if kind == "sft_bug" and config.recipe.rollouts:
        fail(f"sft_bug is for sft: {config.method} has rollouts")
    masks = config.recipe.rectify or config.recipe.soft_mask
    if kind in ("score_as_reward", "positives") and (masks or not config.recipe.rollouts):
        fail(f"{kind} is for methods with rewards and without a mask, such as dr_grpo: not {config.method}")
    if kind.startswith("flawed_") and (not config.recipe.anchors or config.data):
        fail(f"{kind} is for methods with demonstrations on the built-in task: not {config.method} {config.data or ''}")


def show() -> None:
    """Each control on one problem."""
    problem = solve("12+5-3=", "3")
    print(f"{problem.question}   S of the demonstration {problem.demo}: {scoring.score(problem.demo, problem)}")
    for flaw in FLAWS:
        demo = flawed([problem], flaw)[0].demo
        print(f"  flawed_{flaw:7s}  {demo:22s} S {scoring.score(demo, problem)}")
    A, keep = torch.tensor([[0.5, 0.5, -0.5, -0.5]]), torch.tensor([[True, False, False, True]])
    torch.manual_seed(0)
    print("  Eq. 8-9 keep", keep.int().tolist()[0], "  random_mask", random_like(A, keep).int().tolist()[0])


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else show()

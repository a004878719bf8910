r"""What a response is worth: the reward R in {0, 1}, and the fine-grained score S in [1, 10] of Eq. 7, by rule.

R is the paper's reward: is the final answer right, and nothing else (maths/verifier.py). S is what the paper asks of
its judge, GPT-4o: is the answer right, is the reasoning valid, are the steps complete, compared with the demonstration.
The rule scorer computes these three (the weights are ours; the paper gives none):

    S = 1 + 9 * (0.4 right + 0.3 valid + 0.3 complete), rounded to halves

                on the built-in task, where it is exact            on real maths, where it is a rough guide
    right       0 or 1, as `verify`                                the same
    valid       the share of the response's steps that hold        the share of its equations of numbers that hold
    complete    the share of the demonstration's steps that are    the share of the results in the demonstration's
                in the response                                    equations that occur in the response

A response with nothing to check has valid = 0. If the demonstration has no steps or results, complete = right. The left
column applies if the demonstration is written like those of the built-in task: 12+5=17;17-3=14;#14.

A rule can be gamed where a judge might not be: a response can state true equations that lead nowhere. R is safe there.

R and S never share a variable: R makes the advantage, S only decides who is masked (Eq. 8-9).

    python scoring.py    scores a group of eight of the built-in task, and four responses to a word problem
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from math import floor, nan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maths.equations import equations, numbers
from maths.verifier import verify
from tasks import Problem, solve

if TYPE_CHECKING:  # scoring a string needs no transformers
    from rollout import Rollouts

Scorer = Callable[[list[tuple[Problem, str]]], list[float]]  # (problem, response) pairs -> S in [1, 10], NaN: no score

STEP = re.compile(r"(-?[0-9]{1,9})([+-])([0-9]{1,9})=(-?[0-9]{1,9})", re.ASCII)
BUILT_IN = re.compile(rf"(?:{STEP.pattern};)*#-?[0-9]+", re.ASCII)  # a demonstration of the built-in task

# One group of eight, used by all worked examples; the last is the demonstration.
EXAMPLE_PROBLEM = solve("37+48-26=", "5")
EXAMPLE = (
    "37+48=85;85-26=59;#59",
    "#59",  # right, perhaps by luck: it shows no steps
    "37+48=75;85-26=59;#59",
    "37+48=85;85-26=69;#69",
    "37+48=75;75-26=49;#49",
    "#69",
    "#58",
    EXAMPLE_PROBLEM.demo,
)


# ---------------------------------------------------------------------------------------- S by rule


def rule_scores(pairs: list[tuple[Problem, str]]) -> list[float]:
    """The rule scorer, as a Scorer."""
    return [score(response, problem) for problem, response in pairs]


def score(response: str, problem: Problem) -> float:
    """Eq. 7 by rule: S of one response, in [1, 10], a multiple of 1/2. ValueError if the gold answer is unreadable.

    >>> problem = solve("12+5-3=", "2")
    >>> [score(r, problem) for r in ("12+5=17;17-3=14;#14", "#14", "12+5=17;17-3=15;#15", "12+5=18;18-3=14;#14", "#9")]
    [10.0, 4.5, 3.5, 4.5, 1.0]
    >>> problem = Problem("6 boxes of 4 eggs, 3 broken?", "21", "6 * 4 = 24 eggs, and 24 - 3 = 21 are left.", "")
    >>> [score(r, problem) for r in ("6*4 = 24, 24-3 = 21", "It is 21.", "6*4 = 22, 22-3 = 19", "4*6 = 24")]
    [10.0, 6.0, 2.5, 5.0]
    """
    right = Fraction(verify(response, problem.answer))
    parts = _by_steps if BUILT_IN.fullmatch(problem.demo) else _by_equations
    valid, complete = parts(response, problem.demo)
    complete = right if complete is None else complete
    exact = 1 + 9 * (Fraction(4, 10) * right + Fraction(3, 10) * valid + Fraction(3, 10) * complete)
    return floor(2 * exact + Fraction(1, 2)) / 2  # fractions are exact: they round alike on every machine


def _by_steps(response: str, demo: str) -> tuple[Fraction, Fraction | None]:
    """Valid and complete on the built-in task; complete is None if the demonstration has no steps."""
    found, wanted = steps(response), steps(demo)
    valid = Fraction(sum(map(holds, found)), len(found)) if found else Fraction(0)
    there = sum((Counter(found) & Counter(wanted)).values())  # as multisets: repeating a step does not help
    return valid, Fraction(there, len(wanted)) if wanted else None


def _by_equations(response: str, demo: str) -> tuple[Fraction, Fraction | None]:
    """Valid and complete on real maths; complete is None if the demonstration has no equations."""
    found, wanted = equations(response), {equation.result for equation in equations(demo)}
    valid = Fraction(sum(equation.true for equation in found), len(found)) if found else Fraction(0)
    there = len(wanted & numbers(response))
    return valid, Fraction(there, len(wanted)) if wanted else None


def steps(response: str) -> list[str]:
    """The steps of a response to the built-in task: the text before its last #, split at semicolons.

    >>> steps("12+5=17;17-3=14;#14"), steps("#14")
    (['12+5=17', '17-3=14'], [])
    """
    worked, mark, _ = response.rpartition("#")
    return [step for step in (worked if mark else response).split(";") if step]


def holds(step: str) -> bool:
    """Is this one addition or subtraction, and is its result right?

    >>> holds("12+5=17"), holds("12+5=18"), holds("12+5")
    (True, False, False)
    """
    match = STEP.fullmatch(step)
    if not match:
        return False
    left, sign, right, result = match.groups()
    return int(result) == int(left) + (int(right) if sign == "+" else -int(right))


# ---------------------------------------------------------------------------------------- R and S of a step's rollouts


def rewards(rollouts: Rollouts) -> Tensor:
    """R (B, G) of every response, anchors included. One that was cut off is right only if its answer is marked."""
    rows = zip(_pairs(rollouts), rollouts.ended.tolist(), strict=True)
    values = [float(verify(text, problem.answer, ended)) for (problem, text), ended in rows]
    return torch.tensor(values).view(len(rollouts.problems), -1)


def scores(rollouts: Rollouts, scorer: Scorer = rule_scores, where: Tensor | None = None) -> Tensor:
    """S (B, G) of the responses where `where`, bool (B, G), is True, or of all if it is None; NaN elsewhere.

    An anchor is judged like any response, never assumed to be a 10.
    """
    pairs = _pairs(rollouts)
    asked = range(len(pairs)) if where is None else where.flatten().nonzero().flatten().tolist()
    values = scorer([pairs[n] for n in asked])
    S = torch.full((len(pairs),), nan)  # (N,)
    for n, value in zip(asked, values, strict=True):
        S[n] = value
    return S.view(len(rollouts.problems), -1)


def _pairs(rollouts: Rollouts) -> list[tuple[Problem, str]]:
    """(problem, response) of each of the N rows."""
    rows = zip(rollouts.group.tolist(), rollouts.texts, strict=True)
    return [(rollouts.problems[b], text) for b, text in rows]


def overlong_penalty(rollouts: Rollouts, max_new_tokens: int, buffer: int) -> Tensor:
    """DAPO's soft penalty (B, G), added to R: 0 down to -1 over the last `buffer` tokens. Buffer 0: zeros (B, 1)."""
    if not buffer:
        return torch.zeros(len(rollouts.problems), 1)
    over = rollouts.lengths - (max_new_tokens - buffer)  # (N,)
    return -(over / buffer).clamp(0, 1).view(len(rollouts.problems), -1).cpu()


if __name__ == "__main__":
    eggs = Problem(
        "Each of 16 hens lays 2 eggs a day. How many dozens is that in 9 days?",
        "24",
        "16 * 2 = 32 eggs a day. 9 * 32 = 288 in all. That is 288 / 12 = 24.\n#### 24",
        "",
    )
    about_eggs = (
        "2 * 9 = 18 eggs of each hen, 18 * 16 = 288 of all, 288/12 = 24. The answer is $\\boxed{24}$.",
        "The answer is $\\boxed{24}$.",
        "16 * 2 = 32 and 9 * 32 = 288. The answer is $\\boxed{288}$.",
        "16 * 2 = 32 and 9 * 32 = 278, so 278 / 12 = 23.17. The answer is $\\boxed{23.17}$.",
    )
    for problem, responses in ((EXAMPLE_PROBLEM, EXAMPLE), (eggs, about_eggs)):
        print(f"\nquestion {problem.question}   answer {problem.answer}")
        print(f"demonstration {problem.demo!r}\n\nR     S  response")
        for text in responses:
            print(f"{verify(text, problem.answer):d}  {score(text, problem):4.1f}  {text}")

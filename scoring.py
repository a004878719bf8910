"""What a response is worth: the reward R in {0, 1}, and the fine-grained score S in [1, 10] of Eq. 7, by rule.

R (`verify`) is the paper's reward: is the final answer right, nothing else. S is what the paper asks of its judge,
GPT-4o: right answer, valid reasoning, complete steps, with the demonstration as the standard. On the built-in task all
three can be computed, so the judge here is exact (the weights are ours; the paper gives none):

    S = 1 + 9 * (0.4 right + 0.3 valid + 0.3 complete), rounded to halves
    right     0 or 1, as `verify`
    valid     the share of the response's steps that hold (0 without steps)
    complete  the share of the demonstration's steps that are there

R and S never share a variable: R makes the advantage, S only decides who is masked (Eq. 8-9).

    python scoring.py    scores a group of eight
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from math import floor

import torch
from torch import Tensor

import tasks
from rollout import Rollouts

NUMBER = re.compile(r"-?[0-9]+", re.ASCII)
STEP = re.compile(r"(-?[0-9]{1,9})([+-])([0-9]{1,9})=(-?[0-9]{1,9})", re.ASCII)


def verify(response: str, answer: str) -> bool:
    """The reward: is the number behind the response's last # the answer? A response without one is wrong.

    Raises ValueError if `answer` is not a whole number: an unreadable gold answer must never match anything.

    >>> verify("12+5=17;17-3=14;#14", "14"), verify("#014", "14"), verify("14", "14"), verify("#14;", "14")
    (True, True, False, False)
    """
    gold = _whole_number(answer)
    if gold is None:
        raise ValueError(f"the gold answer {answer[:80]!r} is not a whole number")
    _, mark, final = response.rpartition("#")
    return bool(mark) and _whole_number(final) == gold


def _whole_number(text: str) -> str | None:
    """The number in its one spelling, or None. Text, not int: a response may hold more digits than int() takes."""
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return None
    digits = text.lstrip("-").lstrip("0") or "0"
    return digits if digits == "0" or not text.startswith("-") else f"-{digits}"


def steps(response: str) -> list[str]:
    """The steps of a response: what stands before its last #, cut at semicolons.

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


def score(response: str, problem: tasks.Problem) -> float:
    """Eq. 7 by rule: S of one response, in [1, 10], a multiple of 1/2.

    >>> problem = tasks.solve("12+5-3=", "2")
    >>> [score(r, problem) for r in ("12+5=17;17-3=14;#14", "#14", "12+5=17;17-3=15;#15", "12+5=18;18-3=14;#14", "#9")]
    [10.0, 4.5, 3.5, 4.5, 1.0]
    """
    found, wanted = steps(response), steps(problem.demo)
    right = Fraction(verify(response, problem.answer))
    valid = Fraction(sum(map(holds, found)), len(found)) if found else Fraction(0)
    there = sum((Counter(found) & Counter(wanted)).values())  # as multisets: a step said twice is one step
    complete = Fraction(there, len(wanted)) if wanted else right
    exact = 1 + 9 * (Fraction(4, 10) * right + Fraction(3, 10) * valid + Fraction(3, 10) * complete)
    return floor(2 * exact + Fraction(1, 2)) / 2  # exact fractions: a half is a half, on every machine


def rewards(rollouts: Rollouts) -> Tensor:
    """R (B, G) of every response, anchors included."""
    return _per_row(rollouts, lambda response, problem: float(verify(response, problem.answer)))


def scores(rollouts: Rollouts) -> Tensor:
    """S (B, G) of every response, anchors included: an anchor is judged like any response, never assumed a 10."""
    return _per_row(rollouts, score)


def overlong_penalty(rollouts: Rollouts, max_new_tokens: int, buffer: int) -> Tensor:
    """DAPO's soft penalty (B, G), added to R by flag: from 0 down to -1 over the last `buffer` tokens. 0: none."""
    if not buffer:
        return torch.zeros(len(rollouts.problems), 1)
    over = rollouts.lengths - (max_new_tokens - buffer)  # (N,)
    return -(over / buffer).clamp(0, 1).view(len(rollouts.problems), -1).cpu()


def _per_row(rollouts: Rollouts, value: Callable[[str, tasks.Problem], float]) -> Tensor:
    rows = zip(rollouts.texts, rollouts.group.tolist(), strict=True)
    values = [value(text, rollouts.problems[b]) for text, b in rows]
    return torch.tensor(values).view(len(rollouts.problems), -1)


if __name__ == "__main__":
    example = tasks.solve("37+48-26=", "5")
    print(f"question {example.question}   answer {example.answer}   demonstration {example.demo}\n\nR     S  response")
    for text in (
        example.demo,
        "#59",
        "37+48=75;85-26=59;#59",
        "37+48=85;85-26=69;#69",
        "37+48=75;75-26=49;#49",
        "37+48=75;75-26=59;#69",
        "#58",
        "37+48=85;85-26=5",
    ):
        print(f"{verify(text, example.answer):d}  {score(text, example):4.1f}  {text}")

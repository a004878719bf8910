"""What a problem is, and the built-in arithmetic: chains of additions and subtractions.

    12+5-3=    ->    12+5=17;17-3=14;#14     the worked demonstration ("stepwise")
               ->    #14                     the answer alone ("direct")

The paper trains on 46,000 mathematics problems with demonstrations by DeepSeek-R1. This arithmetic replaces them on a
laptop and keeps what the method needs: easy levels on which the responses of a group look alike, hard levels that the
starting policy hardly ever solves, demonstrations whose steps can be checked one by one, and two styles of answering,
so that the length of a response is the policy's own choice.

Everything here is a function of its arguments: the same seed gives the same problems on every machine.

    python tasks.py     prints a problem of every level of every world
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One problem, of the built-in task or of a data set.

    `demo`, the demonstration, is a whole correct response (Section 6: a stronger model's; here the worked solution). It
    is the scorer's reference and the anchor. `level` groups problems in tables and plots.
    """

    question: str
    answer: str
    demo: str
    level: str


@dataclass(frozen=True)
class Form:
    """What the problems of a level look like: this many operands, each between `smallest` and `largest`.

    With a modulus the answer is the total modulo it, so that a bare guess is right one time in `modulus`.
    """

    operands: int
    smallest: int
    largest: int
    modulus: int = 0  # 0: the answer is the total


LEVELS = {
    "1": Form(operands=2, smallest=1, largest=20),
    "2": Form(operands=3, smallest=1, largest=10),
    "3": Form(operands=3, smallest=1, largest=20),
    "4": Form(operands=4, smallest=1, largest=20),
    "5": Form(operands=5, smallest=1, largest=30),
}
# Out of distribution: forms that the warm start has seen a little of and that RL never trains on.
OOD_LEVELS = {
    "ood-long": Form(operands=6, smallest=1, largest=10),
    "ood-large": Form(operands=3, smallest=31, largest=40),
}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class World:
    """Problems and a starting policy that make one regime of the paper visible; docs/worlds.md says which."""

    shows: str
    levels: dict[str, Form]
    ood: dict[str, Form]
    trained: tuple[str, ...]  # levels that RL trains on, unless --levels says otherwise
    start: dict[str, Any]  # fields of harness.warm_start.WarmStart that are not its defaults


def guessable(modulus: int) -> World:
    """A world in which a bare guess is right one time in `modulus`."""
    levels, ood = ({n: replace(form, modulus=modulus) for n, form in at.items()} for at in (LEVELS, OOD_LEVELS))
    start = {"steps": 900, "level_weights": (2, 2, 2, 1, 0.3), "ood_share": 0.05}
    shows = f"right answers without right steps: one guess in {modulus} is right, and R rewards luck"
    return World(shows, levels, ood, ("5",), start)


WORLDS = {
    "plain": World("some levels easy, some hard, none guessable", LEVELS, OOD_LEVELS, tuple(LEVELS), {}),
    "guess": guessable(3),
    **{f"guess{modulus}": guessable(modulus) for modulus in (2, 5, 7, 10)},  # for experiments
    "unseen": World(
        "levels that the start has hardly seen: whole groups are wrong, and on level 5 only demonstrations teach",
        LEVELS,
        OOD_LEVELS,
        tuple(LEVELS),
        {"steps": 1200, "level_weights": (2, 2, 2, 0.02, 0), "direct_share": 0.3},
    ),
}


def split_of(question: str) -> str:
    """The one split that a question belongs to: a hash of its text decides (70 / 10 / 20 %), whatever seed drew it.

    So the splits are disjoint for all seeds, and no lists have to be compared.

    >>> split_of("12+5-3="), split_of("46-35=")
    ('train', 'test')
    """
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 10
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def arithmetic(split: str, per_level: int, seed: int = 0, levels: dict[str, Form] = LEVELS) -> list[Problem]:
    """`per_level` different problems of every level, all of one split, in a fixed order.

    `levels=OOD_LEVELS` gives the out-of-distribution problems: its "test" split is what eval.py asks, its "train"
    split is the little that the warm start sees. Raises ValueError for an unknown split, or if a level has too few
    different questions.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    problems = []
    for level, form in levels.items():
        rng = random.Random(f"{split} {level} {seed}")
        found: dict[str, Problem] = {}
        for _ in range(200 * per_level):
            problem = draw(rng, level, form)
            if split_of(problem.question) == split:
                found.setdefault(problem.question, problem)
            if len(found) == per_level:
                break
        if len(found) < per_level:
            raise ValueError(f"level {level} has no {per_level} different questions in the split {split!r}")
        problems += found.values()
    return problems


def direct(problem: Problem) -> str:
    """The response without steps: the other style that the warm start teaches.

    >>> direct(solve("12+5-3=", "2"))
    '#14'
    """
    return f"#{problem.answer}"


def solve(question: str, level: str, modulus: int = 0) -> Problem:
    """The problem that a question poses, worked from left to right; with a modulus the answer is the total modulo it.

    >>> solve("12+5-3=", "2")
    Problem(question='12+5-3=', answer='14', demo='12+5=17;17-3=14;#14', level='2')
    >>> solve("12+5-3=", "2", modulus=3).demo
    '12+5=17;17-3=14;#2'
    """
    numbers = [int(n) for n in question.rstrip("=").replace("-", "+").split("+")]
    signs = [c for c in question if c in "+-"]
    total, steps = numbers[0], []
    for sign, number in zip(signs, numbers[1:], strict=True):
        result = total + number if sign == "+" else total - number
        steps.append(f"{total}{sign}{number}={result}")
        total = result
    answer = total % modulus if modulus else total
    return Problem(question, str(answer), ";".join([*steps, f"#{answer}"]), level)


def draw(rng: random.Random, level: str, form: Form) -> Problem:
    """One random chain. It subtracts at most the total, so no total is negative: a minus sign would be a new skill."""
    total = rng.randint(form.smallest, form.largest)
    question = str(total)
    for _ in range(form.operands - 1):
        number = rng.randint(form.smallest, form.largest)
        sign = "-" if number <= total and rng.random() < 0.5 else "+"
        total += number if sign == "+" else -number
        question += f"{sign}{number}"
    return solve(question + "=", level, form.modulus)


if __name__ == "__main__":
    for name, world in WORLDS.items():
        print(f"\nworld {name}: {world.shows}")
        for problem in arithmetic("train", per_level=1, levels=world.levels | world.ood):
            print(f"  level {problem.level:9s} {problem.question:28s} {problem.demo}")

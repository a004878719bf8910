r"""Problems that a small real model can learn by RL on a laptop: Countdown, and chains of sums in plain English.

    countdown   Use each of the numbers 4, 6, 7 once, with + - * / and parentheses, to make 17.
    chains      What is 12 + 5 - 3 + 8?

Both are written as rows with the columns of a usual data set (problem, answer, solution, level) for --data. The same
seed gives the same rows on every machine, and a hash of the question decides its split, as in tasks.py.

A Countdown has many right answers. Its `answer` is a goal, `17 from 4, 6, 7`, and the verifier asks `solves`: does the
expression use exactly these numbers, each once, and is it worth 17? maths.equations computes its value, never Python's
eval. The demonstration is the first way that a search finds, so that equal questions have equal demonstrations.

    python -m maths.puzzles chains --sizes 3,4 --count 1000 --out chains.jsonl
    python -m maths.puzzles countdown --sizes 3 --largest 9 --split test --count 200 --out countdown_test.jsonl
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from pathlib import Path

import tasks
from harness.console import Parser, fail, first_line
from maths.equations import TOKEN, plain, value

GOAL = re.compile(r"(-?\d{1,9}) from (\d{1,9}(?:, ?\d{1,9}){0,9})", re.ASCII)
LONGEST = 200  # characters of an expression
MOST_NUMBERS, MOST_TOTAL = 6, 99  # a search over 7 numbers takes minutes
TRIES = 10_000  # after so many draws in a row without a new problem, give up; small forms run out of questions


# ---------------------------------------------------------------------------------------- Countdown


def solves(expression: str, goal: str) -> bool:
    r"""Does the expression make the goal's total from its numbers, each used once? False if it is no expression.

    It may end with its value, as in `= 17`. Raises ValueError if `goal` is not a goal of a Countdown.

    >>> goal = "17 from 4, 6, 7"
    >>> [solves(text, goal) for text in ("4 + 6 + 7", r"(4+6) \cdot 1 + 7", "7 + 6 + 4 = 17", "17")]
    [True, False, True, False]
    """
    match = GOAL.fullmatch(goal)
    if not match:
        raise ValueError(f"not a goal of a Countdown, such as '17 from 4, 6, 7': {goal[:80]!r}")
    total, numbers = int(match[1]), sorted(int(number) for number in match[2].split(","))
    if len(expression) > LONGEST:
        return False
    made, *said = (TOKEN.findall(side) if _is_calculation(side) else [] for side in plain(expression).split("="))
    used = [token for token in made if token[-1].isdigit()]
    if "%" in made or not all(token.isdecimal() for token in used) or sorted(map(int, used)) != numbers:
        return False
    return all(value(side) == total for side in (made, *said))


def _is_calculation(text: str) -> bool:
    return re.fullmatch(r"[-+*/()\d.\s]+", text, re.ASCII) is not None


def search(numbers: list[tuple[int, str]], total: int) -> list[tuple[str, str]] | None:
    """The first way to make the total from all the numbers, each given as (value, expression that it comes from).

    Its steps as (calculation, expression so far); None if there is no way. No step gives a fraction or less than 0.

    >>> search([(4, "4"), (6, "6"), (7, "7")], 17)
    [('4 + 6 = 10', '4 + 6'), ('10 + 7 = 17', '(4 + 6) + 7')]
    """
    if len(numbers) == 1:
        return [] if numbers[0][0] == total else None
    for (i, a), (j, b) in permutations(enumerate(numbers), 2):
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for sign, result in combine(a[0], b[0], in_order=i < j):
            text = f"{bracketed(a[1])} {sign} {bracketed(b[1])}"
            found = search([(result, text), *rest], total)
            if found is not None:
                return [(f"{a[0]} {sign} {b[0]} = {result}", text), *found]
    return None


def combine(a: int, b: int, in_order: bool = True) -> Iterator[tuple[str, int]]:
    """What a and b can make, as (sign, result): sum and product only if `in_order`, nothing below 0, no fraction."""
    if in_order:
        yield "+", a + b
    if a >= b:
        yield "-", a - b
    if in_order:
        yield "*", a * b
    if b > 1 and a % b == 0:
        yield "/", a // b


def bracketed(expression: str) -> str:
    return f"({expression})" if " " in expression else expression


def countdown(rng: random.Random, size: int, largest: int) -> dict[str, str]:
    """A random problem: the total comes from combining the numbers in a random way, so there is a solution."""
    while True:
        numbers = [rng.randint(1, largest) for _ in range(size)]
        total, *rest = rng.sample(numbers, size)
        for number in rest:
            total = rng.choice([result for _, result in combine(total, number)])
        if 0 < total <= MOST_TOTAL:
            break
    listed = ", ".join(map(str, numbers))
    question = f"Use each of the numbers {listed} once, with + - * / and parentheses, to make {total}."
    steps = search([(number, str(number)) for number in numbers], total)
    lines = [calculation for calculation, _ in steps]
    solution = "\n".join([*lines, f"#### {steps[-1][1]}"])
    return {"problem": question, "answer": f"{total} from {listed}", "solution": solution, "level": str(size)}


# ---------------------------------------------------------------------------------------- chains


def chain(rng: random.Random, size: int, largest: int) -> dict[str, str]:
    """A chain of tasks.py, in English.

    >>> print(chain(random.Random(0), 3, 20)["solution"])
    13 + 14 = 27
    27 - 2 = 25
    #### 25
    """
    problem = tasks.draw(rng, str(size), tasks.Form(size, 1, largest))
    *steps, _ = problem.demo.split(";")
    calculation, *lines = (re.sub(r"([-+=])", r" \1 ", text) for text in (problem.question.rstrip("="), *steps))
    solution = "\n".join([*lines, f"#### {problem.answer}"])
    return {"problem": f"What is {calculation}?", "answer": problem.answer, "solution": solution, "level": str(size)}


KINDS: dict[str, Callable[[random.Random, int, int], dict[str, str]]] = {"countdown": countdown, "chains": chain}


def rows(kind: str, sizes: list[int], count: int, split: str, seed: int = 0, largest: int = 20) -> list[dict[str, str]]:
    """`count` different problems of one split, equally many of each size. Raises ValueError if there are too few."""
    made: dict[str, dict[str, str]] = {}
    per_size = [count // len(sizes) + (i < count % len(sizes)) for i in range(len(sizes))]
    for size, wanted in zip(sizes, per_size, strict=True):
        rng, before = random.Random(f"{kind} {split} {size} {largest} {seed}"), len(made)
        draw = partial(KINDS[kind], rng, size, largest)
        misses = 0  # draws since the last new problem
        while len(made) - before < wanted and misses < TRIES:
            row, misses = draw(), misses + 1
            if tasks.split_of(row["problem"]) == split and row["problem"] not in made:
                made[row["problem"]], misses = row, 0
        if len(made) - before < wanted:
            raise ValueError(f"there are no {wanted} different {kind} of size {size} up to {largest} in {split}")
    drawn = list(made.values())
    random.Random(f"{kind} {seed}").shuffle(drawn)
    return drawn


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m maths.puzzles", description=__doc__)
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=f"{' or '.join(KINDS)}")
    parser.add_argument("--sizes", default="3", metavar="N,..", help="how many numbers a problem has")
    parser.add_argument("--largest", type=int, default=20, metavar="N", help="numbers are from 1 to N")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="problems, all sizes together")
    parser.add_argument("--split", default="train", choices=tasks.SPLITS, help="splits have no question in common")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--out", metavar="FILE.jsonl", help="where to write; without it a few are shown")
    args = parser.parse_args(argv)
    try:
        sizes = [int(size) for size in args.sizes.split(",")]
    except ValueError:
        fail(f"--sizes must be numbers with commas between them, not {args.sizes}")
    if not all(2 <= size <= MOST_NUMBERS for size in sizes) or args.largest < 2 or args.count < len(sizes):
        fail(f"--sizes must be from 2 to {MOST_NUMBERS}, --largest at least 2, --count at least one for each size")
    try:
        made = rows(args.kind, sizes, args.count, args.split, args.seed, args.largest)
        if args.out:
            lines = "".join(f"{json.dumps(row)}\n" for row in made)
            Path(args.out).write_text(lines, encoding="utf-8")
    except ValueError as error:
        fail(f"{error}; take a larger --largest or a smaller --count")
    except OSError as error:
        fail(f"--out {args.out}: cannot be written ({first_line(error)})")
    for row in made[:3]:
        print(f"\n{row['problem']}\n{row['solution']}\n(answer: {row['answer']})")
    print(f"\n{len(made)} problems" + (f" in {args.out}. Next: python -m maths.data {args.out}" if args.out else ""))


if __name__ == "__main__":
    main()

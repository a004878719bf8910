"""Is an exercise right? Each check tries small cases, and says what is wrong, with the case that shows it.

python -m lessons.check 3              the third exercise of lessons/exercises.py
python -m lessons.check                all of them
python -m lessons.check --solutions    lessons/solutions.py instead, which the tests run too
"""

from __future__ import annotations

import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.console import Parser, fail
from lessons import exercises, solutions
from lessons.cases import CASES, Case, random_mask

NAMES = list(CASES)


def check(number: int, where: ModuleType) -> str | None:
    """What is wrong with exercise `number` in this module, in words. "": nothing; None: it is not written yet."""
    name = NAMES[number - 1]
    function = getattr(where, name)
    try:
        if name == "random_mask":
            return random_mask(function)
        for case in CASES[name]():
            if answer := compare(function(*case.inputs), case, list(inspect.signature(function).parameters)):
                return answer
    except NotImplementedError:
        return None
    except Exception as error:  # whatever a student's code may do
        place = traceback.extract_tb(error.__traceback__)[-1]
        hint = "; a and b are lists: turn them into arrays first" if name == "paired_interval" else ""
        where_to_look = f"{Path(place.filename).name}, line {place.lineno}"
        return f"it stopped with {type(error).__name__}: {error} ({where_to_look}){hint}"
    return ""


def compare(found: Any, case: Case, names: list[str]) -> str:
    """What is wrong with this result of a case, and the case itself; "" if the result is right."""
    if found is None:
        return "it gives None: is there a return?"
    try:
        result, wanted = as_tensor(found), as_tensor(case.wanted)
    except (TypeError, ValueError, RuntimeError):
        return f"it gives {type(found).__name__}, not numbers"
    if same(result, wanted):
        return ""
    why = next((words.strip() for words, value in case.mistakes.items() if same(result, as_tensor(value))), "")
    if result.shape != wanted.shape:
        why = f"its shape is {tuple(result.shape)}, not {tuple(wanted.shape)}"
    elif wanted.dtype == torch.bool != result.dtype and same(result.bool(), wanted):
        why = f"the values are right, but their type is {result.dtype}; return a bool tensor"
    elif not why:
        place = (~close(result, wanted)).nonzero()
        why = "some values differ" + (f", the first at {place[0].tolist()}" if wanted.dim() else "")
    inputs = "\n".join(f"    {name} = {show(value)}" for name, value in zip(names, case.inputs, strict=False))
    return f"{why}\n  for\n{inputs}\n  it gives\n    {show(found)}\n  but should give\n    {show(case.wanted)}"


def as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=float))


def close(a: Tensor, b: Tensor) -> Tensor:
    return torch.isclose(a.double(), b.double(), rtol=1e-4, atol=1e-6, equal_nan=True)


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.dtype == torch.bool) == (b.dtype == torch.bool) and bool(close(a, b).all())


def show(value: Any) -> str:
    """Rounded, and a matrix row by row."""
    if isinstance(value, Tensor) and value.dtype != torch.bool:
        value = value.double().round(decimals=4)
    if isinstance(value, Tensor) and value.dim() > 1:
        return "\n      ".join(["", *map(str, value.tolist())])
    if isinstance(value, tuple | list):
        return str([round(float(x), 4) for x in value])
    return str(value.tolist() if isinstance(value, Tensor) else value)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m lessons.check", description=__doc__)
    parser.add_argument("number", nargs="?", type=int, metavar="N", help="1 to 12")
    parser.add_argument("--solutions", action="store_true", help="check lessons/solutions.py")
    args = parser.parse_args(argv)
    if args.number is not None and not 1 <= args.number <= len(CASES):
        fail(f"there are exercises 1 to {len(CASES)}, not {args.number}")
    wrong = 0
    for number in [args.number] if args.number else range(1, len(CASES) + 1):
        answer = check(number, solutions if args.solutions else exercises)
        wrong += answer is None or answer != ""
        said = "not written yet" if answer is None else f"wrong: {answer}" if answer else "right"
        print(f"{number:2d} {NAMES[number - 1]}: {said}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""What programs share that ask a policy questions of a world's trained levels: their flags, and a CSV of their rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tasks
from analysis.saved import check_writable, write_rows
from harness.console import Parser, fail, progress
from harness.warm_start import find_start
from policy import Policy, load_policy

Measure = Callable[[Policy, tasks.Problem, str], list[Any]]  # policy, question, world -> rows; none without signal


def ask(
    parser: Parser, measure: Measure, world: str, questions: int, argv: list[str] | None
) -> tuple[pd.DataFrame, str]:
    """The rows of all questions, and the world. `world` and `questions` are the flags' defaults.

    Ends the program with one line for a bad flag, and where no question gave a row.
    """
    parser.add_argument("--world", choices=tasks.WORLDS, default=world, help="of the built-in task")
    parser.add_argument("--model", metavar="ID_OR_DIR", help="a run or model folder; without it the world's warm start")
    parser.add_argument("--questions", type=int, default=questions, metavar="N", help="of the levels that RL trains on")
    parser.add_argument("--csv", metavar="FILE", help="also write the rows there")
    args = parser.parse_args(argv)
    if args.questions < 1:
        fail("--questions must be at least 1")
    if args.csv:
        check_writable("--csv", Path(args.csv))
    levels = {name: tasks.WORLDS[args.world].levels[name] for name in tasks.WORLDS[args.world].trained}
    policy = load_policy(find_start(args.model, args.world))
    torch.manual_seed(0)
    asked = tasks.arithmetic("train", -(-args.questions // len(levels)), seed=1, levels=levels)[: args.questions]
    rows = [row for problem in progress(asked, desc="questions") for row in measure(policy, problem, args.world)]
    if not rows:
        fail("no question had right and wrong responses: use more --questions")
    if args.csv:
        write_rows(rows, Path(args.csv))
    return pd.DataFrame(rows), args.world

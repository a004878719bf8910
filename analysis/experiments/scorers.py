"""How well does a scorer order responses? The rank correlation of its scores with the number of corrupted steps.

The mask of DaGRPO (Eq. 8-9) trusts a score to tell a better response from a worse one. On the built-in task we know
which is better: the demonstrations are right in every step, and a response with more of its steps corrupted is worse.
Each demonstration is corrupted in k = 0, 1, 2, ... randomly chosen steps, in one of four ways:

    wrong result     12+5=17  ->  12+5=19, the next step goes on from 17
    wrong, carried   12+5=17  ->  12+5=19, the next step goes on from 19, and so does the final answer
    dropped          the step is left out
    swapped          12+5=17  ->  17+5=12, the first number and the result change places

All but `carried` come once with a right and once with a wrong final answer. The scorers: the rule as on the built-in
task; the rule as on real maths, where it sees equations and does not know the task; R, the reward alone, as a baseline
that ignores the steps; and judges, if flags name them.

    python -m analysis.experiments.scorers [--csv FILE] [--judge-model ID_OR_DIR] [--judge-url URL --judge-name NAME]
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

import scoring
import tasks
from analysis.experiments.controls import CARRIED, DROPPED, SWAPPED, WRONG, corrupt
from analysis.saved import check_writable
from analysis.stats import spearman
from harness.console import Parser, fail, first_line, progress
from judges.endpoint import Endpoint
from judges.http import http_judge
from judges.local import local_judge
from judges.prompt import Counters, JudgeDown
from policy import load_policy
from scoring import Scorer
from tasks import Problem

KINDS = [(kind, answer) for kind in (WRONG, DROPPED, SWAPPED) for answer in ("right", "wrong")] + [(CARRIED, "follows")]
LEVELS = ("3", "4", "5")  # of two steps and more


@dataclass(frozen=True)
class Case:
    """One corrupted demonstration."""

    kind: str
    answer: str  # "right", "wrong" or "follows"
    corrupted: int  # k
    problem: Problem
    response: str


def build_cases(per_level: int, seed: int) -> list[Case]:
    """`per_level` problems per level with every kind of corruption, from no corrupted step to all of them."""
    cases = []
    levels = {name: tasks.LEVELS[name] for name in LEVELS}
    for problem in tasks.arithmetic("test", per_level, seed, levels):
        for kind, answer in KINDS:
            for k in range(len(scoring.steps(problem.demo)) + 1):
                rng = random.Random(f"{problem.question} {kind} {answer} {k} {seed}")
                cases.append(Case(kind, answer, k, problem, corrupt(problem, kind, answer, k, rng)))
    return cases


def reward_only(pairs: list[tuple[Problem, str]]) -> list[float]:
    """The baseline: a right response is a 10, a wrong one a 1."""
    return [10.0 if scoring.verify(response, problem.answer) else 1.0 for problem, response in pairs]


def rule_of_maths(pairs: list[tuple[Problem, str]]) -> list[float]:
    """The rule scorer as for real maths: a demonstration with spaces in it is not one of the built-in task."""
    return scoring.rule_scores([(replace(p, demo=p.demo.replace(";", "; ")), response) for p, response in pairs])


def measure(cases: list[Case], scorers: dict[str, Scorer]) -> pd.DataFrame:
    """A row for each kind of corruption and one for all of them: the number of cases, and each scorer's correlation.

    Cases without a score (NaN) are left out, and counted in `NAME missing` if there are any.
    """
    pairs = [(case.problem, case.response) for case in cases]
    columns = {name: scorer(pairs) for name, scorer in progress(scorers.items(), desc="scorers")}
    table = pd.DataFrame(columns, dtype=float)  # (cases, scorers)
    about = pd.DataFrame([(case.kind, case.answer, case.corrupted) for case in cases], columns=["kind", "answer", "k"])
    rows = []
    for kind, answer in [*KINDS, ("all", "")]:
        chosen = (kind == "all") | ((about["kind"] == kind) & (about["answer"] == answer))
        row: dict[str, Any] = {"corruption": kind, "answer": answer, "cases": chosen.sum()}
        for name, scores in table[chosen].items():
            there = scores.dropna()
            row[name] = spearman(about["k"][there.index], there)
            if table[name].isna().any():
                row[f"{name} missing"] = len(scores) - len(there)
        rows.append(row)
    return pd.DataFrame(rows)


def correlations(rows: pd.DataFrame) -> str:
    """The result of `measure` as text."""
    shown = rows.to_string(index=False, float_format="{:+.2f}".format, na_rep="-")
    return f"{shown}\n-1: the more steps are corrupted, the lower the score; 0: no relation; -: all scores alike"


def load_judge(name: str) -> Scorer:
    """The local judge by the model of --judge-model."""
    try:
        return local_judge(load_policy(name), Counters())
    except (OSError, ValueError) as error:
        fail(f"--judge-model {name} cannot be loaded: {first_line(error)}")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.scorers", description=__doc__)
    parser.add_argument("--per-level", type=int, default=30, metavar="N", help="problems of each level (split test)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the problems and of what is corrupted")
    parser.add_argument("--csv", metavar="FILE", help="also write the table there")
    parser.add_argument("--judge-model", metavar="ID_OR_DIR", help="also the local judge by this causal LM")
    parser.add_argument("--judge-url", metavar="URL", help="also the judge at this OpenAI-compatible endpoint")
    parser.add_argument("--judge-name", metavar="NAME", help="the endpoint's name of the model")
    parser.add_argument("--judge-cache", metavar="FILE", help="its scores by content, so that none is paid for twice")
    args = parser.parse_args(argv)
    if not 1 <= args.per_level <= 1000:
        fail(f"--per-level must be from 1 to 1000, not {args.per_level}")
    if bool(args.judge_url) != bool(args.judge_name):
        fail("--judge-url and --judge-name go together: give both, or neither")
    if args.csv:
        check_writable("--csv", Path(args.csv))
    scorers: dict[str, Scorer] = {"rule": scoring.rule_scores, "rule of maths": rule_of_maths, "R only": reward_only}
    if args.judge_model:
        scorers["local judge"] = load_judge(args.judge_model)
    if args.judge_url:
        cache = Path(args.judge_cache) if args.judge_cache else None
        scorers["HTTP judge"] = http_judge(Endpoint(args.judge_url, args.judge_name, cache), Counters())
    try:
        rows = measure(build_cases(args.per_level, args.seed), scorers)
    except JudgeDown as error:
        fail(str(error))
    print(correlations(rows))
    if args.csv:
        rows.to_csv(args.csv, index=False, na_rep="nan", lineterminator="\n")


if __name__ == "__main__":
    main()

"""The table of results: what each method cost, and the greedy accuracy of its policy, level by level.

One row per method: the mean over its seeds, and +- half the 95 % t-interval of that mean if there are several. The
accuracies are those that eval.py has written to RUN/eval.json; costs are summed over metrics.csv. The best accuracy of
each column has a star. Runs of one method that differ in a flag are rows of their own, with the flag in the name.

    python eval.py --model runs/dagrpo
    python -m analysis.table runs/dr_grpo runs/dagrpo --baseline "runs/start.json:warm start"
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_folders import SavedRun, by_method, read_runs
from analysis.stats import t_interval
from harness.console import Parser, fail, first_line

COSTS = ("steps", "responses", "seconds")  # the other columns are greedy accuracies
Row = dict[str, Any]  # method; column -> mean over seeds, and `COLUMN half-width`, for the columns it has


@dataclass(frozen=True)
class Eval:
    """A result of eval.py: greedy accuracy by column, and what it was measured on."""

    scores: dict[str, float]
    problems: dict[str, int]
    max_new_tokens: int


def read_eval(path: Path, hint: str = "") -> Eval:
    """Reads the levels of the benchmarks `test` and `ood`, and the mean of each; errors end with `hint`."""
    scores, problems = {}, {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, mean, prefix in (("test", "mean", "level "), ("ood", "ood mean", "")):
            levels = found["benchmarks"].get(name, {"levels": []})["levels"]
            here = {prefix + level["level"]: float(level["greedy"]["accuracy"]) for level in levels}
            scores |= here | ({mean: sum(here.values()) / len(here)} if here else {})
            problems |= {prefix + level["level"]: int(level["problems"]) for level in levels}
        if not scores:
            fail(f"{path} has no results on the benchmarks test and ood{hint}")
        return Eval(scores, problems, int(found["settings"]["max_new_tokens"]))
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror}){hint}")
    except (ValueError, KeyError, TypeError, AttributeError):
        fail(f"{path} is not a result of eval.py{hint}")


def cost(run: SavedRun) -> dict[str, float]:
    sums = run.metrics.reindex(columns=["responses", "rollout_seconds", "train_seconds"]).sum()
    seconds = sums["rollout_seconds"] + sums["train_seconds"]
    return {"steps": float(len(run.metrics)), "responses": sums["responses"], "seconds": seconds}


def make_row(method: str, seeds: list[dict[str, float]]) -> Row:
    """The mean over the seeds of each column that all of them have."""
    columns = pd.DataFrame(seeds).dropna(axis=1)  # (seeds, columns)
    row = {"method": method, "seeds": len(seeds)}
    for name, mean, half in zip(columns, *t_interval(columns.to_numpy().T), strict=True):
        row |= {name: float(mean), f"{name} half-width": float(half)}
    return row


def as_table(rows: list[Row]) -> pd.DataFrame:
    """The costs, then the accuracies, of each method; NaN where it has none."""
    table = pd.DataFrame(rows).set_index("method")
    rest = [name for name in table if not name.endswith("half-width") and name not in ("seeds", *COSTS)]
    columns = [column for name in (*COSTS, *rest) for column in (name, f"{name} half-width")]
    return table.reindex(columns=["seeds", *columns])


def as_text(table: pd.DataFrame) -> str:
    """The table as text; a star marks the best accuracy of a column, to the digits that are printed."""
    lines = [["method", "seeds"], *([method, str(seeds)] for method, seeds in table["seeds"].items())]
    for name, half_width in zip(table.columns[1::2], table.columns[2::2], strict=True):
        digits = 0 if name in COSTS else 3
        means = ["-" if math.isnan(x) else f"{x:.{digits}f}" for x in table[name]]
        top = max(means, key=lambda text: -1.0 if text == "-" else float(text)) if digits and len(table) > 1 else None
        lines[0].append(name + " ")  # over the numbers, not over the stars
        for line, mean, half in zip(lines[1:], means, table[half_width], strict=True):
            shown = half >= 0 if digits else half > 0.5  # the seeds' costs are mostly equal; NaN: one seed
            line.append(mean + (f" +-{half:.{digits}f}" if shown else "") + ("*" if mean == top else " "))
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def footnote(evals: list[Eval]) -> str:
    """How to read the table, and a warning if its rows were not measured in the same way."""
    fewest = min(n for e in evals for n in e.problems.values())
    wide = f"{1.96 * 0.5 / math.sqrt(fewest):.2f}"
    text = "* the best of its column   +- half the 95 % t-interval of the mean over seeds\n"
    text += f"Greedy accuracy on {fewest} problems a level: one policy's 95 % interval is up to +-{wide}."
    if len({repr((e.problems, e.max_new_tokens)) for e in evals}) > 1:
        text += "\nCareful: these evaluations differ in their problems or in --max-new-tokens."
    return text


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.table", description=__doc__)
    add, label = parser.add_argument, "FILE.json:LABEL"
    add("runs", nargs="+", metavar="RUN", help="run folders of train.py, each with its eval.json")
    add("--baseline", action="append", default=[], metavar=label, help="add a row from a result of eval.py")
    add("--csv", metavar="FILE", help="also write the table there, half-widths in columns of their own")
    args = parser.parse_args(argv)
    runs, rows, evals = read_runs(map(Path, args.runs)), [], []
    for text in args.baseline:
        path, _, label = (text, "", Path(text).stem) if Path(text).exists() else text.rpartition(":")
        evals.append(read_eval(Path(path or text)))
        rows.append(make_row(label, [evals[-1].scores]))
    for method, group in by_method(runs).items():
        found = [read_eval(run.folder / "eval.json", f"; first: python eval.py --model {run.folder}") for run in group]
        rows.append(make_row(method, [cost(run) | e.scores for run, e in zip(group, found, strict=True)]))
        evals += found
        if len({len(run.metrics) for run in group}) > 1:
            print(f"{method}: its runs have different numbers of steps", file=sys.stderr)
    table = as_table(rows)
    print(as_text(table))
    print(footnote(evals))
    if args.csv:
        try:
            table.to_csv(args.csv, float_format="%.6g", lineterminator="\n")
        except OSError as error:
            fail(f"--csv {args.csv}: cannot be written ({first_line(error)}); choose another file")


if __name__ == "__main__":
    main()

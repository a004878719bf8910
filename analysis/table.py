"""The table of results: what each method cost, and what its policy gets right greedily, level by level.

One row per method: the mean over its seeds, and +- half the 95 % t-interval of that mean where there are several. The
accuracies are those that eval.py has left in RUN/eval.json; costs are summed over metrics.csv. The best of each column
has a star. Runs of one method that differ in a flag are rows of their own, with the flag in the name.

The first half of this file reads run folders; curves.py takes it from here.

    python eval.py --model runs/dagrpo
    python -m analysis.table runs/dr_grpo runs/dagrpo --baseline "runs/start.json:warm start"
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from harness.console import Parser, fail

# flags that may differ between two runs which are one method with two seeds
BOOKKEEPING = {"out", "seed", "steps", "resume", "overwrite", "save_every", "log_rollouts_every", "show_every"}
BOOKKEEPING |= {"micro_batch_tokens", "recipe", "anchors", "problems", "python", "torch", "transformers", "threads"}
BOOKKEEPING |= {"init_from"}  # is part of the name already


@dataclass(frozen=True)
class Run:
    """A run folder of train.py, read."""

    folder: Path
    method: str  # as figures and tables call it
    config: dict[str, Any]
    rows: dict[int, dict[str, float | None]]  # step -> column -> figure; None: not available


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Reads run folders, and gives runs that differ in a flag different names: `dagrpo, delta 1.0`."""
    runs = [read_run(folder) for folder in folders]
    named = []
    for run in runs:
        same = [other.config for other in runs if other.method == run.method]
        flags = [f for f in run.config if f not in BOOKKEEPING and any(c.get(f) != run.config[f] for c in same)]
        named.append(replace(run, method=", ".join([run.method, *(f"{f} {run.config[f]}" for f in flags)])))
    seen: dict[tuple[str, int], Path] = {}
    for run in named:
        other = seen.setdefault((run.method, run.config["seed"]), run.folder)
        if other is not run.folder:
            fail(f"{other} and {run.folder} are both {run.method} with seed {run.config['seed']}: give one of them")
    return named


def read_run(folder: Path) -> Run:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        method = config["method"] + origin(config["init_from"]) if config.get("init_from") else config["method"]
        config["seed"] = int(config["seed"])
    except OSError as error:
        fail(f"{folder} is not a run folder of train.py: {Path(error.filename).name} cannot be read ({error.strerror})")
    except (ValueError, KeyError, TypeError):
        fail(f"{folder} is not a run folder of train.py: its config.json does not tell method and seed")
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # train.py is just writing it, or was killed
    try:
        rows = {int(row["step"]): {name: number(cell) for name, cell in row.items()} for row in csv.DictReader(lines)}
    except (ValueError, KeyError, TypeError, csv.Error):
        fail(f"{folder / 'metrics.csv'} is damaged: not every line holds a step and its figures")
    if not rows:
        fail(f"{folder / 'metrics.csv'} is empty: the run has not finished a step yet")
    return Run(folder, method, config, rows)


def origin(start: str) -> str:
    """` after sft` of a run that began where another ended; of a model that is no run, its folder's name.

    Nothing of a warm start, which is where runs begin anyway: seeds of one method may have one each.
    """
    if (Path(start) / "warm_start.json").exists():
        return ""
    for folder in (Path(start), *Path(start).parents[:2]):  # RUN, RUN/checkpoint or RUN/checkpoint/model
        try:
            return " after " + json.loads((folder / "config.json").read_text(encoding="utf-8"))["method"]
        except (OSError, ValueError, KeyError):
            continue
    return f" after {Path(start).name}"


def number(cell: str | None) -> float | None:
    """None for an empty cell, and for what is not finite: the norm of an update that was skipped."""
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None


def by_method(runs: list[Run]) -> dict[str, list[Run]]:
    return {method: [run for run in runs if run.method == method] for method in dict.fromkeys(r.method for r in runs)}


def t_interval(values: list[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval; None for a single value, which has no spread.

    >>> t_interval([1.0, 2.0, 3.0])[0], round(t_interval([1.0, 2.0, 3.0])[1], 3)
    (2.0, 2.484)
    """
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return mean, None
    variance = sum((x - mean) ** 2 for x in values) / (n - 1)
    return mean, float(student.ppf(0.975, n - 1)) * math.sqrt(variance / n)


def signed_interval(interval: tuple[float, float | None], digits: int = 3) -> str:
    """A difference and its interval as tables show it; of a single value the value alone.

    >>> signed_interval((0.1, 0.25)), signed_interval((0.1, None))
    ('+0.100 [-0.150, +0.350]', '+0.100')
    """
    mean, half = interval
    ends = "" if half is None else f" [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"{mean:+.{digits}f}{ends}"


COSTS = ("steps", "responses", "seconds")  # the other columns are greedy accuracies


@dataclass(frozen=True)
class Row:
    """A line: column -> mean and half-width over its seeds. What a method does not have is not in it."""

    method: str
    seeds: int
    cells: dict[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Eval:
    """A result of eval.py: greedy accuracy by column, and what it was measured on."""

    scores: dict[str, float]
    problems: dict[str, int]
    max_new_tokens: int


def read_eval(path: Path, hint: str = "") -> Eval:
    """The levels of the benchmarks `test` and `ood`, and the mean of each."""
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


def cost(run: Run) -> dict[str, float]:
    def total(*names: str) -> float:
        return sum(row.get(name) or 0.0 for row in run.rows.values() for name in names)

    seconds = total("rollout_seconds", "train_seconds")
    return {"steps": float(len(run.rows)), "responses": total("responses"), "seconds": seconds}


def make_row(method: str, seeds: list[dict[str, float]]) -> Row:
    """The mean over the seeds, of the columns that all of them have."""
    columns = [name for name in seeds[0] if all(name in seed for seed in seeds)]
    return Row(method, len(seeds), {name: t_interval([seed[name] for seed in seeds]) for name in columns})


def columns_of(rows: list[Row]) -> list[str]:
    return [*COSTS, *dict.fromkeys(name for row in rows for name in row.cells if name not in COSTS)]


def show(rows: list[Row]) -> str:
    """The table as text; a star behind the best of a column, to the digits that are printed."""
    lines = [["method", "seeds", *columns_of(rows)], *([row.method, str(row.seeds)] for row in rows)]
    for name in columns_of(rows):
        digits = 0 if name in COSTS else 3
        means = [f"{row.cells[name][0]:.{digits}f}" if name in row.cells else "-" for row in rows]
        top = max(means, key=lambda text: -1.0 if text == "-" else float(text)) if digits and len(rows) > 1 else None
        for row, line, mean in zip(rows, lines[1:], means, strict=True):
            half = row.cells.get(name, (0.0, None))[1]
            told = half is not None and (digits > 0 or round(half) > 0)  # seeds cost the same, mostly
            line.append(mean + (f" +-{half:.{digits}f}" if told else "") + ("*" if mean == top else " "))
    lines[0][2:] = [name + " " for name in lines[0][2:]]  # over the numbers, not over the stars
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def footnote(evals: list[Eval]) -> str:
    """How to read the table, and a warning where its rows were not measured alike."""
    fewest = min(n for e in evals for n in e.problems.values())
    wide = f"{1.96 * 0.5 / math.sqrt(fewest):.2f}"
    text = "* the best of its column   +- half the 95 % t-interval of the mean over seeds\n"
    text += f"Greedy accuracy on {fewest} problems a level: the 95 % interval of one policy's is up to +-{wide}."
    if len({repr((e.problems, e.max_new_tokens)) for e in evals}) > 1:
        text += "\nCareful: these evaluations differ in their problems or in --max-new-tokens."
    return text


def write_csv(rows: list[Row], path: Path) -> None:
    columns = columns_of(rows)
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["method", "seeds", *(head for name in columns for head in (name, f"{name} half-width"))])
            for row in rows:
                numbers = [x for name in columns for x in row.cells.get(name, (None, None))]
                writer.writerow([row.method, row.seeds, *(None if x is None else f"{x:.6g}" for x in numbers)])
    except OSError as error:
        fail(f"--csv {path}: cannot be written ({error.strerror}); choose another file")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.table", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of train.py, each with its eval.json")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="FILE.json:LABEL",
        help="a row from a result of eval.py alone",
    )
    parser.add_argument("--csv", metavar="FILE", help="also write the table there, means and half-widths apart")
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
        if len({len(run.rows) for run in group}) > 1:
            print(f"{method}: its runs have different numbers of steps", file=sys.stderr)
    print(show(rows))
    print(footnote(evals))
    if args.csv:
        write_csv(rows, Path(args.csv))


if __name__ == "__main__":
    main()

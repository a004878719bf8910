"""A long run, looked at afterwards: does the process grow, and is what it has reported true?

Draws memory, open files and threads of metrics.csv against the step, and counts the figures of every step again from
rollouts.jsonl: rewards, scores, lengths, masks, anchors. A response counts as right if the verifier says so now.

Writes into --out: soak.png, soak.csv (exactly what is drawn), soak.txt (the findings). Ends with 1 if a figure differs.

    python -m analysis.soak runs/soak --out results/soak
    python -m analysis.soak --from-csv results/soak/soak.csv      redraws the PNG, without the run
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.table import Run, read_run
from harness.console import Parser, fail
from maths.verifier import verify

DRAWN = {"memory_mb": "memory, MB", "open_files": "open files", "threads": "threads"}
MOST_POINTS = 2000  # of a longer run, every second step is drawn, every third ...
Points = dict[str, list[float]]  # step, and the columns of DRAWN


# ---------------------------------------------------------------------------------------- the recount


def steps_of(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(step, its groups) from rollouts.jsonl, one step in memory at a time."""
    with path.open(encoding="utf-8") as lines:
        for step, groups in groupby(map(json.loads, lines), key=lambda group: group["step"]):
            yield step, list(groups)


def recount(groups: list[dict[str, Any]], discarded: bool = False) -> dict[str, float | None]:
    """The figures of a step, named as in metrics.csv, from its groups alone. None: nothing to take the mean of.

    `discarded`: more was generated than the groups hold, so that responses and tokens cannot be counted.
    """
    names = ("text", "tokens", "S", "A", "keep", "is_anchor")
    rows = []
    for group in groups:
        columns = zip(*(group["responses" if name == "text" else name] for name in names), strict=True)
        own = [dict(zip(names, row, strict=True), level=group["level"], answer=group["answer"]) for row in columns]
        ended = group.get("ended", [True] * len(own))  # older runs do not say
        rows += [{**row, "ended": yes} for row, yes in zip(own, ended, strict=True)]
    sampled, signal = [row for row in rows if not row["is_anchor"]], [row for row in rows if row["A"]]
    for row in sampled:
        row["right"] = verify(row["text"], row["answer"], row["ended"])
    by_level = {level: [row for row in sampled if row["level"] == level] for level in {g["level"] for g in groups}}
    kept = [any(a and keep for a, keep in zip(g["A"], g["keep"], strict=True)) for g in groups]
    unscored = [any(a and s is None for a, s in zip(g["A"], g["S"], strict=True)) for g in groups]
    anchors = [row for row in rows if row["is_anchor"]]
    figures = {
        "reward": mean(row["right"] for row in sampled),
        **{f"reward_level_{name}": mean(row["right"] for row in level) for name, level in by_level.items()},
        "score": mean(row["S"] for row in sampled if row["S"] is not None),
        "response_length": mean(len(row["tokens"]) for row in sampled),
        "no_signal_groups": sum(not any(group["A"]) for group in groups),
        "masked_groups": sum(any(group["A"]) and not some for group, some in zip(groups, kept, strict=True)),
        "unscored_groups": sum(unscored),
        "kept_rows": sum(row["keep"] for row in signal),
        "kept_fraction": mean(row["keep"] for row in signal),
        "kept_positive": mean(row["keep"] for row in signal if row["A"] > 0),
        "kept_negative": mean(row["keep"] for row in signal if row["A"] < 0),
        "anchors": len(anchors),
        "anchors_kept": mean(bool(row["keep"] and row["A"]) for row in anchors),
    }
    counts = {"responses": len(sampled), "tokens": sum(len(row["tokens"]) for row in sampled)}
    return figures | ({} if discarded else counts)


def mean(values: Iterator[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def check(run: Run) -> tuple[str, list[str]]:
    """What was compared, and every figure of metrics.csv that the rollouts do not bear out."""
    recipe = run.config.get("recipe") or {}
    discarded = bool(recipe.get("resample_rounds")) or run.config.get("anchor_when") == "hard"
    logged = {step for step in run.rows if step % run.config.get("log_rollouts_every", 1) == 0}
    seen, groups, figures, wrong = set(), 0, 0, []
    totals = dict.fromkeys(("responses", "tokens", "anchors", "kept_rows"), 0)
    for step, found in steps_of(run.folder / "rollouts.jsonl"):
        if step in seen or step not in logged:
            wrong.append(f"step {step}: its groups stand twice in rollouts.jsonl, or it is not in metrics.csv")
            continue
        seen, groups, row = seen | {step}, groups + len(found), run.rows[step]
        for name, counted in recount(found, discarded).items():
            if name in row:  # an older run has fewer columns
                figures += 1
                if not same(row[name], counted):
                    wrong.append(f"step {step}: {name} is {row[name]} in metrics.csv, and {counted} by the rollouts")
            if name in totals:
                totals[name] += counted
    wrong += [f"step {step}: no groups in rollouts.jsonl" for step in sorted(logged - seen)]
    told = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in totals.items())
    return f"{len(seen):,} steps, {groups:,} groups, {figures:,} figures; in all {told}", wrong


def same(written: float | None, counted: float | None) -> bool:
    """Equal to the six digits that metrics.csv has."""
    if written is None or counted is None:
        return written is counted
    return math.isclose(written, counted, rel_tol=1e-5)


# ---------------------------------------------------------------------------------------- the figure


def thin(run: Run) -> Points:
    """The columns that are drawn, at no more than MOST_POINTS steps."""
    steps = list(run.rows)[:: math.ceil(len(run.rows) / MOST_POINTS)]
    if any(run.rows[step].get(name) is None for step in steps for name in DRAWN):
        fail(f"{run.folder / 'metrics.csv'} lacks {', '.join(DRAWN)}: it is of an older version, or not of Linux")
    return {"step": steps} | {name: [run.rows[step][name] for step in steps] for name in DRAWN}


def growth(points: Points) -> list[str]:
    """A line a column: its mean over the first and over the last tenth of the steps, and its range."""
    tenth = max(1, len(points["step"]) // 10)
    lines = []
    for name, label in DRAWN.items():
        values = points[name]
        first, last = mean(values[:tenth]), mean(values[-tenth:])
        least, most = min(values), max(values)
        lines.append(f"{label:12s} first tenth {first:.1f}, last tenth {last:.1f}; from {least:g} to {most:g}")
    return lines


def draw(points: Points) -> Figure:
    figure = Figure(figsize=(8, 6), layout="constrained")
    for ax, (name, label) in zip(
        figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1)), DRAWN.items(), strict=True
    ):
        ax.plot(points["step"], points[name], linewidth=0.8, color="#0072B2")
        ax.set(ylabel=label, ylim=(0, 1.2 * max(points[name])))  # from 0: growth is seen for what it is
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(alpha=0.3)
    ax.set_xlabel("step")
    figure.align_ylabels()
    return figure


def write_csv(points: Points, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(points)
        writer.writerows([f"{x:g}" for x in row] for row in zip(*points.values(), strict=True))


def read_csv(path: Path) -> Points:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name]) for row in rows] for name in ("step", *DRAWN)}
    except OSError as error:
        fail(f"--from-csv {path}: cannot be read ({error.strerror})")
    except (KeyError, ValueError, TypeError):
        fail(f"--from-csv {path}: this is not a soak.csv of this program, or it is damaged")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.soak", description=__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder of train.py")
    parser.add_argument("--out", metavar="DIR", help="where to write [RUN; of --from-csv: beside the CSV]")
    parser.add_argument("--from-csv", metavar="FILE", help="draw this soak.csv, without the run")
    args = parser.parse_args(argv)
    if bool(args.run) == bool(args.from_csv):
        fail("give the run folder of train.py, or --from-csv FILE, one of the two")
    out, wrong = Path(args.out or args.run or Path(args.from_csv).parent), []
    run = read_run(Path(args.run)) if args.run else None
    points = thin(run) if run else read_csv(Path(args.from_csv))
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw(points).savefig(out / "soak.png", dpi=120)
        if run:
            write_csv(points, out / "soak.csv")
            compared, wrong = check(run)
            verdict = f"{len(wrong)} differ from metrics.csv; the first:" if wrong else "all as in metrics.csv"
            lines = [f"{run.method}, seed {run.config['seed']}, {len(run.rows):,} steps", *growth(points)]
            lines += [f"counted again from rollouts.jsonl: {compared}", verdict, *wrong[:5]]
            (out / "soak.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print("\n".join(lines))
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror}; choose another --out, or a run that can be read")
    except (ValueError, KeyError, TypeError) as error:
        fail(f"{Path(args.run) / 'rollouts.jsonl'} is damaged ({type(error).__name__}: {error})")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

"""A long run, looked at afterwards: does the process grow, and is what it has reported true?

Draws memory, open files and threads of metrics.csv against the step, and counts the figures of every step again from
rollouts.jsonl: rewards, scores, lengths, masks, anchors. A response counts as right if the verifier says so now.

Writes into --out: soak.png, soak.csv (exactly what is drawn), soak.txt (the findings). Ends with 1 if a figure differs.

    python -m analysis.soak runs/soak --out results/soak
    python -m analysis.soak --from-csv results/soak/soak.csv      redraws the PNG, without the run
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.run_folders import SavedRun, read_rollouts, read_run
from analysis.saved import draw_figure, read_rows, write_rows
from harness.console import Parser, fail
from maths.verifier import verify

DRAWN = {"memory_mb": "memory, MB", "open_files": "open files", "threads": "threads"}
MOST_POINTS = 2000  # of a longer run, every second step is drawn, every third ...


@dataclass(frozen=True)
class SoakPoint:
    """A row of soak.csv: what the process took up at a step."""

    step: int
    memory_mb: float
    open_files: float
    threads: float


# ---------------------------------------------------------------------------------------- the recount


def recount(groups: list[dict[str, Any]], discarded: bool = False) -> dict[str, float]:
    """The figures of a step, named as in metrics.csv, from its groups alone. NaN: nothing to take the mean of.

    `discarded`: more was generated than the groups hold, so that responses and tokens cannot be counted.
    """
    columns = ("responses", "tokens", "S", "A", "keep", "is_anchor")
    parts = [{name: g[name] for name in columns} | {"level": g["level"], "answer": g["answer"]} for g in groups]
    rows = pd.concat(map(pd.DataFrame, parts), keys=range(len(groups)), names=["group"]).astype({"S": float})
    rows["length"], anchor = rows["tokens"].map(len), rows["is_anchor"]
    sampled = rows[~anchor]
    right = pd.Series([verify(*pair) for pair in sampled[["responses", "answer"]].itertuples(index=False)], dtype=float)
    levels = sampled["level"].reset_index(drop=True)
    A, keep, signal = rows["A"], rows["keep"], rows["A"] != 0

    def groups_with(what: pd.Series) -> pd.Series:
        return what.groupby("group").any()

    figures = {
        "reward": right.mean(),
        **{f"reward_level_{name}": right[levels == name].mean() for name in rows["level"].unique()},
        "score": sampled["S"].mean(),
        "response_length": sampled["length"].mean(),
        "no_signal_groups": (~groups_with(signal)).sum(),
        "masked_groups": (groups_with(signal) & ~groups_with(signal & keep)).sum(),
        "unscored_groups": groups_with(signal & rows["S"].isna()).sum(),
        "kept_rows": (signal & keep).sum(),
        "kept_fraction": keep[signal].mean(),
        "kept_positive": keep[A > 0].mean(),
        "kept_negative": keep[A < 0].mean(),
        "anchors": anchor.sum(),
        "anchors_kept": (signal & keep)[anchor].mean(),
    }
    counts = {"responses": len(sampled), "tokens": sampled["length"].sum()}
    return figures | ({} if discarded else counts)


def check(run: SavedRun) -> tuple[str, list[str]]:
    """What was compared, and every figure of metrics.csv that the rollouts do not bear out."""
    recipe = run.config.get("recipe") or {}
    discarded = bool(recipe.get("resample_rounds")) or run.config.get("anchor_when") == "hard"
    logged = {step for step in run.metrics.index if step % run.config.get("log_rollouts_every", 1) == 0}
    seen, groups, figures, wrong = set(), 0, 0, []
    totals = dict.fromkeys(("responses", "tokens", "anchors", "kept_rows"), 0)
    lines = (group for _, _, group in read_rollouts(run.folder))
    for step, some in groupby(lines, key=lambda group: group["step"]):  # one step in memory at a time
        if step in seen or step not in logged:
            wrong.append(f"step {step}: its groups are in rollouts.jsonl twice, or it is not in metrics.csv")
            continue
        found = list(some)
        seen, groups, row = seen | {step}, groups + len(found), run.metrics.loc[step]
        for name, counted in recount(found, discarded).items():
            if name in row:  # an older run has fewer columns
                figures += 1
                if not same(row[name], counted):
                    wrong.append(f"step {step}: {name} is {row[name]} in metrics.csv, and {counted} by the rollouts")
            if name in totals:
                totals[name] += counted
    wrong += [f"step {step}: no groups in rollouts.jsonl" for step in sorted(logged - seen)]
    sums = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in totals.items())
    return f"{len(seen):,} steps, {groups:,} groups, {figures:,} figures; in all {sums}", wrong


def same(written: float, counted: float) -> bool:
    """Equal to the six digits that metrics.csv has, or both NaN."""
    return math.isclose(written, counted, rel_tol=1e-5) or (math.isnan(written) and math.isnan(counted))


# ---------------------------------------------------------------------------------------- the figure


def thin(run: SavedRun) -> pd.DataFrame:
    """SoakPoints at no more than MOST_POINTS steps."""
    points = run.metrics.reindex(columns=list(DRAWN)).iloc[:: math.ceil(len(run.metrics) / MOST_POINTS)]
    if points.isna().any(axis=None):
        fail(f"{run.folder / 'metrics.csv'} lacks {', '.join(DRAWN)}: it is of an older version, or not of Linux")
    return points.reset_index()


def growth(points: pd.DataFrame) -> list[str]:
    """A line a column: its mean over the first and over the last tenth of the steps, and its range."""
    tenth = max(1, len(points) // 10)
    lines = []
    for name, label in DRAWN.items():
        values = points[name]
        first, last = values.head(tenth).mean(), values.tail(tenth).mean()
        lines.append(
            f"{label:12s} first tenth {first:.1f}, last tenth {last:.1f}; from {values.min():g} to {values.max():g}"
        )
    return lines


def draw_soak(points: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(len(DRAWN), 1, sharex=True, height_ratios=(2, 1, 1))
    for ax, (name, label) in zip(axes, DRAWN.items(), strict=True):
        ax.plot(points["step"], points[name], linewidth=0.8, color="#0072B2")
        ax.set(ylabel=label, ylim=(0, 1.2 * points[name].max()))  # from 0: growth is seen for what it is
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(alpha=0.3)
    ax.set_xlabel("step")
    figure.align_ylabels()
    return figure


def main(argv: list[str] | None = None) -> None:
    parser, wrong = Parser(prog="python -m analysis.soak", description=__doc__), []
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder of train.py")

    def read(args: Namespace) -> SavedRun:
        return read_run(Path(args.run))

    def measure(run: SavedRun, path: Path) -> str:
        points = thin(run)
        write_rows(points, path)
        try:
            compared, differ = check(run)
        except OSError as error:
            fail(f"{error.filename}: {error.strerror}; give a run that can be read")
        except (ValueError, KeyError, TypeError) as error:
            fail(f"{run.folder / 'rollouts.jsonl'} is damaged ({type(error).__name__}: {error})")
        wrong.extend(differ)
        verdict = f"{len(wrong)} differ from metrics.csv; the first:" if wrong else "all as in metrics.csv"
        lines = [f"{run.method}, seed {run.config['seed']}, {len(run.metrics):,} steps", *growth(points)]
        lines += [f"counted again from rollouts.jsonl: {compared}", verdict, *wrong[:5]]
        print("\n".join(lines))
        return "\n".join(lines)

    def redraw(source: Path, out: Path) -> None:
        draw_soak(read_rows(SoakPoint, source)).savefig(out / "soak.png", dpi=120)

    draw_figure(parser, argv, read, measure, redraw, instead="run")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

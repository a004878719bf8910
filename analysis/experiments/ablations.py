"""What changes what: learning rates (the paper's robustness figure), and one change at a time against its method.

    rates.png        mean greedy accuracy against the learning rate, one line a method, and each seed; dotted: the start
    ablations.png    a run with one thing changed minus its method at the same seed: accuracy, and what is kept of it

Seeds begin at different starts, so only like is compared with like: the rates on the seeds that all of them have, and
differences paired over seeds, with their 95 % t-intervals. Three seeds make wide intervals: they show what does great
harm, not which of two good settings is better. Nothing is corrected for the number of rows.

    python -m analysis.experiments.ablations                      from results/experiments/runs.csv, into its folder
    python -m analysis.experiments.ablations --runs runs/experiments/runs.csv
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.curves import COLOURS, style
from analysis.experiments.grid import RUNS_CSV, read_table
from analysis.stats import markdown, signed_interval, t_interval
from harness.console import Parser, fail, first_line

BASELINE = "dr_grpo"  # of the other recipes
START = "warm start"


@dataclass(frozen=True)
class Change:
    """One label against its method: mean and half-width of the differences over the seeds that both have."""

    stage: str
    label: str
    against: str
    seeds: int
    accuracy: float
    mean: tuple[float, float]  # greedy accuracy, levels 1 to 5
    ood: tuple[float, float]
    kept: float  # share of responses with A != 0, the last ten steps; NaN: no run has it


def changes(runs: pd.DataFrame) -> list[Change]:
    """The labels of the stages ablations, controls and others, in the table's order."""
    main, found = runs[runs["stage"] == "main"].set_index("seed"), []
    asked = runs[runs["stage"].isin(("controls", "ablations", "others"))]
    for (stage, label), mine in asked.set_index("seed").groupby(["stage", "label"], sort=False):
        against = BASELINE if stage == "others" else mine["method"].iloc[0]
        figures = ["mean", "ood mean"]
        gaps = (mine[figures] - main.loc[main["label"] == against, figures]).dropna()  # by seed
        if len(gaps):
            differences = [t_interval(gaps[figure]) for figure in figures]
            about = (mine["mean"].mean(), *differences, mine["kept_fraction last"].mean())
            found.append(Change(stage, label, against, len(gaps), *about))
    return found


def changes_table(found: list[Change]) -> str:
    """Markdown."""
    lines = []
    for c in found:
        kept = "" if pd.isna(c.kept) else f"{c.kept:.2f}"
        means = [f"{c.accuracy:.3f}", signed_interval(c.mean), signed_interval(c.ood)]
        lines.append([c.label, c.against, str(c.seeds), *means, kept])
    return markdown(["changed", "against", "seeds", "accuracy", "difference", "difference, ood", "kept"], lines)


def by_rate(runs: pd.DataFrame) -> dict[str, dict[float, list[float]]]:
    """Method -> learning rate -> accuracies of the seeds that the stage rates has; at the best rate they are main's."""
    rates = runs[runs["stage"] == "rates"]
    main = runs[(runs["stage"] == "main") & (runs["label"] == runs["method"]) & runs["seed"].isin(rates["seed"])]
    every = pd.concat([main, rates])
    return {
        method: {rate: list(some) for rate, some in every[every["method"] == method].groupby("lr")["mean"]}
        for method in rates["method"].unique()
    }


def rates_table(lines: dict[str, dict[float, list[float]]]) -> str:
    """Markdown: the means of by_rate."""
    rates = sorted({rate for at in lines.values() for rate in at})
    rows = [
        [method, *(f"{sum(at[rate]) / len(at[rate]):.3f}" if rate in at else "" for rate in rates)]
        for method, at in lines.items()
    ]
    return markdown(["method", *(f"{rate:g}" for rate in rates)], rows)


def draw_rates(runs: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    ax, lines = figure.subplots(), by_rate(runs)
    for i, (method, at) in enumerate(lines.items()):
        xs = [rate * 1.06 ** (i - len(lines) / 2) for rate in at]  # side by side, or their dots hide each other
        look = style(i, len(at)) | {"marker": "os^Dv"[i % 5], "markevery": 1}
        ax.plot(xs, [sum(found) / len(found) for found in at.values()], label=method, **look)
        for x, found in zip(xs, at.values(), strict=True):
            ax.plot([x] * len(found), found, ".", color=look["color"], markersize=4, alpha=0.6)
    seeds = runs.loc[runs["stage"] == "rates", "seed"].unique()
    start = runs.loc[(runs["label"] == START) & runs["seed"].isin(seeds), "mean"]
    if len(start):
        ax.axhline(start.mean(), color="black", linestyle=":", label="warm start")
    ax.set(xscale="log", xlabel="learning rate of AdamW", ylabel="mean greedy accuracy, levels 1 to 5", ylim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, title=f"mean of {len(seeds)} seeds; dots: seeds")
    return figure


def draw_changes(found: list[Change]) -> Figure:
    figure = Figure(figsize=(9, 0.9 + 0.27 * len(found)), layout="constrained")
    ax = figure.subplots()
    stages = list(dict.fromkeys(c.stage for c in found))
    for i, c in enumerate(found):
        mean, half = c.mean
        k = stages.index(c.stage)
        bar = 0.0 if pd.isna(half) else half
        ax.errorbar([mean], [-i], xerr=[bar], fmt="os^"[k % 3], color=COLOURS[k], capsize=3, markersize=5)
    ax.axvline(0, color="grey", linewidth=0.8)
    labels = [f"{c.label}  \N{MINUS SIGN}  {c.against} ({c.seeds})" for c in found]
    ax.set_yticks([-i for i in range(len(found))], labels, fontsize=8)
    ax.set(xlabel="difference of mean greedy accuracy, 95 % t-interval (seeds)")
    ax.grid(alpha=0.3, axis="x")
    return figure


CAPTION = """\
rates.png. Mean greedy accuracy on levels 1 to 5 (100 problems each) after 60 steps against the learning rate. Lines:
mean over the seeds that all rates have; small dots: these seeds, each from a warm start of its own. Points are moved
apart so that they can be seen. Dotted: the mean of these warm starts.

ablations.png. A run with one thing changed minus its method at the same seed, mean over seeds and 95 % t-interval (the
number of seeds in brackets). Circles: controls; squares: other recipes, against dr_grpo; triangles: ablations.

drawn by, and again: python -m analysis.experiments.ablations --runs {runs}
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.ablations", description=__doc__)
    parser.add_argument("--runs", default=RUNS_CSV, metavar="FILE", help="of analysis.experiments.grid")
    parser.add_argument("--out", metavar="DIR", help="where to write; default: the folder of --runs")
    args = parser.parse_args(argv)
    runs, out = read_table(Path(args.runs)), Path(args.out or Path(args.runs).parent)
    found, lines = changes(runs), by_rate(runs)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if lines:
            draw_rates(runs).savefig(out / "rates.png", dpi=100)
        if found:
            draw_changes(found).savefig(out / "ablations.png", dpi=100)
        (out / "ablations.txt").write_text(CAPTION.format(runs=args.runs), encoding="utf-8")
    except OSError as error:
        fail(f"--out {out}: cannot be written ({first_line(error)}); choose another folder")
    if lines:
        print(f"Mean greedy accuracy by learning rate, of the same seeds\n\n{rates_table(lines)}\n")
    print(changes_table(found) if found else "no controls, ablations or other recipes yet")


if __name__ == "__main__":
    main()

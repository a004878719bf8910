"""What changes what: learning rates (the paper's robustness figure), and one change at a time against its method.

    rates.png        mean greedy accuracy against the learning rate, one line a method, and each seed; dotted: the start
    ablations.png    a run with one thing changed minus its method at the same seed: accuracy, and what is kept of it

Seeds begin at different starts, so only like is compared with like: the rates on the seeds that all of them have, and
differences paired over seeds, with their 95 % t-intervals. Three seeds make wide intervals: they tell what does great
harm, not which of two good settings is better. Nothing is corrected for the number of rows.

    python -m analysis.experiments.ablations                      from results/experiments/runs.csv, into its folder
    python -m analysis.experiments.ablations --runs runs/experiments/runs.csv
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from analysis.curves import COLOURS, style
from analysis.experiments.grid import read_runs
from analysis.table import signed_interval, t_interval
from harness.console import Parser, fail

BASELINE = "dr_grpo"  # of the other recipes
START = "warm start"


@dataclass(frozen=True)
class Result:
    """What is needed of a row of runs.csv."""

    stage: str
    label: str
    method: str
    seed: int
    lr: float | None
    mean: float  # greedy accuracy, levels 1 to 5
    ood: float
    kept: float | None  # share of responses with A != 0, the last ten steps


@dataclass(frozen=True)
class Change:
    """One label against its method: mean and half-width over the seeds that both have."""

    stage: str
    label: str
    against: str
    seeds: int
    accuracy: float
    mean: tuple[float, float | None]  # the difference
    ood: tuple[float, float | None]
    kept: float | None


def read(path: Path) -> list[Result]:
    return [
        Result(
            r["stage"], r["label"], r["method"], r["seed"], r["lr"], r["mean"], r["ood mean"], r["kept_fraction last"]
        )
        for r in read_runs(path)
    ]


def changes(rows: list[Result]) -> list[Change]:
    """The labels of the stages ablations, controls and others, in the table's order."""
    main = {(row.label, row.seed): row for row in rows if row.stage == "main"}
    found = []
    for stage, label in dict.fromkeys((row.stage, row.label) for row in rows):
        if stage not in ("controls", "ablations", "others"):
            continue
        mine = [row for row in rows if (row.stage, row.label) == (stage, label)]
        against = BASELINE if stage == "others" else mine[0].method
        pairs = [(row, main[against, row.seed]) for row in mine if (against, row.seed) in main]
        if pairs:
            differences = [t_interval([getattr(a, c) - getattr(b, c) for a, b in pairs]) for c in ("mean", "ood")]
            kept = [row.kept for row in mine if row.kept is not None]
            accuracy = sum(row.mean for row in mine) / len(mine)
            share = sum(kept) / len(kept) if kept else None
            found.append(Change(stage, label, against, len(pairs), accuracy, *differences, share))
    return found


def table(found: list[Change]) -> str:
    heads = ["changed", "against", "seeds", "accuracy", "difference", "difference, ood", "kept"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for c in found:
        kept = "" if c.kept is None else f"{c.kept:.2f}"
        cells = [
            c.label,
            c.against,
            str(c.seeds),
            f"{c.accuracy:.3f}",
            signed_interval(c.mean),
            signed_interval(c.ood),
            kept,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_rate(rows: list[Result]) -> dict[str, dict[float, list[float]]]:
    """Method -> learning rate -> accuracies of the seeds that the stage rates has; at the best rate they are main's."""
    methods = dict.fromkeys(row.method for row in rows if row.stage == "rates")
    seeds = {row.seed for row in rows if row.stage == "rates"}
    found: dict[str, dict[float, list[float]]] = {}
    for method in methods:
        mine = [row for row in rows if row.method == method and row.seed in seeds]
        mine = [row for row in mine if row.stage == "rates" or (row.stage, row.label) == ("main", method)]
        rates = sorted({row.lr for row in mine})
        found[method] = {rate: [row.mean for row in mine if row.lr == rate] for rate in rates}
    return found


def rates_table(lines: dict[str, dict[float, list[float]]]) -> str:
    """Markdown: the means of by_rate."""
    rates = sorted({rate for at in lines.values() for rate in at})
    rows = [f"| method | {' | '.join(f'{rate:g}' for rate in rates)} |", "| --- " * (1 + len(rates)) + "|"]
    for method, at in lines.items():
        cells = [f"{sum(at[rate]) / len(at[rate]):.3f}" if rate in at else "" for rate in rates]
        rows.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw_rates(rows: list[Result]) -> Figure:
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    ax, lines = figure.subplots(), by_rate(rows)
    for i, (method, at) in enumerate(lines.items()):
        xs = [rate * 1.06 ** (i - len(lines) / 2) for rate in at]  # side by side, or their dots hide each other
        look = style(i, len(at)) | {"marker": "os^Dv"[i % 5], "markevery": 1}
        ax.plot(xs, [sum(found) / len(found) for found in at.values()], label=method, **look)
        for x, found in zip(xs, at.values(), strict=True):
            ax.plot([x] * len(found), found, ".", color=look["color"], markersize=4, alpha=0.6)
    seeds = {row.seed for row in rows if row.stage == "rates"}
    if start := [row.mean for row in rows if row.label == START and row.seed in seeds]:
        ax.axhline(sum(start) / len(start), color="black", linestyle=":", label="warm start")
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
        ax.errorbar([mean], [-i], xerr=[half or 0.0], fmt="os^"[k % 3], color=COLOURS[k], capsize=3, markersize=5)
    ax.axvline(0, color="grey", linewidth=0.8)
    labels = [f"{c.label}  \N{MINUS SIGN}  {c.against} ({c.seeds})" for c in found]
    ax.set_yticks([-i for i in range(len(found))], labels, fontsize=8)
    ax.set(xlabel="difference of mean greedy accuracy, 95 % t-interval (seeds)")
    ax.grid(alpha=0.3, axis="x")
    return figure


CAPTION = """\
rates.png. Mean greedy accuracy on levels 1 to 5 (100 problems each) after 60 steps against the learning rate. Lines:
mean over the seeds that all rates have; small dots: these seeds, each from a warm start of its own. Points stand side
by side so that they can be seen. Dotted: the mean of these warm starts.

ablations.png. A run with one thing changed minus its method at the same seed, mean over seeds and 95 % t-interval (the
number of seeds in brackets). Circles: controls; squares: other recipes, against dr_grpo; triangles: ablations.

drawn by, and again: python -m analysis.experiments.ablations --runs {runs}
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.ablations", description=__doc__)
    parser.add_argument(
        "--runs", default="results/experiments/runs.csv", metavar="FILE", help="of analysis.experiments.grid"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write; default: beside --runs")
    args = parser.parse_args(argv)
    rows, out = read(Path(args.runs)), Path(args.out or Path(args.runs).parent)
    found = changes(rows)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if by_rate(rows):
            draw_rates(rows).savefig(out / "rates.png", dpi=100)
        if found:
            draw_changes(found).savefig(out / "ablations.png", dpi=100)
        (out / "ablations.txt").write_text(CAPTION.format(runs=args.runs), encoding="utf-8")
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); choose another folder")
    if lines := by_rate(rows):
        print(f"Mean greedy accuracy by learning rate, of the same seeds\n\n{rates_table(lines)}\n")
    print(table(found) if found else "no controls, ablations or other recipes yet")


if __name__ == "__main__":
    main()

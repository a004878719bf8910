"""Training curves: reward, response length, entropy (the paper's Figure 2), gradient norm (Figure 3), kept share.

One line per method, from any number of run folders of train.py. Every run is smoothed first: a running mean over its
last N steps. A method with several seeds is then drawn as their mean, in a band that is the 95 % t-interval of that
mean; a method with one seed as its running mean over its single steps, drawn faint. Runs of one method that differ in
a flag are lines of their own, with the flag in the name.

Writes into --out: curves.png, curves.csv (exactly what is drawn), curves.txt (the caption).

    python -m analysis.curves runs/dr_grpo runs/dagrpo
    python -m analysis.curves --from-csv runs/figures/curves.csv      redraws the PNG, without the runs
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no window, always the Agg canvas
from matplotlib.ticker import MaxNLocator

from analysis.saved import main_of_runs, read_rows, write_rows
from analysis.table import Run, by_method, t_interval
from harness.console import fail


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    most: float  # no value can be above, nor below 0; a t-interval knows neither
    log: bool = False


PANELS = {  # column of metrics.csv -> where it is drawn
    "reward": Panel("Reward", "share of responses that are right", 1.0),
    "response_length": Panel("Response length", "tokens", float("inf")),
    "entropy": Panel("Entropy", "nats per token", float("inf")),
    "grad_norm": Panel("Gradient norm", "L2 norm before clipping, log scale", float("inf"), log=True),
    "kept_fraction": Panel("Kept share", "share of responses with A \N{NOT EQUAL TO} 0", 1.0),
}
# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow; 7 and 5 make 35 pairs. Lines of a
# grey print differ by dashes and, from the sixth on, by markers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 1.5, 1, 1.2, 1, 1.5)))
MARKERS = ("", "o", "s", "^")


@dataclass(frozen=True)
class Point:
    """A row of curves.csv: one method at one step in one panel."""

    panel: str
    method: str
    step: int
    mean: float  # over seeds, of the running means
    low: float | None  # the band; None: one seed
    high: float | None
    seeds: int
    raw: float | None  # this step alone; only where there is one seed
    smooth: int  # steps of the running mean


def running_mean(values: list[float | None], n: int) -> list[float | None]:
    """The mean of the last n values at each place, fewer at the beginning; None counts for nothing.

    >>> running_mean([1.0, 3.0, None, 8.0], n=2)
    [1.0, 2.0, 3.0, 8.0]
    """
    windows = [[x for x in values[max(0, i - n + 1) : i + 1] if x is not None] for i in range(len(values))]
    return [sum(window) / len(window) if window else None for window in windows]


def common_steps(runs: list[Run]) -> list[int]:
    """The steps that all of these runs have finished."""
    return sorted(set.intersection(*(set(run.rows) for run in runs)))


def curve(name: str, method: str, runs: list[Run], smooth: int) -> list[Point]:
    """One method in one panel. No points where no run has the figure: sft has no reward."""
    steps = common_steps(runs)
    raw = [[run.rows[step].get(name) for step in steps] for run in runs]  # (seeds, steps)
    smoothed = [running_mean(values, smooth) for values in raw]  # (seeds, steps)
    points = []
    for i, step in enumerate(steps):
        there = [values[i] for values in smoothed if values[i] is not None]
        if there:
            mean, half = t_interval(there)
            band = (None, None) if half is None else (max(0.0, mean - half), min(PANELS[name].most, mean + half))
            alone = raw[0][i] if len(runs) == 1 else None
            points.append(Point(name, method, step, mean, *band, len(there), alone, smooth))
    return points


def read_csv(path: Path) -> list[Point]:
    points = read_rows(Point, path)
    if unknown := {point.panel for point in points} - set(PANELS):
        fail(f"{path}: this program does not know its panels {', '.join(sorted(unknown))}")
    return points


def draw(points: list[Point]) -> Figure:
    """The five panels; the sixth place is the legend's."""
    methods = list(dict.fromkeys(point.method for point in points))
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    axes, last = figure.subplots(2, 3).flatten(), max(point.step for point in points)
    for ax, (name, panel) in zip(axes, PANELS.items(), strict=False):
        here = [point for point in points if point.panel == name]
        for i, method in enumerate(methods):
            if line := [point for point in here if point.method == method]:
                draw_line(ax, line, i, panel.log)
        if panel.log and here:
            log_axis(ax, here)
        if not here:
            ax.text(0.5, 0.5, "none of these runs has it", ha="center", transform=ax.transAxes)
        ax.set(title=panel.title, xlabel="step", ylabel=panel.unit, xlim=(0.5 - last / 50, last + last / 50 + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    draw_legend(axes[-1], points, methods)
    return figure


def style(index: int, points: int) -> dict:
    """How the method number `index` is drawn; markers stand apart from each other."""
    look = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.7}
    marker = MARKERS[index // len(DASHES) % len(MARKERS)] or ("o" if points == 1 else "")  # a lone point is no line
    return look | {"marker": marker, "markersize": 4, "markevery": (0, max(1, points // 8))}


def draw_line(ax: Axes, line: list[Point], index: int, log: bool) -> None:
    def column(name: str, at_zero: float = float("nan")) -> list[float]:
        """What a log axis has no place for, 0, is a gap unless told otherwise."""
        values = [getattr(point, name) for point in line]
        return [float("nan") if x is None else at_zero if log and x <= 0 else x for x in values]

    steps, colour = [point.step for point in line], COLOURS[index % len(COLOURS)]
    ax.plot(steps, column("raw"), color=colour, alpha=0.35, linewidth=0.8)
    ax.fill_between(steps, column("low", at_zero=1e-12), column("high"), color=colour, alpha=0.18, linewidth=0)
    ax.plot(steps, column("mean"), **style(index, len(line)))


def log_axis(ax: Axes, points: list[Point]) -> None:
    """A log axis as wide as its lines: a band that comes down to 0 must not stretch it."""
    ax.set_yscale("log")
    lines = [x for point in points for x in (point.mean, point.raw) if x]
    if lines:
        ax.set_ylim(min(lines) / 1.5, 1.3 * max(lines + [point.high for point in points if point.high]))


def draw_legend(ax: Axes, points: list[Point], methods: list[str]) -> None:
    ax.axis("off")
    seeds = {method: max(point.seeds for point in points if point.method == method) for method in methods}
    for i, method in enumerate(methods):
        label = textwrap.fill(f"{method} ({count(seeds[method], 'seed')})", 40)
        ax.plot([], [], label=label, **style(i, 2))
    notes = [f"line: running mean over {count(points[0].smooth, 'step')}"]
    notes += ["faint: single steps (one seed)"] if 1 in seeds.values() else []
    notes += ["band: 95 % t-interval of the mean over seeds"] if max(seeds.values()) > 1 else []
    legend = ax.legend(loc="center", frameon=False, handlelength=4, title="\n".join(notes), title_fontsize=9)
    legend.set_in_layout(False)  # a long name must not make the panels narrow


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def write(runs: list[Run], smooth: int, out: Path, argv: list[str]) -> None:
    """curves.csv, and the caption: what a reader of the figure has to know, and how to draw it again."""
    groups = by_method(runs)
    points = [p for name in PANELS for method, group in groups.items() for p in curve(name, method, group, smooth)]
    write_rows(points, out / "curves.csv")
    panels = "; ".join(f"{panel.title.lower()} ({panel.unit})" for panel in PANELS.values())
    lines = [
        f"Training curves against the step: {panels}.",
        f"Lines: the running mean over the last {count(smooth, 'step')} of each run, and of these the mean over seeds.",
        "Bands: 95 % t-interval of the mean over seeds, cut to possible values. A method with one seed has none; its",
        "single steps are drawn faint instead. A panel leaves out a method that has no such figure.",
    ]
    for method, group in groups.items():
        seeds = ", ".join(str(run.config["seed"]) for run in group)
        lengths, steps = [len(run.rows) for run in group], len(common_steps(group))
        lines += ["", f"{method}: {count(len(group), 'seed')} ({seeds}), {count(steps, 'step')}"]
        if max(lengths) > steps:
            short = f"its runs have {min(lengths)} to {max(lengths)} steps, and what is drawn are the {steps} of all"
            lines.append(f"    {short}")
            print(f"{method}: {short}", file=sys.stderr)
        lines += [f"    {run.folder}" for run in group]
    lines += ["", "drawn by:    " + shlex.join(["python", "-m", "analysis.curves", *argv])]
    lines += ["drawn again: " + shlex.join(["python", "-m", "analysis.curves", "--from-csv", str(out / "curves.csv")])]
    (out / "curves.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    main_of_runs("curves", __doc__, write, lambda path: draw(read_csv(path)), argv, default_out="runs/figures")


if __name__ == "__main__":
    main()

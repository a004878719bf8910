"""Training curves: reward, response length, entropy (the paper's Figure 2), gradient norm (Figure 3), kept share.

One line per method, from any number of run folders of train.py. Every run is smoothed first: a running mean over its
last N steps. A method with several seeds is drawn as the mean over seeds, in a band: the 95 % t-interval of that mean,
or, with two seeds, from the one to the other, as a t-interval of two would fill the panel. A method with one seed has
no band; its single steps are drawn faint behind its running mean. Runs of one method that differ in a flag are lines of
their own, with the flag in the name.

Writes into --out: curves.png, curves.csv (exactly what is drawn), curves.txt (the caption).

    python -m analysis.curves runs/dr_grpo runs/dagrpo
    python -m analysis.curves runs/dagrpo --watch                     draws again as the run goes on
    python -m analysis.curves --from-csv runs/figures/curves.csv      redraws the PNG, without the runs
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count as count_up
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no window, always the Agg canvas
from matplotlib.ticker import MaxNLocator

from analysis.run_folders import SavedRun, by_method, common_steps, count, describe
from analysis.saved import draw_runs, read_rows, write_rows
from analysis.stats import t_interval
from harness.console import fail


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    most: float  # the highest possible value, as 0 is the lowest; t-intervals are cut to both
    log: bool = False


PANELS = {  # column of metrics.csv -> where it is drawn
    "reward": Panel("Reward", "share of responses that are right", 1.0),
    "response_length": Panel("Response length", "tokens", float("inf")),
    "entropy": Panel("Entropy", "nats per token", float("inf")),
    "grad_norm": Panel("Gradient norm", "L2 norm before clipping, log scale", float("inf"), log=True),
    "kept_fraction": Panel("Kept share", "share of responses with A \N{NOT EQUAL TO} 0", 1.0),
}
# Okabe and Ito's colours without the yellow: colour-blind readers can distinguish them. 7 colours and 5 dashes make 35
# pairs. In a grey print, lines differ by their dashes and, from the sixth on, by markers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
ORDER = ("dr_grpo", "dagrpo_on", "dagrpo", "random mask", "dr_grpo, S as reward", "luffy", "grpo", "sft")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 1.5, 1, 1.2, 1, 1.5)))
MARKERS = ("", "o", "s", "^")


@dataclass(frozen=True)
class CurvePoint:
    """A row of curves.csv: one method at one step in one panel."""

    panel: str
    method: str
    step: int
    mean: float  # over seeds, of the running means
    low: float | None  # the band; empty: one seed
    high: float | None
    seeds: int
    raw: float | None  # this step alone; only where there is one seed
    smooth: int  # steps of the running mean


def over_seeds(runs: list[SavedRun], column: str) -> pd.DataFrame:
    """A column of metrics.csv, (steps, seeds), at the steps that all of these runs have finished."""
    steps = common_steps(runs)
    return pd.concat([run.metrics.reindex(index=steps, columns=[column]) for run in runs], axis=1)


def curve(raw: pd.DataFrame, panel: str, method: str, smooth: int, most: float) -> pd.DataFrame:
    """CurvePoints of one method in one panel, from raw (steps, seeds). Steps where no seed has a value are left out."""
    smoothed = raw.rolling(smooth, min_periods=1).mean()  # (steps, seeds)
    mean, half = t_interval(smoothed.to_numpy())  # (steps,) each
    apart = (smoothed.max(axis=1) - smoothed.min(axis=1)).to_numpy() / 2
    half = np.where(smoothed.notna().sum(axis=1) == 2, apart, half)
    points = {"panel": panel, "method": method, "step": raw.index, "mean": mean}
    points |= {"low": np.maximum(mean - half, 0.0), "high": np.minimum(mean + half, most)}
    points |= {"seeds": smoothed.notna().sum(axis=1).to_numpy()}
    points |= {"raw": raw.iloc[:, 0].to_numpy() if raw.shape[1] == 1 else np.nan, "smooth": smooth}
    return pd.DataFrame(points).query("seeds > 0")


def read_csv(path: Path) -> pd.DataFrame:
    points = read_rows(CurvePoint, path)
    if unknown := set(points["panel"]) - set(PANELS):
        fail(f"{path}: unknown panels {', '.join(sorted(unknown))}; analysis.curves draws {', '.join(PANELS)}")
    return points


def message(points: pd.DataFrame) -> str:
    """The figure's title: the first method's reward and length at the end, and how far the others are off."""
    shown, lines = {"reward": 2, "response_length": 1}, []  # panels, and their digits
    ends = points[points["panel"].isin(shown)].groupby(["panel", "method"], sort=False)[["mean", "seeds"]].last()
    for panel, digits in shown.items():
        if panel in ends.index:
            (first, *others), mean = ends.loc[panel].index, ends.loc[panel, "mean"]
            others = sorted(others, key=lambda method: -mean[method])[:4]
            gaps = "".join(f", {method} {mean[method] - mean[first]:+.{digits}f}" for method in others)
            lines.append(f"{PANELS[panel].title} at the end: {first} {mean[first]:.{digits}f}{gaps}")
    if not lines:
        return "Training curves"
    fewest, most = ends["seeds"].min(), ends["seeds"].max()
    seeds = f"{count(fewest, 'seed')} {'each' if fewest == most else 'or more'}{': no verdict' if most == 1 else ''}"
    return "\n".join([*lines[:-1], f"{lines[-1]} ({seeds})"])


def draw_curves(points: pd.DataFrame) -> Figure:
    """The five panels; the legend takes the sixth place."""
    methods = points["method"].unique()
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    axes, last = figure.subplots(2, 3).flatten(), points["step"].max()
    for ax, (name, panel) in zip(axes, PANELS.items(), strict=False):
        here = points[points["panel"] == name]
        for method, i in places(methods).items():
            draw_line(ax, here[here["method"] == method], i, panel.log)
        if panel.log and len(here):
            log_axis(ax, here)
        if here.empty:
            ax.text(0.5, 0.5, "none of these runs has it", ha="center", transform=ax.transAxes)
        ax.set(title=panel.title, xlabel="step", ylabel=panel.unit, xlim=(0.5 - last / 50, last + last / 50 + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    draw_legend(axes[-1], points)
    figure.suptitle(message(points))
    return figure


def places(methods: Iterable[str]) -> dict[str, int]:
    """The number of each method's style. Methods of ORDER have the same one in every figure; others take what is left.

    >>> places(["sft", "dapo", "dagrpo after sft", "gspo"])
    {'sft': 7, 'dapo': 0, 'dagrpo after sft': 2, 'gspo': 1}
    """
    known: dict[str, int] = {}
    for method in sorted(methods, key=lambda name: name not in ORDER):  # the style of `dr_grpo` is first of all its own
        name = method.partition(" after ")[0]
        if name in ORDER and ORDER.index(name) not in known.values():
            known[method] = ORDER.index(name)
    left = (i for i in count_up() if i not in known.values())
    return {method: known[method] if method in known else next(left) for method in methods}


def style(index: int, points: int) -> dict:
    """How a method is drawn, given its number from `places`; about 8 of the points get a marker, if it has one."""
    look = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.7}
    marker = MARKERS[index // len(DASHES) % len(MARKERS)] or ("o" if points == 1 else "")  # a lone point is no line
    return look | {"marker": marker, "markersize": 4, "markevery": (0, max(1, points // 8))}


def draw_line(ax: Axes, line: pd.DataFrame, index: int, log: bool = False) -> None:
    """The CurvePoints of one method; nothing if there are none."""
    if line.empty:
        return

    def column(name: str, at_zero: float = np.nan) -> pd.Series:
        """A log axis has no place for 0: there the line has a gap."""
        return line[name].mask(line[name] <= 0, at_zero) if log else line[name]

    steps, colour = line["step"], COLOURS[index % len(COLOURS)]
    ax.plot(steps, column("raw"), color=colour, alpha=0.35, linewidth=0.8)
    ax.fill_between(steps, column("low", at_zero=1e-12), column("high"), color=colour, alpha=0.18, linewidth=0)
    ax.plot(steps, column("mean"), **style(index, len(line)))


def log_axis(ax: Axes, points: pd.DataFrame) -> None:
    """A log axis as wide as its lines: a band that comes down to 0 must not stretch it."""
    ax.set_yscale("log")
    lines = points[["mean", "raw"]].where(lambda x: x > 0)
    if lines.notna().any(axis=None):
        ax.set_ylim(lines.min(axis=None) / 1.5, 1.3 * np.nanmax([lines.max(axis=None), points["high"].max()]))


def draw_legend(ax: Axes, points: pd.DataFrame) -> None:
    ax.axis("off")
    seeds = points.groupby("method", sort=False)["seeds"].max()
    for method, i in places(seeds.index).items():
        n = seeds[method]
        ax.plot([], [], label=textwrap.fill(f"{method} ({count(n, 'seed')})", 40), **style(i, 2))
    notes = [f"line: running mean over {count(points['smooth'].iloc[0], 'step')}"]
    notes += ["faint: single steps (one seed)"] if 1 in seeds.values else []
    notes += ["band: from one seed to the other"] if (points["seeds"] == 2).any() else []
    notes += ["band: 95 % t-interval of the mean over seeds"] if seeds.max() > 2 else []
    legend = ax.legend(loc="center", frameon=False, handlelength=4, title="\n".join(notes), title_fontsize=9)
    legend.set_in_layout(False)  # a long name must not make the panels narrow


def measure(runs: list[SavedRun], smooth: int, path: Path) -> str:
    """Writes curves.csv, and returns the caption."""
    groups = by_method(runs).items()
    lines = [(over_seeds(group, name), name, method) for name in PANELS for method, group in groups]
    write_rows(pd.concat([curve(*line, smooth, PANELS[line[1]].most) for line in lines]), path)
    panels = "; ".join(f"{panel.title.lower()} ({panel.unit})" for panel in PANELS.values())
    caption = [
        f"Training curves against the step: {panels}.",
        f"Lines: the running mean over the last {count(smooth, 'step')} of each run, and of these the mean over seeds.",
        "Bands: 95 % t-interval of the mean over seeds, cut to possible values; of two seeds, from one to the other.",
        "A method with one seed has none; its single steps are drawn faint instead. A panel leaves out a method that",
        "has no such figure.",
    ]
    return "\n".join([*caption, *describe(runs)])


def redraw(source: Path, out: Path) -> None:
    points = read_csv(source)
    draw_curves(points).savefig(out / "curves.png", dpi=120)
    print(message(points))


def main(argv: list[str] | None = None) -> None:
    draw_runs("curves", __doc__, argv, measure, redraw, default_out="runs/figures")


if __name__ == "__main__":
    main()

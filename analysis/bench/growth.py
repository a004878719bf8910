"""How the cost of a step grows: its time and peak memory against group size, prompt length and response length.

We vary one of the three at a time, from one prompt of 128 tokens with 8 responses of 128. Every row carries signal, and
every response has its full length, so that each point has exactly the size it names. Each is a process of its own
(analysis.bench.step) with three steps, of which the last is counted.

What it shows: prompts run once for their group, so time grows slower than G x P (dashed: in proportion). Micro-batches
bound the learner's memory once a group is larger than one of them; the memory of sampling grows with the rows.

Writes into --out: growth.png, growth.csv (exactly what is drawn), growth.txt (the caption).

    python -m analysis.bench.growth --model DIR
    python -m analysis.bench.growth --from-csv results/growth/growth.csv      redraws the PNG, and prints the table
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from analysis.bench.sides import Case
from analysis.bench.step import measure
from analysis.curves import COLOURS
from analysis.saved import draw_figure, read_rows, write_rows
from analysis.stats import markdown
from harness.console import Parser, progress

BASE = Case(prompts=1, group_size=8, prompt_tokens=128, new_tokens=128, micro_batch_tokens=2048, steps=1, whole=True)
VARIED = {  # the field of Case -> what the axis is called, and the values
    "group_size": ("group size G", (4, 8, 16, 32)),
    "prompt_tokens": ("prompt tokens P", (64, 128, 256, 512, 1024)),
    "new_tokens": ("response tokens T", (32, 64, 128, 256, 512)),
}


@dataclass(frozen=True)
class GrowthPoint:
    """A row of growth.csv: one process. `varied`: which of the three differs from BASE (empty: none)."""

    varied: str
    group_size: int
    prompt_tokens: int
    new_tokens: int
    step: float  # seconds
    rollout: float
    learner: float
    peak_gb: float
    micro_batch_tokens: int
    model: str


def cases() -> Iterator[tuple[str, Case]]:
    """BASE first, then each value that is not BASE's."""
    yield "", BASE
    for name, (_, values) in VARIED.items():
        yield from ((name, replace(BASE, **{name: value})) for value in values if value != getattr(BASE, name))


def points(model: str) -> Iterator[GrowthPoint]:
    """Measures all cases, one after the other."""
    for varied, case in progress(list(cases()), desc="growth", unit="case"):
        found = measure(replace(case, model=model, who="all"))
        shape = (case.group_size, case.prompt_tokens, case.new_tokens)
        seconds = (found["step"], found["rollout"], found["learner"])
        yield GrowthPoint(varied, *shape, *seconds, found["peak_gb"], case.micro_batch_tokens, Path(model).name)


def line(points: pd.DataFrame, name: str) -> pd.DataFrame:
    """The points at which `name` alone is varied, with BASE, in order."""
    return points[points["varied"].isin(("", name))].sort_values(name)


def draw_growth(points: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, len(VARIED), sharey="row", sharex="col")
    for column, (name, (label, values)) in enumerate(VARIED.items()):
        here = line(points, name)
        draw_seconds(axes[0, column], here, name)
        axes[1, column].plot(here[name], here["peak_gb"], "o-", color=COLOURS[0])
        axes[1, column].set(xlabel=label, xticks=values)
        for ax in axes[:, column]:
            ax.grid(alpha=0.3)
        axes[1, column].xaxis.set_major_formatter(ScalarFormatter())
        axes[1, column].xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("seconds a step, log scale")
    axes[1, 0].set_ylim(0, 1.1 * points["peak_gb"].max())
    axes[1, 0].set_ylabel("peak memory of the process, GB")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(growth_message(points), fontsize=10)
    return figure


def growth_message(points: pd.DataFrame) -> str:
    """The figure's title: how many times as long the largest size takes as the smallest."""
    parts = []
    for name, (label, _) in VARIED.items():
        here = line(points, name)
        times, size = here["step"].iloc[-1] / here["step"].iloc[0], here[name].iloc[-1] / here[name].iloc[0]
        parts.append(f"{times:.1f} times as long with {size:.0f} times the {label}")
    return f"A step takes {', '.join(parts)}"


def draw_seconds(ax: Axes, here: pd.DataFrame, name: str) -> None:
    looks = {"step": ("o-", COLOURS[0]), "rollout": ("s--", COLOURS[1]), "learner": ("^:", COLOURS[2])}
    for part, (look, colour) in looks.items():
        ax.plot(here[name], here[part], look, color=colour, label=part, markersize=4)
    first = here.iloc[0]
    ax.plot(
        here[name], first["step"] * here[name] / first[name], "--", color="grey", linewidth=0.8, label="in proportion"
    )
    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_major_formatter(ScalarFormatter())


def growth_table(points: pd.DataFrame) -> str:
    """Markdown; last column: the time divided by that of the block's first row, and the same for the size varied."""
    lines = []
    for name, (label, _) in VARIED.items():
        here = line(points, name)
        for p in here.itertuples():
            times = p.step / here["step"].iloc[0], getattr(p, name) / here[name].iloc[0]
            shape = [str(p.group_size), str(p.prompt_tokens), str(p.new_tokens)]
            figures = [f"{p.step:.1f}", f"{p.rollout:.1f}", f"{p.learner:.1f}", f"{p.peak_gb:.2f}"]
            lines.append([label, *shape, *figures, f"{times[0]:.1f} ({times[1]:.0f})"])
    heads = ["varied", "G", "P", "T", "s a step", "sampling", "learner", "peak GB", "times (in proportion)"]
    return markdown(heads, lines)


def caption(model: str) -> str:
    about = f"""
        Time and peak memory of one training step of {Path(model).name} on two CPU cores, fp32, all rows with signal,
        all responses of full length, micro-batches of at most {BASE.micro_batch_tokens} tokens. One of group size,
        prompt and response length is varied at a time, from one prompt with G = {BASE.group_size},
        P = {BASE.prompt_tokens}, T = {BASE.new_tokens}. Each point is one step of one process: the machine's noise is
        in it. Grey: the first point's time, growing in proportion. Rollout: sampling, rewards and masks."""
    return textwrap.fill(" ".join(about.split()), 118)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.bench.growth", description=__doc__)
    parser.add_argument("--model", metavar="DIR", help="a model folder or hub id with positions for 1,152 tokens")

    def write(model: str, path: Path) -> str:
        found: list[GrowthPoint] = []
        for point in points(model):
            found.append(point)
            write_rows(found, path)  # as it goes
        return caption(model)

    def redraw(source: Path, out: Path) -> None:
        found = read_rows(GrowthPoint, source)
        draw_growth(found).savefig(out / "growth.png", dpi=100)
        print(growth_table(found))

    draw_figure(parser, argv, lambda args: args.model, write, redraw, default_out="runs/growth", instead="--model")


if __name__ == "__main__":
    main()

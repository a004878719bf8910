"""How the cost of a step grows: its time and peak memory against group size, prompt length and response length.

One of the three is varied at a time, from one prompt of 128 tokens with 8 responses of 128. Every row carries signal,
and every response has its full length, so that a point is what its name says. Each is a process of its own
(analysis.bench.step), three steps, of which the last is counted.

What is to be seen: prompts run once for their group, so time grows slower than G x P (dashed: in proportion); and
micro-batches bound the learner's memory once a group is larger than one, while that of sampling grows with the rows.

Writes into --out: growth.png, growth.csv (exactly what is drawn), growth.txt (the caption).

    python -m analysis.bench.growth --model DIR
    python -m analysis.bench.growth --from-csv results/growth/growth.csv      redraws the PNG, and prints the table
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from analysis.bench.step import Case, measure
from analysis.curves import COLOURS
from analysis.saved import read_rows, write_rows
from harness.console import Parser, fail, progress

BASE = Case(prompts=1, group_size=8, prompt_tokens=128, new_tokens=128, micro_batch_tokens=2048, steps=1, whole=True)
VARIED = {  # the field of Case -> what the axis is called, and the values
    "group_size": ("group size G", (4, 8, 16, 32)),
    "prompt_tokens": ("prompt tokens P", (64, 128, 256, 512, 1024)),
    "new_tokens": ("response tokens T", (32, 64, 128, 256, 512)),
}


@dataclass(frozen=True)
class Point:
    """A row of growth.csv: one process. `varied`: which of the three is not BASE's ("": none)."""

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


def points(model: str) -> Iterator[Point]:
    """Measures all cases, one after the other."""
    for varied, case in progress(list(cases()), desc="growth", unit="case"):
        found = measure(replace(case, model=model, who="all"))
        shape = (case.group_size, case.prompt_tokens, case.new_tokens)
        seconds = (found["step"], found["rollout"], found["learner"])
        yield Point(varied, *shape, *seconds, found["peak_gb"], case.micro_batch_tokens, Path(model).name)


def line(found: list[Point], name: str) -> list[Point]:
    """The points at which `name` alone is varied, with BASE, in order."""
    return sorted((p for p in found if p.varied in ("", name)), key=lambda p: getattr(p, name))


def draw(found: list[Point]) -> Figure:
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, len(VARIED), sharey="row", sharex="col")
    for column, (name, (label, values)) in enumerate(VARIED.items()):
        here = line(found, name)
        draw_seconds(axes[0, column], here, name)
        axes[1, column].plot(values_of(here, name), [p.peak_gb for p in here], "o-", color=COLOURS[0])
        axes[1, column].set(xlabel=label, xticks=values)
        for ax in axes[:, column]:
            ax.grid(alpha=0.3)
        axes[1, column].xaxis.set_major_formatter(ScalarFormatter())
        axes[1, column].xaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("seconds a step, log scale")
    axes[1, 0].set_ylim(0, 1.1 * max(p.peak_gb for p in found))
    axes[1, 0].set_ylabel("peak memory of the process, GB")
    axes[0, 0].legend(fontsize=8)
    return figure


def values_of(here: list[Point], name: str) -> list[int]:
    return [getattr(point, name) for point in here]


def draw_seconds(ax: Axes, here: list[Point], name: str) -> None:
    xs = values_of(here, name)
    looks = {"step": ("o-", COLOURS[0]), "rollout": ("s--", COLOURS[1]), "learner": ("^:", COLOURS[2])}
    for part, (look, colour) in looks.items():
        ax.plot(xs, [getattr(p, part) for p in here], look, color=colour, label=part, markersize=4)
    ax.plot(xs, [here[0].step * x / xs[0] for x in xs], "--", color="grey", linewidth=0.8, label="in proportion")
    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_major_formatter(ScalarFormatter())


def table(found: list[Point]) -> str:
    """Markdown; the last column is the time over the least one of its block, and what it would be in proportion."""
    lines = [
        "| varied | G | P | T | s a step | sampling | learner | peak GB | times (in proportion) |",
        "| --- " * 9 + "|",
    ]
    for name, (label, _) in VARIED.items():
        here = line(found, name)
        for p in here:
            grown = f"{p.step / here[0].step:.1f} ({getattr(p, name) / getattr(here[0], name):.0f})"
            shape = f"{p.group_size} | {p.prompt_tokens} | {p.new_tokens}"
            seconds = f"{p.step:.1f} | {p.rollout:.1f} | {p.learner:.1f}"
            lines.append(f"| {label} | {shape} | {seconds} | {p.peak_gb:.2f} | {grown} |")
    return "\n".join(lines)


def caption(found: list[Point], argv: list[str], out: Path) -> str:
    one = found[0]
    again = shlex.join(["python", "-m", "analysis.bench.growth", "--from-csv", str(out / "growth.csv")])
    shown = [Path(word).name if Path(word).is_absolute() else word for word in argv]
    shape = f"G = {BASE.group_size}, P = {BASE.prompt_tokens}, T = {BASE.new_tokens}"
    about = f"""
        Time and peak memory of one training step of {one.model} on two CPU cores, fp32, all rows with signal, all
        responses of full length, micro-batches of at most {one.micro_batch_tokens} tokens. One of group size, prompt
        and response length is varied at a time, from one prompt with {shape}. Each point is one step of one process:
        the machine's noise is in it. Grey: the first point's time, growing in proportion. Rollout: sampling, rewards
        and masks."""
    about = textwrap.fill(" ".join(about.split()), 118)
    made = shlex.join(["python", "-m", "analysis.bench.growth", *shown])
    return f"{about}\n\ndrawn by:    {made}\ndrawn again: {again}\n"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="python -m analysis.bench.growth", description=__doc__)
    parser.add_argument("--model", metavar="DIR", help="a model folder or hub id with positions for 1,152 tokens")
    parser.add_argument("--out", metavar="DIR", help="where to write [runs/growth; of --from-csv: beside the CSV]")
    parser.add_argument("--from-csv", metavar="FILE", help="draw this growth.csv, and measure nothing")
    args = parser.parse_args(argv)
    if bool(args.model) == bool(args.from_csv):
        fail("give --model DIR, or --from-csv FILE, one of the two")
    source = Path(args.from_csv) if args.from_csv else None
    out = Path(args.out or (source.parent if source else "runs/growth"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if source is None:
            found: list[Point] = []
            for point in points(args.model):
                write_rows([*found, point], out / "growth.csv")  # as it goes
                found.append(point)
            (out / "growth.txt").write_text(caption(found, argv, out), encoding="utf-8")
        found = read_rows(Point, source or out / "growth.csv")
        draw(found).savefig(out / "growth.png", dpi=100)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); choose another folder")
    print(table(found))


if __name__ == "__main__":
    main()

"""Shared tokens (Eq. 6): how much of a group's text stands in right and in wrong responses alike, and what cancels.

A state-action pair is a token w after a history h, the prompt and all tokens before it. Two responses of a group share
a pair where they have the same tokens from the start up to and with w. Every response i that holds (h, w) pushes
grad log pi(w | h) by A_i / |o_i|, with the recipe's divisor for |o_i|; Eq. 6 is their sum. A pair counts as shared if a
positive (A > 0) and a negative response hold it. Of the groups that have signal, three figures for each step:

    shared tokens     tokens that stand on shared pairs, as a share of all tokens
    cancelled there   1 - sum over shared pairs of |sum_i A_i / |o_i|| / sum of |A_i / |o_i||: 0, nothing; 1, all
    cancelled in all  the same amount as a share of the mass sum |A_i / |o_i|| on all tokens

each as sampled, under the mask of Eq. 8-9 and under a random mask that keeps as many positives and negatives of each
group: fewer responses share less by that alone. For methods that do not mask, the mask is what Eq. 8-9 would have left.
All of it is counted from rollouts.jsonl, nothing is trained or loaded. Where we depart from the paper: it argues with
one pair of responses, we sum over all that hold a pair; and anchors count as responses. GTPO's token weights and
entropy term, clips and ratios are left out. Only text from the start counts: after the first difference the history is
another one, even if the words are the same (their gradients may still be alike: analysis.conflict).

Writes into --out: shared.png, shared.csv (exactly what is drawn), shared.txt (the caption).

    python -m analysis.shared runs/dr_grpo runs/dagrpo
    python -m analysis.shared --from-csv runs/shared/shared.csv      redraws the PNG, without the runs
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dagrpo
from analysis import curves
from analysis.curves import COLOURS, common_steps, count, draw_legend, draw_line, running_mean
from analysis.gradients import MASKED, MASKS, NONE, RANDOM, chance_mask
from analysis.saved import main_of_runs, read_rows, write_rows
from analysis.table import Run, by_method, t_interval
from harness.console import fail, progress

PANELS = {
    "shared tokens": "share of the tokens",
    "cancelled there": "share of the mass on shared pairs",
    "cancelled in all": "share of all mass",
}
MARKS = {NONE: "o", RANDOM: "s", MASKED: "^"}


@dataclass(frozen=True)
class Point(curves.Point):
    """A row of shared.csv: one method at one step, or over all steps at one level (step 0; "every": at all of them)."""

    mask: str
    level: str  # "all" at a step


# ---------------------------------------------------------------------------------------- one group


def pair_ids(tokens: list[list[int]]) -> list[list[int]]:
    """A number for the state-action pair at each token of G responses: equal where history and token are equal.

    >>> pair_ids([[7, 8], [7, 9, 8], [7, 8]])
    [[0, 1], [0, 2, 3], [0, 1]]
    """
    known: dict[tuple[int, int], int] = {}  # (pair before, token) -> pair: a trie
    found = []
    for row in tokens:
        ids = [-1]
        for token in row:
            ids.append(known.setdefault((ids[-1], token), len(known)))
        found.append(ids[1:])
    return found


def tally(tokens: list[list[int]], pushes: np.ndarray) -> np.ndarray:
    """Of one group, (5,): its tokens, those on shared pairs; the mass, that on shared pairs, and what of it cancels.

    `pushes` (G,) are A_i / |o_i|, 0 for masked responses, which then do not count at all.

    >>> tally([[7, 8], [7, 9]], np.array([0.5, -0.5]))
    array([4., 2., 2., 1., 1.])
    """
    flat = np.concatenate([np.array(ids, dtype=int) for ids in pair_ids(tokens)])  # (tokens,)
    push = np.repeat(pushes, [len(row) for row in tokens])  # (tokens,)
    there = push != 0
    positive, negative = (np.bincount(flat, weights=push.clip(*ends)) for ends in ((0, None), (None, 0)))  # (pairs,)
    shared = (positive > 0) & (negative < 0)
    mass, net = positive - negative, np.abs(positive + negative)
    return np.array([there.sum(), (there & shared[flat]).sum(), mass.sum(), mass[shared].sum(), (mass - net).sum()])


def ratios(tallies: np.ndarray) -> dict[str, float | None]:
    """PANELS from the sums of tallies (5,); None where there is nothing to take a share of."""
    tokens, shared, mass, on_shared, cancelled = tallies.tolist()
    parts = ((shared, tokens), (cancelled, on_shared), (cancelled, mass))
    return {name: a / b if b else None for name, (a, b) in zip(PANELS, parts, strict=True)}


# ---------------------------------------------------------------------------------------- runs


def read_groups(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of rollouts.jsonl; a last one that is just being written is left out. Raises ValueError."""
    path = folder / "rollouts.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): analysis.shared counts in it") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not every line is a group") from error


def tallies_of(run: Run) -> dict[tuple[str, int, str], np.ndarray]:
    """(mask, step, level) -> the tallies of its groups with signal, summed. Raises ValueError on a damaged file."""
    recipe, delta = run.config.get("recipe") or {}, run.config.get("delta", 3.0)
    torch.manual_seed(0)  # of the random masks
    found: dict[tuple[str, int, str], np.ndarray] = {}
    for group in read_groups(run.folder):
        try:
            A, tokens = np.array(group["A"], dtype=float), group["tokens"]
            S = torch.tensor([float("nan") if s is None else s for s in group["S"]])
            step, level = int(group["step"]), str(group["level"])
            keep = dagrpo.rectification_mask(torch.from_numpy(A)[None], S[None], delta)[0].numpy()  # (G,)
        except (KeyError, TypeError, ValueError) as error:
            path = run.folder / "rollouts.jsonl"
            raise ValueError(f"{path} is damaged: a line has not the A, S, tokens, step, level of a group") from error
        if not A.any():
            continue
        # of the three divisors only this one differs between the rows of an update; a common factor cancels out
        rows = np.array([max(len(row), 1) for row in tokens]) if recipe.get("divisor") == "sequence" else 1  # (G,)
        for mask, kept in zip(MASKS, (True, chance_mask(A, keep), keep), strict=True):
            key = (mask, step, level)
            found[key] = found.get(key, 0) + tally(tokens, A / rows * kept)
    if not found:
        raise ValueError(f"{run.folder / 'rollouts.jsonl'} has no group with signal: there is nothing to count")
    return found


def curve(name: str, mask: str, method: str, runs: list[Run], smooth: int) -> list[Point]:
    """One method in one panel over training: seeds smoothed first, then their mean and its 95 % t-interval."""
    steps = common_steps(runs)
    raw = [[run.rows[step].get(f"{name}, {mask}") for step in steps] for run in runs]  # (seeds, steps)
    smoothed = [running_mean(values, smooth) for values in raw]
    columns = zip(steps, zip(*smoothed, strict=True), raw[0], strict=True)
    points = [
        point(name, method, step, values, alone if len(runs) == 1 else None, smooth, mask, "all")
        for step, values, alone in columns
    ]
    return [p for p in points if p]


def point(
    name: str,
    method: str,
    step: int,
    values: Iterable[float | None],
    alone: float | None,
    smooth: int,
    mask: str,
    level: str,
) -> Point | None:
    """The mean over seeds, and its interval cut to what shares can be; None if no seed has the figure."""
    there = [x for x in values if x is not None]
    if not there:
        return None
    mean, half = t_interval(there)
    low, high = (None, None) if half is None else (max(0.0, mean - half), min(1.0, mean + half))
    return Point(name, method, step, mean, low, high, len(there), alone, smooth, mask, level)


def measure(runs: list[Run], smooth: int) -> list[Point]:
    """All points: over training, and over all steps by level."""
    points, counted = [], {}
    bar = progress(runs, desc="runs")
    for run in bar:
        try:
            counted[run.folder] = tallies_of(run)
        except ValueError as why:
            bar.close()  # or it would be drawn once more, behind the error
            fail(str(why))
    for method, group in by_method(runs).items():
        stepwise, levels = [], sorted({level for run in group for _, _, level in counted[run.folder]})
        for run in group:
            rows: dict[int, dict[str, float | None]] = {step: {} for step in run.rows}
            for step in rows:
                for mask in MASKS:
                    here = [t for (m, s, _), t in counted[run.folder].items() if (m, s) == (mask, step)]
                    if here:
                        rows[step] |= {f"{name}, {mask}": x for name, x in ratios(sum(here)).items()}
            stepwise.append(replace(run, rows=rows))
        for mask in MASKS:
            sums = [
                {
                    at: sum(t for (m, _, name), t in counted[r.folder].items() if (m, name) == (mask, at))
                    for at in levels
                }
                for r in group
            ]
            for name in PANELS:
                points += curve(name, mask, method, stepwise, smooth) if mask != RANDOM else []
                for at in [*levels, "every"]:
                    total = [sum(s.values()) if at == "every" else s[at] for s in sums]
                    values = [ratios(t)[name] if isinstance(t, np.ndarray) else None for t in total]
                    points.append(point(name, method, 0, values, None, smooth, mask, at))
    return [p for p in points if p]


# ---------------------------------------------------------------------------------------- the figure


def draw(points: list[Point]) -> Figure:
    """A column for each of PANELS; rows: over training as sampled, over training under the mask, by level."""
    methods = list(dict.fromkeys(p.method for p in points))
    figure = Figure(figsize=(14.5, 9.4), layout="constrained")
    axes = figure.subplots(3, 4, width_ratios=(1, 1, 1, 0.9))
    for column, (name, unit) in zip(axes.T, PANELS.items(), strict=False):
        here = [p for p in points if p.panel == name]
        for ax, mask, told in ((column[0], NONE, "as sampled"), (column[1], MASKED, "after the mask of Eq. 8-9")):
            for i, method in enumerate(methods):
                line = [p for p in here if (p.method, p.mask, p.level) == (method, mask, "all")]
                draw_line(ax, line, i, log=False)
            ax.set(title=f"{name.capitalize()}, {told}", xlabel="step", ylabel=unit)
        draw_levels(column[2], [p for p in here if p.step == 0], methods)
        column[2].set(title=f"{name.capitalize()}, by level", xlabel="level (last: all)", ylabel=unit)
        top = max([p.high or p.mean for p in here], default=1.0)
        for ax in column:
            ax.set_ylim(0, min(1.0, 1.08 * top) + 0.01)
            ax.grid(alpha=0.3)
    draw_legend(axes[0, 3], [p for p in points if p.step], methods)
    axes[1, 3].axis("off")
    axes[2, 3].axis("off")
    for mask, marker in MARKS.items():
        fill = "white" if mask == NONE else "0.3"
        axes[2, 3].plot([], [], marker=marker, linestyle="none", color="0.3", markerfacecolor=fill, label=mask)
    axes[2, 3].legend(loc="center", frameon=False, title="by level, all steps; mask:\n(colours as above)")
    return figure


def draw_levels(ax: Axes, points: list[Point], methods: list[str]) -> None:
    """Methods side by side at each level, masks by their markers."""
    levels = list(dict.fromkeys(p.level for p in points))
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        for p in (p for p in points if p.method == method):
            at = (
                levels.index(p.level)
                + width * (i - (len(methods) - 1) / 2)
                + 0.27 * width * (list(MARKS).index(p.mask) - 1)
            )
            look = {"color": COLOURS[i % len(COLOURS)], "markersize": 5}
            fill = "white" if p.mask == NONE else look["color"]
            half = None if p.low is None else [[p.mean - p.low], [p.high - p.mean]]
            ax.errorbar(at, p.mean, half, marker=MARKS[p.mask], markerfacecolor=fill, elinewidth=0.8, **look)
    ax.set_xticks(range(len(levels)), ["all" if level == "every" else level for level in levels])


# ---------------------------------------------------------------------------------------- the command line


CAPTION = """\
Shared state-action pairs (Eq. 6) in the groups that have signal. Columns: tokens on pairs that a positive and a
negative response of their group both hold, as a share of all tokens; of the advantage mass on these pairs, the share
that cancels; the same as a share of all mass. Rows: over training as sampled, over training after the mask of Eq. 8-9
(for a method without a mask: what it would have left), and over all steps by level: circles as sampled, triangles after
the mask, squares after a random mask that keeps as many of each side. Lines: the running mean over {} of each run, and
of these the mean over seeds. Bands and bars: 95 % t-interval of the mean over seeds, cut to [0, 1]; one seed has none,
and its single steps are drawn faint."""


def caption(runs: list[Run], out: Path, smooth: int, argv: list[str]) -> str:
    lines = [CAPTION.format(count(smooth, "step")), ""]
    for method, group in by_method(runs).items():
        seeds = ", ".join(str(run.config["seed"]) for run in group)
        lines.append(f"{method}: {count(len(group), 'seed')} ({seeds}), {count(len(common_steps(group)), 'step')}")
        lines += [f"    {run.folder}" for run in group]
    lines += ["", "drawn by:    " + shlex.join(["python", "-m", "analysis.shared", *argv])]
    lines += ["drawn again: " + shlex.join(["python", "-m", "analysis.shared", "--from-csv", str(out / "shared.csv")])]
    return "\n".join(lines) + "\n"


def tell(points: list[Point]) -> str:
    """Over all steps and levels, as text."""
    lines = [f"{'method':24s}{'mask':10s}" + "".join(f"{name:>24s}" for name in PANELS)]
    for method, mask in dict.fromkeys((p.method, p.mask) for p in points):
        cells = {p.panel: p for p in points if (p.method, p.mask, p.level) == (method, mask, "every")}
        line = f"{method:24s}{mask:10s}"
        for name in PANELS:
            p = cells.get(name)
            band = "" if p is None or p.high is None else f" [{p.low:.3f}, {p.high:.3f}]"
            line += f"{'-' if p is None else f'{p.mean:.3f}' + band:>24s}"
        lines.append(line)
    return "\n".join(lines)


def write(runs: list[Run], smooth: int, out: Path, argv: list[str]) -> None:
    points = measure(runs, smooth)
    print(tell(points))
    write_rows(points, out / "shared.csv")
    (out / "shared.txt").write_text(caption(runs, out, smooth, argv), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    def redraw(path: Path) -> Figure:
        return draw(read_rows(Point, path))

    main_of_runs("shared", __doc__, write, redraw, argv, default_out="runs/shared", dpi=80)


if __name__ == "__main__":
    main()

"""Shared tokens (Eq. 6): how much of a group's text right and wrong responses share, and what cancels there.

A state-action pair is a token w after a history h: the prompt and all tokens before it. Two responses of a group share
a pair where they have the same tokens from the start up to and including w. Every response i that holds (h, w) pushes
grad log pi(w | h) by A_i / |o_i|, with the recipe's divisor for |o_i|; Eq. 6 is their sum. A pair counts as shared if a
positive (A > 0) and a negative response hold it. For the groups with signal, at each step:

    shared tokens     tokens of shared pairs, as a share of all tokens
    cancelled there   1 - sum over shared pairs of |sum_i A_i / |o_i|| / sum of |A_i / |o_i||: 0, nothing; 1, all
    cancelled in all  the same amount as a share of the mass sum |A_i / |o_i|| on all tokens

each as sampled, under the mask of Eq. 8-9 and under a random mask that keeps as many positives and negatives of each
group, because fewer responses share less anyway. For methods that do not mask, the mask of Eq. 8-9 is computed all the
same. Everything is counted from rollouts.jsonl; nothing is trained or loaded. Where we depart from the paper: it argues
with one pair of responses, we sum over all that hold a pair; and anchors count as responses. GTPO's token weights and
entropy term, clips and ratios are left out. Only text from the start counts: after the first difference the histories
differ, even if the words are the same (their gradients may still be similar: analysis.conflict).

Writes into --out: shared.png, shared.csv (exactly what is drawn), shared.txt (the caption).

    python -m analysis.shared runs/dr_grpo runs/dagrpo
    python -m analysis.shared --from-csv runs/shared/shared.csv      redraws the PNG, without the runs
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dagrpo
from analysis.curves import COLOURS, CurvePoint, curve, draw_legend, draw_line, places
from analysis.gradients import MASKED, MASKS, NONE, RANDOM, chance_mask
from analysis.run_folders import SavedRun, by_method, common_steps, count, describe, read_rollouts
from analysis.saved import draw_runs, read_rows, write_rows
from harness.console import fail, progress

PANELS = {
    "shared tokens": "share of the tokens",
    "cancelled there": "share of the mass on shared pairs",
    "cancelled in all": "share of all mass",
}
MARKS = {NONE: "o", RANDOM: "s", MASKED: "^"}
COUNTED = ["tokens", "shared", "mass", "on_shared", "cancels"]  # the columns of `tally`


@dataclass(frozen=True)
class SharedPoint(CurvePoint):
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
    """COUNTED for one group, (5,): tokens, tokens on shared pairs, mass, mass on shared pairs, and mass that cancels.

    `pushes` (G,) are A_i / |o_i|; masked responses have 0 and do not count at all.

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


def ratios(sums: pd.DataFrame) -> pd.DataFrame:
    """The shares of PANELS from sums of tallies; NaN where the divisor is 0."""
    parts = (("shared", "tokens"), ("cancels", "on_shared"), ("cancels", "mass"))
    return pd.DataFrame({name: sums[a] / sums[b] for name, (a, b) in zip(PANELS, parts, strict=True)})


# ---------------------------------------------------------------------------------------- runs


def tallies_of(run: SavedRun) -> pd.DataFrame:
    """The tallies of each group with signal: mask, step, level and COUNTED. Raises ValueError on a damaged file."""
    recipe, delta = run.config.get("recipe") or {}, run.config.get("delta", 3.0)
    torch.manual_seed(0)  # for the random masks
    rows = []
    try:
        for _, _, group in read_rollouts(run.folder):
            A, tokens = np.array(group["A"], dtype=float), group["tokens"]
            S = torch.tensor([np.nan if s is None else s for s in group["S"]])
            where = (int(group["step"]), str(group["level"]))
            keep = dagrpo.rectification_mask(torch.from_numpy(A)[None], S[None], delta)[0].numpy()  # (G,)
            if not A.any():
                continue
            # of the three divisors only this one differs between the rows of an update; a common factor cancels out
            lengths = np.array([max(len(row), 1) for row in tokens]) if recipe.get("divisor") == "sequence" else 1
            for mask, kept in zip(MASKS, (True, chance_mask(A, keep), keep), strict=True):
                rows.append([mask, *where, *tally(tokens, A / lengths * kept)])
    except (KeyError, TypeError, ValueError) as error:
        path = run.folder / "rollouts.jsonl"
        raise ValueError(f"{path} is damaged: a line lacks the A, S, tokens, step or level of a group") from error
    if not rows:
        raise ValueError(f"{run.folder / 'rollouts.jsonl'} has no group with signal: there is nothing to count")
    return pd.DataFrame(rows, columns=["mask", "step", "level", *COUNTED])


def points_of(runs: list[SavedRun], smooth: int) -> pd.DataFrame:
    """All SharedPoints: over training, and over all steps by level."""
    try:
        with progress(runs, desc="runs") as bar:
            tallies = {run.folder: tallies_of(run) for run in bar}
    except OSError as error:
        fail(f"{error.filename} cannot be read ({error.strerror}): analysis.shared needs it")
    except ValueError as error:
        fail(str(error))
    points = []
    for method, group in by_method(runs).items():
        seeds, steps = range(len(group)), common_steps(group)
        every = pd.concat([tallies[run.folder] for run in group], keys=seeds, names=["seed"])
        for mask in MASKS:
            here = every[every["mask"] == mask].drop(columns="mask")
            by_step = ratios(here.drop(columns="level").groupby(["seed", "step"]).sum())
            here = pd.concat([here, here.assign(level="every")]).drop(columns="step")  # sorts behind the numbers
            by_level = ratios(here.groupby(["seed", "level"]).sum())
            for name in PANELS:
                raw = by_step[name].unstack("seed").reindex(index=steps, columns=seeds)  # (steps, seeds)
                if mask != RANDOM:
                    points.append(curve(raw, name, method, smooth, 1.0).assign(mask=mask, level="all"))
                raw = by_level[name].unstack("seed").reindex(columns=seeds)  # (levels, seeds)
                found = curve(raw, name, method, 1, 1.0)  # its "steps" are the levels
                points.append(found.assign(mask=mask, level=found["step"], step=0, raw=np.nan, smooth=smooth))
    return pd.concat(points)


# ---------------------------------------------------------------------------------------- the figure


def draw_shared(points: pd.DataFrame) -> Figure:
    """A column for each of PANELS; rows: over training as sampled, over training under the mask, by level."""
    methods = list(points["method"].unique())
    figure = Figure(figsize=(14.5, 9.4), layout="constrained")
    axes = figure.subplots(3, 4, width_ratios=(1, 1, 1, 0.9))
    for column, (name, unit) in zip(axes.T, PANELS.items(), strict=False):
        here = points[points["panel"] == name]
        for ax, mask, when in ((column[0], NONE, "as sampled"), (column[1], MASKED, "after the mask of Eq. 8-9")):
            over_training = here[(here["mask"] == mask) & (here["level"] == "all")]
            for method, i in places(methods).items():
                draw_line(ax, over_training[over_training["method"] == method], i)
            ax.set(title=f"{name.capitalize()}, {when}", xlabel="step", ylabel=unit)
        draw_levels(column[2], here[here["step"] == 0], methods)
        column[2].set(title=f"{name.capitalize()}, by level", xlabel="level (last: all)", ylabel=unit)
        top = here["high"].fillna(here["mean"]).max() if len(here) else 1.0
        for ax in column:
            ax.set_ylim(0, min(1.0, 1.08 * top) + 0.01)
            ax.grid(alpha=0.3)
    draw_legend(axes[0, 3], points[points["step"] > 0])
    axes[1, 3].axis("off")
    axes[2, 3].axis("off")
    for mask, marker in MARKS.items():
        fill = "white" if mask == NONE else "0.3"
        axes[2, 3].plot([], [], marker=marker, linestyle="none", color="0.3", markerfacecolor=fill, label=mask)
    axes[2, 3].legend(loc="center", frameon=False, title="by level, all steps; mask:\n(colours as above)")
    figure.suptitle(shared_message(points))
    return figure


def shared_message(points: pd.DataFrame) -> str:
    """The figure's title: for the first method, how much of the mass cancels under each mask."""
    first = points["method"].iloc[0] if len(points) else ""
    here = points[(points["method"] == first) & (points["level"] == "every") & (points["panel"] == "cancelled in all")]
    shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(here["mask"], here["mean"], strict=True))
    return (
        f"How much of the pushes of {first} cancels on tokens that right and wrong responses share, by mask: {shares}"
    )


def draw_levels(ax: Axes, points: pd.DataFrame, methods: list[str]) -> None:
    """At each level the methods side by side; the marker says which mask."""
    levels, width, place = list(points["level"].unique()), 0.8 / len(methods), places(methods)
    levels = levels if len(levels) > 2 else levels[-1:]  # one level is all there is
    points = points[points["level"].isin(levels)]
    for i, method in enumerate(methods):
        for p in points[points["method"] == method].itertuples():
            shift = (i - (len(methods) - 1) / 2) + 0.27 * (list(MARKS).index(p.mask) - 1)
            look = {"color": COLOURS[place[method] % len(COLOURS)], "markersize": 5}
            fill = "white" if p.mask == NONE else look["color"]
            half = None if np.isnan(p.low) else [[p.mean - p.low], [p.high - p.mean]]
            at = levels.index(p.level) + width * shift
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


def summary(points: pd.DataFrame) -> str:
    """Over all steps and levels, as text."""
    lines = [f"{'method':24s}{'mask':10s}" + "".join(f"{name:>24s}" for name in PANELS)]
    for (method, mask), found in points[points["level"] == "every"].groupby(["method", "mask"], sort=False):
        cells = dict.fromkeys(PANELS, "-")
        for p in found.itertuples():
            cells[p.panel] = f"{p.mean:.3f}" + ("" if np.isnan(p.high) else f" [{p.low:.3f}, {p.high:.3f}]")
        lines.append(f"{method:24s}{mask:10s}" + "".join(f"{cell:>24s}" for cell in cells.values()))
    return "\n".join(lines)


def measure(runs: list[SavedRun], smooth: int, path: Path) -> str:
    points = points_of(runs, smooth)
    print(summary(points))
    write_rows(points, path)
    return "\n".join([CAPTION.format(count(smooth, "step")), *describe(runs)])


def redraw(source: Path, out: Path) -> None:
    draw_shared(read_rows(SharedPoint, source)).savefig(out / "shared.png", dpi=80)


def main(argv: list[str] | None = None) -> None:
    draw_runs("shared", __doc__, argv, measure, redraw, default_out="runs/shared")


if __name__ == "__main__":
    main()

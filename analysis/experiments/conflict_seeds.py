"""Do gradients conflict? Claim C7 and Eq. 5 over training seeds: a spread that one trained policy does not show.

Runs analysis.conflict for the last five training seeds in the world `guess`, where score gaps vary: on the warm start,
and on dr_grpo, dagrpo_on and dagrpo after 50, 100 and 150 steps. Each policy is measured in a process of its own, as
many at once as there are cores. Policies that have been measured are skipped. It keeps:

    C7 within groups    Spearman correlation of score gap and cosine of g, right-wrong pairs of a group; mean of groups
    C7 all pairs        the same over all pairs together
    net none, random, Eq. 8-9            Eq. 5's net share |v+ + v-| / (|v+| + |v-|) of groups: 1, nothing cancels
    net batch none, random, Eq. 8-9      the same of an update: v+ and v- are sums over 16 prompts

C7 says that the correlation is below 0. Intervals are 95 % t-intervals over seeds.

Writes into --out: conflict_seeds.csv (one row per policy and value), conflict_seeds.png, conflict_seeds.txt.

    python -m analysis.experiments.conflict_seeds                    after the grid's stage main
    python -m analysis.experiments.conflict_seeds --from-csv FILE    redraws conflict_seeds.csv, prints the table
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.conflict_points import ConflictPoint
from analysis.curves import style
from analysis.experiments.grid import start_of
from analysis.experiments.processes import call, side_by_side
from analysis.gradients import MASKS, ROLLOUTS
from analysis.saved import draw_figure, read_rows, write_rows
from analysis.stats import markdown, signed_interval, t_interval
from harness.console import Parser, fail

SEEDS, METHODS, STEPS = range(5, 10), ("dr_grpo", "dagrpo_on", "dagrpo"), (50, 100, 150)
WORLD, PROBLEMS = "guess", 64
START = "warm start"
WITHIN, ALL = "C7 within groups", "C7 all pairs"
NAMES = {  # value -> panel, setup and name in conflict.csv
    WITHIN: ("spearman", ROLLOUTS, "score gap within groups"),
    ALL: ("spearman", ROLLOUTS, "score gap"),
    **{f"net {mask}": ("net", ROLLOUTS, mask) for mask in MASKS},
    **{f"net batch {mask}": ("net", f"{ROLLOUTS}, batch", mask) for mask in MASKS},
}


@dataclass(frozen=True)
class SeedPoint:
    """A row of conflict_seeds.csv: one value of one policy."""

    method: str
    step: int
    seed: int
    name: str  # a key of NAMES
    value: float


def policies(root: Path) -> dict[tuple[str, int, int], Path]:
    """Method, step, seed -> the folder of the policy; the warm start is step 0."""
    found = {}
    for seed in SEEDS:
        found[START, 0, seed] = start_of(WORLD, seed)
        for method in METHODS:
            run = root / WORLD / "main" / method / f"seed{seed}"
            found |= {(method, step, seed): run / f"checkpoint-{step}" for step in STEPS[:-1]}
            found[method, STEPS[-1], seed] = run
    return found


def folder_of(root: Path, method: str, step: int, seed: int) -> Path:
    return root / WORLD / "conflict" / method / f"step{step}" / f"seed{seed}"


def measure(root: Path, workers: int) -> None:
    """Runs analysis.conflict for every policy that has no conflict.csv yet."""
    works = []
    for key, policy in policies(root).items():
        if not policy.exists():
            fail(f"{policy} is not there: python -m analysis.experiments.grid --worlds guess makes it")
        out = folder_of(root, *key)
        if not (out / "conflict.txt").exists():  # is written last
            flags = ["--world", WORLD, "--model", str(policy), "--seeds", "1", "--problems", str(PROBLEMS)]
            flags += ["--out", str(out)]
            works.append(partial(call, [sys.executable, "-m", "analysis.conflict", *flags], out))
    side_by_side(works, "policies", workers)


def gather(root: Path) -> pd.DataFrame:
    """The SeedPoints of all policies."""
    points = []
    for method, step, seed in policies(root):
        rows = read_rows(ConflictPoint, folder_of(root, method, step, seed) / "conflict.csv")
        here = rows[rows["level"] == "all"].set_index(["panel", "setup", "name"])["mean"]
        points += [SeedPoint(method, step, seed, name, here[where]) for name, where in NAMES.items() if where in here]
    return pd.DataFrame(points)


def c7_by_seed(points: pd.DataFrame, method: str) -> pd.Series:
    """For each seed (the index), the correlation within groups, averaged over STEPS."""
    return points[(points["method"] == method) & (points["name"] == WITHIN)].groupby("seed")["value"].mean()


def values(points: pd.DataFrame, method: str, step: int, name: str) -> np.ndarray:
    """One value of a policy, (seeds,)."""
    here = (points["method"] == method) & (points["step"] == step) & (points["name"] == name)
    return points.loc[here, "value"].to_numpy()


def seeds_table(points: pd.DataFrame) -> str:
    """Markdown: means over seeds with their 95 % intervals; and what the mask changes, paired by seed."""
    none, chance, mask = (f"net {name}" for name in MASKS)
    heads = ["policy", WITHIN, ALL, "net share", "Eq. 8-9 minus none", "Eq. 8-9 minus random", "net share, batch"]
    lines = []
    for (method, step), _ in points.groupby(["method", "step"], sort=False):
        found = {name: values(points, method, step, name) for name in NAMES}
        columns = [found[WITHIN], found[ALL], found[none], found[mask] - found[none], found[mask] - found[chance]]
        columns.append(found[f"net batch {MASKS[0]}"])
        name = method if method == START else f"{method}, step {step}"
        lines.append([name, *(signed_interval(t_interval(column)) for column in columns)])
    return markdown(heads, lines)


PANELS = {  # value -> title, unit
    WITHIN: ("C7: score gap and cosine of g, within groups", "Spearman correlation"),
    f"net {MASKS[0]}": ("net share of a group, no mask", "|v+ + v-| / (|v+| + |v-|)"),
    f"net batch {MASKS[0]}": ("net share of 16 prompts, no mask", "|v+ + v-| / (|v+| + |v-|)"),
}


def draw_seeds(points: pd.DataFrame) -> Figure:
    """Against the step, mean and interval over seeds; all methods begin at the warm start."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for ax, (name, (title, unit)) in zip(axes, PANELS.items(), strict=True):
        for i, method in enumerate(METHODS):
            steps = [(START, 0), *((method, step) for step in STEPS)]
            means, halves = zip(*(t_interval(values(points, *where, name)) for where in steps), strict=True)
            look = style(i, len(steps)) | {"marker": "os^"[i], "markevery": 1}
            xs = [step + (i - 1) * 0.8 for _, step in steps]  # side by side, or their bars hide each other
            ax.errorbar(xs, means, np.nan_to_num(halves), capsize=3, label=method, **look)
        ax.set(xlabel="step", ylabel=unit)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    axes[0].axhline(0, color="grey", linewidth=0.8)
    c7 = signed_interval(t_interval(c7_by_seed(points, METHODS[0])), digits=2)
    figure.suptitle(
        f"Do pairs of like score conflict (C7)? Then the left curves are below 0; {METHODS[0]}'s mean is {c7}"
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), fontsize=8)
    return figure


CAPTION = f"""\
Five training seeds, each from a warm start of its own; {PROBLEMS} prompts for each policy, groups of 8, exact
gradients of all parameters. Left: Spearman correlation of score gap and cosine of the gradients of a right and a wrong
response, mean over groups; C7 says that it is below 0. Middle: net share |v+ + v-| / (|v+| + |v-|) of groups (Eq. 5).
Right: the same of v+ and v- summed over 16 prompts. 1: nothing cancels. Bars: 95 % t-interval of the mean over seeds;
lines are moved apart so that bars can be seen."""


def main(argv: list[str] | None = None) -> None:
    parser, cores = Parser(prog="python -m analysis.experiments.conflict_seeds", description=__doc__), os.cpu_count()
    runs = "the runs of analysis.experiments.grid"
    parser.add_argument("--root", default="runs/worlds", metavar="DIR", help=runs)
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="policies at once, one core each")

    def check(args: Namespace) -> tuple[Path, int]:
        if args.workers < 1:
            fail(f"--workers must be at least 1, not {args.workers}")
        return Path(args.root).resolve(), args.workers

    def write(asked: tuple[Path, int], path: Path) -> str:
        measure(*asked)
        write_rows(gather(asked[0]), path)
        return CAPTION

    def redraw(source: Path, out: Path) -> None:
        points = read_rows(SeedPoint, source)
        draw_seeds(points).savefig(out / "conflict_seeds.png", dpi=100)
        print(seeds_table(points))

    draw_figure(parser, argv, check, write, redraw, default_out="results/worlds")


if __name__ == "__main__":
    main()

"""Do gradients conflict, over training seeds: C7 and Eq. 5 with the spread that one trained policy does not show.

For each of five seeds of the experiments, analysis.conflict on the warm start and on dr_grpo, dagrpo_on and dagrpo
after 20, 40 and 60 steps: one process a policy, as many at once as there are cores; what is done is skipped. Kept:

    C7 within groups    Spearman correlation of score gap and cosine of g, right-wrong pairs of a group; mean of groups
    C7 all pairs        the same of all pairs together
    net none, random, Eq. 8-9            Eq. 5's net share |v+ + v-| / (|v+| + |v-|) of groups: 1, nothing cancels
    net batch none, random, Eq. 8-9      the same of an update: v+ and v- are sums over 16 prompts

C7 says that the correlation is below 0. Intervals are Student's over seeds.

Writes into --out: conflict_seeds.csv (a row a policy and figure), conflict_seeds.png, conflict_seeds.txt.

    python -m analysis.experiments.conflict_seeds                    from runs/experiments, after the grid's stage main
    python -m analysis.experiments.conflict_seeds --from-csv FILE    redraws conflict_seeds.csv, prints the table
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from analysis.conflict_points import Point as Found
from analysis.curves import style
from analysis.experiments.grid import call, side_by_side, start_of
from analysis.gradients import MASKS, ROLLOUTS
from analysis.saved import read_rows, write_rows
from analysis.table import signed_interval, t_interval
from harness.console import Parser, fail

SEEDS, METHODS, STEPS = range(5), ("dr_grpo", "dagrpo_on", "dagrpo"), (20, 40, 60)
PROBLEMS = 16  # of each level
START = "warm start"
WITHIN, ALL = "C7 within groups", "C7 all pairs"
NAMES = {  # figure -> panel, setup and name of conflict.csv
    WITHIN: ("spearman", ROLLOUTS, "score gap within groups"),
    ALL: ("spearman", ROLLOUTS, "score gap"),
    **{f"net {mask}": ("net", ROLLOUTS, mask) for mask in MASKS},
    **{f"net batch {mask}": ("net", f"{ROLLOUTS}, batch", mask) for mask in MASKS},
}


@dataclass(frozen=True)
class Point:
    """A row of conflict_seeds.csv: one figure of one policy."""

    method: str
    step: int
    seed: int
    name: str  # of NAMES
    value: float


def policies(root: Path) -> dict[tuple[str, int, int], Path]:
    """Method, step, seed -> the folder of the policy; the warm start is step 0."""
    found = {}
    for seed in SEEDS:
        found[START, 0, seed] = start_of(seed)
        for method in METHODS:
            run = root / "main" / method / f"seed{seed}"
            found |= {(method, step, seed): run / f"checkpoint-{step}" for step in STEPS[:-1]}
            found[method, STEPS[-1], seed] = run
    return found


def folder_of(root: Path, method: str, step: int, seed: int) -> Path:
    return root / "conflict" / method / f"step{step}" / f"seed{seed}"


def measure(root: Path, workers: int) -> None:
    """Runs analysis.conflict for every policy that has no conflict.csv yet."""
    works = []
    for key, policy in policies(root).items():
        if not policy.exists():
            fail(f"{policy} is not there: python -m analysis.experiments.grid --stages sweep,main makes it")
        out = folder_of(root, *key)
        if not (out / "conflict.txt").exists():  # the last thing that is written
            flags = ["--model", str(policy), "--seeds", "1", "--problems", str(PROBLEMS), "--out", str(out)]
            works.append(partial(call, [sys.executable, "-m", "analysis.conflict", *flags], out))
    side_by_side(works, "policies", workers)


def gather(root: Path) -> list[Point]:
    points = []
    for method, step, seed in policies(root):
        rows = read_rows(Found, folder_of(root, method, step, seed) / "conflict.csv")
        here = {(row.panel, row.setup, row.name): row.mean for row in rows if row.level == "all"}
        there = [(name, here[where]) for name, where in NAMES.items() if where in here]
        points += [Point(method, step, seed, name, value) for name, value in there]
    return points


def c7_by_seed(points: list[Point], method: str) -> dict[int, float]:
    """Seed -> the correlation within groups, mean over the steps of training."""
    trained = [p for p in points if (p.method, p.name) == (method, WITHIN)]
    by_seed = {seed: [p.value for p in trained if p.seed == seed] for seed in sorted({p.seed for p in trained})}
    return {seed: sum(found) / len(found) for seed, found in by_seed.items()}


def values(points: list[Point], method: str, step: int, name: str) -> list[float]:
    """Over seeds."""
    return [p.value for p in points if (p.method, p.step, p.name) == (method, step, name)]


def table(points: list[Point]) -> str:
    """Markdown: the mean over seeds with its 95 % interval; and what the mask changes, paired."""
    mask, chance = (f"net {MASKS[-1]}", f"net {MASKS[1]}")
    heads = [WITHIN, ALL, "net share", "Eq. 8-9 minus none", "Eq. 8-9 minus random", "net share, batch"]
    lines = [f"| policy | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    for method, step in dict.fromkeys((p.method, p.step) for p in points):
        found = {name: values(points, method, step, name) for name in NAMES}
        none = found[f"net {MASKS[0]}"]
        gains = [[a - b for a, b in zip(found[mask], other, strict=True)] for other in (none, found[chance])]
        columns = [found[WITHIN], found[ALL], none, *gains, found[f"net batch {MASKS[0]}"]]
        name = method if method == START else f"{method}, step {step}"
        lines.append(f"| {name} | {' | '.join(signed_interval(t_interval(of)) for of in columns)} |")
    return "\n".join(lines)


PANELS = {  # figure -> title, unit
    WITHIN: ("C7: score gap and cosine of g, within groups", "Spearman correlation"),
    f"net {MASKS[0]}": ("net share of a group, no mask", "|v+ + v-| / (|v+| + |v-|)"),
    f"net batch {MASKS[0]}": ("net share of 16 prompts, no mask", "|v+ + v-| / (|v+| + |v-|)"),
}


def draw(points: list[Point]) -> Figure:
    """Against the step, mean and interval over seeds; all methods begin at the warm start."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for ax, (name, (title, unit)) in zip(axes, PANELS.items(), strict=True):
        for i, method in enumerate(METHODS):
            steps = [(START, 0), *((method, step) for step in STEPS)]
            found = [t_interval(values(points, *where, name)) for where in steps]
            look = style(i, len(steps)) | {"marker": "os^"[i], "markevery": 1}
            xs = [step + (i - 1) * 0.8 for _, step in steps]  # side by side, or their bars hide each other
            ax.errorbar(xs, [m for m, _ in found], [half or 0.0 for _, half in found], capsize=3, label=method, **look)
        ax.set(xlabel="step", ylabel=unit)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    axes[0].axhline(0, color="grey", linewidth=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), fontsize=8)
    return figure


def caption(argv: list[str], out: Path) -> str:
    again = shlex.join(
        ["python", "-m", "analysis.experiments.conflict_seeds", "--from-csv", str(out / "conflict_seeds.csv")]
    )
    return f"""\
Five training seeds, each from a warm start of its own; {PROBLEMS} prompts of each level and policy, groups of 8, exact
gradients of all parameters. Left: Spearman correlation of score gap and cosine of the gradients of a right and a wrong
response, mean over groups; C7 says that it is below 0. Middle: net share |v+ + v-| / (|v+| + |v-|) of groups (Eq. 5).
Right: the same of v+ and v- summed over 16 prompts. 1: nothing cancels. Bars: 95 % t-interval of the mean over seeds;
lines stand side by side so that bars can be seen.

drawn by:    {shlex.join(["python", "-m", "analysis.experiments.conflict_seeds", *argv])}
drawn again: {again}
"""


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="python -m analysis.experiments.conflict_seeds", description=__doc__)
    parser.add_argument(
        "--root", default="runs/experiments", metavar="DIR", help="the runs of analysis.experiments.grid"
    )
    parser.add_argument("--out", metavar="DIR", help="where to write [--root; of --from-csv: beside the CSV]")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="policies at once, a core each"
    )
    parser.add_argument("--from-csv", metavar="FILE", help="draw this conflict_seeds.csv, and measure nothing")
    args = parser.parse_args(argv)
    if args.workers < 1:
        fail(f"--workers must be at least 1, not {args.workers}")
    source, root = args.from_csv and Path(args.from_csv), Path(args.root).resolve()
    out = Path(args.out or (source.parent if source else root))
    if not source:
        measure(root, args.workers)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not source:
            write_rows(gather(root), out / "conflict_seeds.csv")
            (out / "conflict_seeds.txt").write_text(caption(argv, out), encoding="utf-8")
        points = read_rows(Point, source or out / "conflict_seeds.csv")
        draw(points).savefig(out / "conflict_seeds.png", dpi=100)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); choose another folder")
    print(table(points))


if __name__ == "__main__":
    main()

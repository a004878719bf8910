"""The figures of the experiments: what a mask and anchors change in each world, and when masking pays.

worlds.png    one row per world: reward, length, what the world is about, and gradient norm against the step; the mean
              over seeds, in its 95 % t-interval. That of the reward is without what all methods of a seed have in
              common at a step, such as an easy start, because methods are compared by seed (Cousineau's interval,
              corrected by Morey)
ahead.png     accuracy of each method minus dr_grpo's, paired by seed, in the world and out of distribution
map.png       how far dagrpo_on is ahead of dr_grpo at the same rate, paired by seed, against how often a guess is
              right, and against the noise on S; bars are 95 % t-intervals over seeds

python -m analysis.experiments.worlds    reads and writes results/worlds
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.curves import ORDER, places, style
from analysis.experiments.grid import LAST_DIGIT, MODULI, OUT, SAME_RATE, SIGMAS
from analysis.experiments.outcomes import read_rows
from analysis.stats import t_interval
from harness.console import Parser, fail

SHOWN = {  # world -> what it is about, the lines of its row, and its third column
    "guess": ("guess: one bare guess in three is right", (*ORDER[:4], "luffy"), "lucky"),
    "plain": ("plain: levels from easy to hard", ORDER[:4], "kept_fraction"),
    "unseen": ("unseen: levels that the start has hardly seen", (*ORDER[:3], "luffy", SAME_RATE), "no_signal_groups"),
}  # fmt: skip
MEASURES = {"accuracy": "trained levels", "ood mean": "out of distribution"}  # of ahead.png
UNITS = {
    "reward": "reward: share of responses\nthat are right",
    "response_length": "response length, tokens",
    "lucky": "lucky: share of right responses\nwithout a step",
    "kept_fraction": "kept share of responses\nwith A \N{NOT EQUAL TO} 0",
    "no_signal_groups": "groups of 16 without signal",
    "grad_norm": "gradient norm before clipping",
}


def draw_line(ax: Axes, rows: pd.DataFrame, label: str, column: str, place: int) -> None:
    """One label's mean over seeds, in its band. A row is a mean of ten steps and is drawn at their middle."""
    table = rows[rows["label"] == label].pivot_table(index="step", columns="seed", values=column)
    if table.empty:
        return
    mean, half = t_interval(table.to_numpy())
    steps, half, look = table.index - 4.5, np.nan_to_num(half), style(place, len(table))
    ax.plot(steps, mean, label=f"{label} ({table.shape[1]} seeds)", **look)
    ax.fill_between(steps, mean - half, mean + half, color=look["color"], alpha=0.18, linewidth=0)


def within_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of seeds that all labels have; rewards without what the labels of a seed have in common at a step."""
    rows = rows[rows.groupby(["seed", "step"])["label"].transform("nunique") == rows["label"].nunique()]
    by_seed, at_step, own = (
        rows.groupby(keys)["reward"].transform("mean") for keys in (["seed", "step"], ["step"], ["label", "step"])
    )
    count = rows["label"].nunique()
    spread = (count / max(count - 1, 1)) ** 0.5  # Morey: what was taken out has a share of each method's own spread
    return rows.assign(reward=own + spread * (rows["reward"] - by_seed + at_step - own))


def draw_worlds(curves: pd.DataFrame) -> Figure:
    worlds = [world for world in SHOWN if world in set(curves["world"])]
    figure = Figure(figsize=(13, 0.9 + 3.1 * len(worlds)), layout="constrained")
    look = places(dict.fromkeys(label for _, labels, _ in SHOWN.values() for label in labels))
    subfigures = figure.subfigures(len(worlds), 1, squeeze=False)[:, 0]
    for row, world in zip(subfigures, worlds, strict=True):
        title, labels, about = SHOWN[world]
        axes, here = row.subplots(1, 4), curves[(curves["world"] == world) & curves["label"].isin(labels)]
        for ax, column in zip(axes, ("reward", "response_length", about, "grad_norm"), strict=True):
            rows = within_seeds(here) if column == "reward" else here
            for label in labels:
                draw_line(ax, rows, label, column, look[label])
            ax.set(xlabel="step", title=UNITS[column])
            ax.title.set_fontsize(9)
            if column != "reward":
                ax.set_ylim(bottom=0)
            ax.grid(alpha=0.3)
        ends = at_the_end(here, labels, about)
        row.suptitle(f"{title}\n{ends}", x=0.01, ha="left", fontsize=11, fontweight="bold")
        row.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, handlelength=3.5)
    return figure


def at_the_end(rows: pd.DataFrame, labels: Iterable[str], column: str) -> str:
    """The means over seeds of the last ten steps, for a row's title."""
    last = rows[rows["step"] == rows["step"].max()].groupby("label")[column].mean()
    ends = ", ".join(f"{label} {last[label]:.2f}" for label in labels if label in last)
    return f"{UNITS[column]} at the end: {ends}".replace("\n", " ")


# ---------------------------------------------------------------------------------------- who is ahead?


def draw_ahead(runs: pd.DataFrame) -> Figure:
    """One row per world, one point per method: ahead of dr_grpo or behind it, with the 95 % interval over seeds."""
    runs = runs[runs["stage"].isin(["main", "controls"]) | (runs["label"] == SAME_RATE)]  # in guess also the pilot's
    worlds = [world for world in SHOWN if world in set(runs["world"])]
    figure = Figure(figsize=(10, 0.9 + 2.9 * len(worlds)), layout="constrained")
    for row, world in zip(figure.subplots(len(worlds), 2, squeeze=False, sharey="row"), worlds, strict=True):
        draw_gaps(row, runs, world, dict.fromkeys(runs["label"]), "dr_grpo", world)
    figure.suptitle(textwrap.fill(ahead_message(runs, worlds), 100), fontsize=11)
    return figure


def draw_gaps(axes: Iterable[Axes], runs: pd.DataFrame, world: str, labels: Iterable[str], baseline: str,
              title: str) -> None:  # fmt: skip
    """An axis per measure, on each a point per label: its accuracy minus the baseline's, paired by seed."""
    look = places(labels)
    for ax, (column, unit) in zip(axes, MEASURES.items(), strict=True):
        found = {label: ahead(runs, world, label, baseline, column) for label in labels if label != baseline}
        found = {label: gap for label, gap in found.items() if gap[2] > 1}
        for y, (label, (mean, half, _)) in enumerate(found.items()):
            ax.errorbar(mean, -y, xerr=half, fmt="o", color=style(look[label], 1)["color"], capsize=3)
        seeds = sorted({n for *_, n in found.values()})
        ax.set_yticks(range(0, -len(found), -1), list(found))
        ax.axvline(0, color="grey", linewidth=0.8)
        ax.set(
            title=f"{title}, {unit} ({' or '.join(map(str, seeds))} seeds)", xlabel=f"accuracy minus that of {baseline}"
        )
        ax.grid(alpha=0.3, axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(5))


def ahead_message(runs: pd.DataFrame, worlds: Iterable[str], baseline: str = "dr_grpo") -> str:
    """The methods that in each of these worlds are ahead of the baseline on the levels that RL trains on, with an
    interval above 0; the farthest first."""
    found = {}
    for label in dict.fromkeys(runs["label"]):
        gaps = [ahead(runs, world, label, baseline, "accuracy") for world in worlds]
        if all(mean - half > 0 for mean, half, _ in gaps):  # never the baseline itself
            found[label.replace(" ", "\N{NO-BREAK SPACE}")] = sum(mean for mean, *_ in gaps)
    names = " / ".join(sorted(found, key=lambda label: -found[label])) or "nobody"  # labels have commas
    return f"On trained levels in {', '.join(worlds)} ahead of {baseline}, with an interval above 0: {names}"


# ---------------------------------------------------------------------------------------- when does masking pay?


def ahead(runs: pd.DataFrame, world: str, label: str, other: str, column: str) -> tuple[float, float, int]:
    """Over the seeds that both have: the mean difference, half the width of its interval, and the number of seeds."""
    here = runs[runs["world"] == world].set_index("seed")
    gaps = (here.loc[here["label"] == label, column] - here.loc[here["label"] == other, column]).dropna()
    return (*map(float, t_interval(gaps)), len(gaps)) if len(gaps) > 1 else (float("nan"), float("nan"), len(gaps))


def same_rate(runs: pd.DataFrame, world: str) -> str:
    """The label of dr_grpo at the rate of dagrpo_on, which is a control where its own rate is another one."""
    return SAME_RATE if SAME_RATE in set(runs.loc[runs["world"] == world, "label"]) else "dr_grpo"


def map_points(runs: pd.DataFrame) -> dict[str, list[tuple[float, str, str, str]]]:
    """Panel -> (place, world, label, baseline)."""
    guess, plain = same_rate(runs, "guess"), same_rate(runs, "plain")
    others = {m: (1 / m, at, f"dagrpo_on, modulo {m}", f"dr_grpo, modulo {m}") for m, at in MODULI.items()}
    guesses = [others.pop(m) for m in MODULI if m not in LAST_DIGIT]
    guesses += [(1 / 3, "guess", "dagrpo_on", guess), (0.0, "plain", "dagrpo_on", plain)]
    noise = [(float(sigma), "guess", f"dagrpo_on, noise {sigma}", guess) for sigma in SIGMAS]
    return {
        "chance that a bare guess is right": sorted(guesses),
        "likewise, if the last digit decides": sorted(others.values()),
        "standard deviation of the noise on S": [(0.0, "guess", "dagrpo_on", guess), *noise],
    }


def map_message(runs: pd.DataFrame) -> str:
    """Where the interval of the reward's difference is above 0."""
    found = []
    for name, points in map_points(runs).items():
        gaps = {place: ahead(runs, *point, "reward mean") for place, *point in points}
        sure = [f"{place:.2g}" for place, (mean, half, _) in gaps.items() if mean - half > 0]
        found.append(f"{name}: {', '.join(sure) or 'nowhere'}")
    return f"The mask raises the reward, with an interval above 0, at\n{'; '.join(found)}"


def draw_map(runs: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    for ax, (name, points) in zip(figure.subplots(1, 3, sharey=True), map_points(runs).items(), strict=True):
        for i, (column, label) in enumerate(
            {"reward mean": "reward, mean of the run", "ood mean": "accuracy, OOD"}.items()
        ):
            found = [(place, *ahead(runs, *point, column)) for place, *point in points]
            found = [point for point in found if point[3] > 1]
            if found:
                places, means, halves, _ = map(np.array, zip(*found, strict=True))
                look = style(i, len(found)) | {"marker": "os"[i], "markevery": 1, "linestyle": ""}
                ax.errorbar(
                    places + (i - 0.5) * 0.01 * (places.max() or 1), means, halves, capsize=3, label=label, **look
                )
        ax.axhline(0, color="grey", linewidth=0.8)
        seeds = ", ".join(str(ahead(runs, *point, "reward mean")[2]) for _, *point in points)
        ax.set(xlabel=f"{name}\n(seeds: {seeds})", ylabel="dagrpo_on minus dr_grpo")
        ax.label_outer()
        ax.grid(alpha=0.3)
        if ax.containers:
            ax.legend(fontsize=8)
    figure.suptitle(map_message(runs), fontsize=11)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.worlds", description=__doc__)
    parser.add_argument("--results", default=OUT, metavar="DIR", help="the tables of analysis.experiments.grid")
    folder = Path(parser.parse_args(argv).results)
    curves, runs = read_rows(folder / "curves.csv"), read_rows(folder / "runs.csv")
    if curves.empty or runs.empty:
        fail(f"{folder} holds no run yet; python -m analysis.experiments.grid makes them")
    written = {"worlds.png": draw_worlds(curves)}
    if set(runs["stage"]) & {"main", "controls"}:
        written["ahead.png"] = draw_ahead(runs)
    if set(runs["stage"]) & {"guessable", "noise"}:
        written["map.png"] = draw_map(runs)
    for name, figure in written.items():
        figure.savefig(folder / name, dpi=100)
    print(f"written: {', '.join(str(folder / name) for name in written)}")


if __name__ == "__main__":
    main()

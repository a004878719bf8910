"""Every method trained alike, on the levels where the start is right on a few responses in ten: do they all learn?

On levels 3, 4 and 5 of the built-in task about a fifth of the start's responses are right, and in a third of the groups
none is. Each method runs 60 steps with 3 seeds, at one learning rate for all. Each seed has its own warm start, from
which all methods begin, and they see the same prompts. This shows that a method trains, and how. It cannot say which is
best: no rate is tuned, three seeds make wide intervals, and the task is small.

analysis.experiments.grid does the runs and warm starts: it skips those that are done and resumes those that stopped.

Writes into --out: methods.csv (one row per run), curves.csv and methods.png (reward in training, one panel per family),
methods.txt (the caption and the table).

    python -m analysis.experiments.methods                               all, two runs at a time
    python -m analysis.experiments.methods --methods dapo,gspo --seeds 1
    python -m analysis.experiments.methods --from results/methods        draws and prints again from its CSVs
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.curves import CurvePoint, curve, over_seeds, places, style
from analysis.experiments.grid import run_stage
from analysis.experiments.outcomes import finished, start_result
from analysis.experiments.processes import Job
from analysis.families import FAMILIES
from analysis.run_folders import read_run
from analysis.saved import read_rows, write_rows
from analysis.stats import markdown, signed_interval, t_interval
from analysis.table import read_eval
from dagrpo import METHODS
from harness.console import Parser, fail, first_line

LEVELS = ("3", "4", "5")
RATE, STEPS, SEEDS = "3e-5", 60, 3
SMOOTH = 10  # steps of the running mean


@dataclass(frozen=True)
class Result:
    """A row of methods.csv: one run."""

    method: str
    seed: int
    start: float  # greedy accuracy on LEVELS, test split, of its warm start
    accuracy: float  # after training
    responses: float  # generated
    seconds: float


def jobs(methods: list[str], seeds: int, steps: int) -> list[Job]:
    flags = ("--levels", ",".join(LEVELS), "--lr", RATE, "--steps", str(steps), "--batch-prompts", "8")
    return [Job("plain", "methods", name, name, seed, flags) for name in methods for seed in range(seeds)]


def accuracy(folder: Path) -> float:
    """Greedy accuracy on the test split, averaged over LEVELS."""
    scores = read_eval(folder / "eval.json").scores
    return sum(scores[f"level {level}"] for level in LEVELS) / len(LEVELS)


def result(job: Job, root: Path) -> Result:
    totals = read_run(root / job.name).metrics[["responses", "rollout_seconds", "train_seconds"]].sum()
    start = accuracy(start_result(job.world, job.seed, root))
    seconds = totals["rollout_seconds"] + totals["train_seconds"]
    return Result(job.method, job.seed, start, accuracy(root / job.name), totals["responses"], seconds)


# ---------------------------------------------------------------------------------------- the table and the figure


def table(results: pd.DataFrame) -> str:
    """Markdown: methods in the order of their families, each against its own starts."""
    lines = []
    for name, here in results.groupby("method", sort=False):
        gain = signed_interval(t_interval(here["accuracy"] - here["start"]))
        means = here[["accuracy", "responses", "seconds"]].mean()
        cells = [f"{means['accuracy']:.3f}", gain, f"{means['responses']:.0f}", f"{means['seconds']:.0f}"]
        lines.append([name, str(len(here)), *cells])
    return markdown(["method", "seeds", "accuracy", "gain over the start", "responses", "seconds"], lines)


def draw(points: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(12.5, 8.2), layout="constrained")
    axes, place = figure.subplots(2, 2, sharex=True, sharey=True).flatten(), places(METHODS)
    for ax, (title, members) in zip(axes, FAMILIES.items(), strict=True):
        there = [name for name in members if name in set(points["method"])]
        for name in there:  # without bands: those of ten methods would hide each other
            line = points[points["method"] == name]
            ax.plot(line["step"], line["mean"], label=name, **style(place[name], len(line)))
        ax.set_title(title, fontsize=10)
        ax.set_xlim(0.5, points["step"].max() + 0.5)
        ax.grid(alpha=0.3)
        if there:
            ax.legend(fontsize=8, ncols=2, loc="upper left", handlelength=3.5)
    for ax in axes[2:]:
        ax.set_xlabel("step")
    for ax in axes[::2]:
        ax.set_ylabel("share of responses that are right")
    axes[0].set_ylim(top=points["mean"].max() + 0.04)  # room for the legends
    figure.suptitle("Every method learns; bumps that all share are their prompts (levels 3 to 5, not for ranking)")
    return figure


CAPTION = """\
Reward of the rollouts against the step, on levels {levels} of the built-in task. {seeds} a method, each from a warm
start of its own; learning rate {rate} for all. Lines: the running mean over {smooth} steps of each run, and of these
the mean over seeds. sft samples nothing and has no line. Not for ranking: no rate was tuned.

Below: greedy accuracy on the test split of these levels, and what was gained over the same seed's start, with its 95 %
t-interval over seeds; responses generated and seconds of training, a run.

{table}

drawn by:    python -m analysis.experiments.methods
drawn again: python -m analysis.experiments.methods --from {out}
"""


def write(results: pd.DataFrame, points: pd.DataFrame, out: Path) -> None:
    shown, seeds = table(results), int(results.groupby("method").size().max())
    about = {"levels": ", ".join(LEVELS), "seeds": f"{seeds} seed{'s' * (seeds > 1)}", "rate": RATE, "smooth": SMOOTH}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_rows(results, out / "methods.csv")
        if len(points):
            write_rows(points, out / "curves.csv")
            draw(read_rows(CurvePoint, out / "curves.csv")).savefig(out / "methods.png", dpi=100)
        (out / "methods.txt").write_text(CAPTION.format(**about, table=shown, out=out), encoding="utf-8")
    except OSError as error:
        fail(f"--out {out}: cannot be written ({first_line(error)}); choose another folder")
    print(shown)


def collect(chosen: list[Job], root: Path, out: Path) -> None:
    """Table and figure of the runs that are done."""
    done = [job for job in chosen if finished(root / job.name)]
    if not done:
        fail(f"no run in {root} is done, so there is nothing to draw")
    lines = []
    for name in dict.fromkeys(job.method for job in done):
        runs = [read_run(root / job.name) for job in done if job.method == name]
        lines.append(curve(over_seeds(runs, "reward"), "reward", name, SMOOTH, most=1.0))
    write(pd.DataFrame([result(job, root) for job in done]), pd.concat(lines), out)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.methods", description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS), metavar="M,..", help="which methods")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="seeds per method")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="steps per run")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="runs at a time, one core each")
    parser.add_argument("--root", default="runs/methods", metavar="DIR", help="where the runs are")
    parser.add_argument("--out", default="results/methods", metavar="DIR", help="where table and figure go")
    parser.add_argument("--from", dest="source", metavar="DIR", help="draw and print from the CSVs in this folder")
    args = parser.parse_args(argv)
    if args.source:
        source = Path(args.source)
        return write(read_rows(Result, source / "methods.csv"), read_rows(CurvePoint, source / "curves.csv"), source)
    names = args.methods.split(",")
    if unknown := set(names) - set(METHODS):
        fail(f"--methods: there is no {', '.join(sorted(unknown))}; choose from {', '.join(METHODS)}")
    if min(args.seeds, args.steps, args.workers) < 1:
        fail("--seeds, --steps and --workers must be at least 1")
    chosen, root = jobs([name for name in METHODS if name in names], args.seeds, args.steps), Path(args.root).resolve()
    run_stage(chosen, root, args.workers)
    collect(chosen, root, Path(args.out))


if __name__ == "__main__":
    main()

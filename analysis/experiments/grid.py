"""The experiments behind the claims: a grid of training runs, methods x seeds x settings, and a table of their results.

Runs of train.py followed by eval.py, as many at once as there are cores, each in its folder. What is done is skipped,
what was stopped goes on, so the same command can be given again and again. Everything was fixed here in advance, but
the two lowest rates of the sweep, which were added when 3e-5, the lowest at first, won:

    sweep        each method of the claims at six learning rates, judged on validation problems; the best rate is the
                 method's own from there on; two seeds, 100 and 101
    main         the methods of the claims, 15 seeds for grpo, dr_grpo, dagrpo_on and dagrpo, 5 for luffy and sft
    after_sft    dr_grpo from where sft ended (more SFT, then RL), 5 seeds
    controls     a random mask (15 seeds); dr_grpo with S as its reward (5)
    sweep_others, others    the other recipes: rates with one seed, then 3 seeds
    rates        grpo, dr_grpo, dagrpo_on, dagrpo and luffy at five learning rates, 3 seeds each: which survive?
    ablations    delta, scorer noise, flawed anchors, anchors in hard groups, LUFFY's ratio, group sizes; 3 seeds

A seed decides where a run starts, the order of prompts, and the sampling: each seed has a warm start of its own, from
other initial weights, on other batches of the same problems. At the same seed all methods start from the same policy
and see the same prompts at the same step. (An earlier series had one start for all seeds. Its intervals were about that
start alone; another machine, whose rounding differs, made another start, and one run ended at 0.61 instead of 0.47.)

    python -m analysis.experiments.grid                     everything, in this order
    python -m analysis.experiments.grid --stages main       a stage; those before it have to be done
    python -m analysis.experiments.grid --collect           only writes the tables, from what is there
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.experiments.processes import call, side_by_side
from analysis.run_folders import SavedRun, read_run
from analysis.table import Eval, read_eval
from harness.console import Parser, fail
from harness.warm_start import WarmStart, warm_start_folder

STEPS = 60
SWEEP_RATES, SWEEP_SEEDS = ("3e-6", "1e-5", "3e-5", "1e-4", "3e-4", "1e-3"), (100, 101)
FEWER_RATES = ("1e-5", "3e-5", "1e-4")  # of the other recipes
RATES = ("1e-5", "3e-5", "1e-4", "3e-4", "1e-3")
CLAIMED = ("grpo", "dr_grpo", "dagrpo_on", "dagrpo")  # 15 seeds
FEWER = ("luffy", "sft")  # 5 seeds
OTHERS = ("dapo", "gspo", "cispo", "rloo", "gtpo")  # 3 seeds; methods that came later: analysis.experiments.methods
SETTINGS = ["--steps", str(STEPS), "--batch-prompts", "8", "--save-every", "20", "--keep", "3"]
SETTINGS += ["--log-rollouts-every", "10", "--show-every", "0"]
START = "import sys, eval; from harness.warm_start import WarmStart, warm_start; "
START += "made = warm_start(WarmStart(seed=int(sys.argv[1]))); "
START += "eval.main(['--model', made, '--k', '0', '--benchmarks', 'validation,test,ood', '--out', sys.argv[2]])"
PROGRAM = "import sys, json, train, eval; from analysis.experiments import controls; "
PROGRAM += "control, a, b = json.loads(sys.argv[1]); "
PROGRAM += "controls.run(control, a) if control else train.main(a); eval.main(b)"
RUNS_CSV = "results/experiments/runs.csv"  # of the committed series
LAST = 10  # steps that figures at the end of training are the mean of


@dataclass(frozen=True)
class Job:
    """One run: `label` is what tables call it, `flags` what makes it different from the defaults."""

    stage: str
    label: str
    method: str
    seed: int
    flags: tuple[str, ...] = ()
    after: str | None = None  # the stage/label whose run of the same seed it begins from
    control: str = ""  # of analysis.experiments.controls; "": train.py as it is

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.label}/seed{self.seed}"

    @property
    def is_sweep(self) -> bool:
        return self.stage.startswith("sweep")


def grid(rates: dict[str, str]) -> list[Job]:
    """All jobs, stage by stage. `rates`: the learning rate of each method whose sweep is done; empty before it is."""
    jobs: list[Job] = []

    def sweep(stage: str, methods: tuple[str, ...], rates: tuple[str, ...], seeds: tuple[int, ...]) -> None:
        each = [(method, rate, seed) for method in methods for rate in rates for seed in seeds]
        jobs.extend(Job(stage, f"{method} {rate}", method, seed, ("--lr", rate)) for method, rate, seed in each)

    def add(
        stage: str, label: str, method: str, seeds: int, *flags: str, after: str | None = None, control: str = ""
    ) -> None:
        rate = ("--lr", rates.get(method, "?"))  # flags may name another one
        jobs.extend(Job(stage, label, method, seed, (*rate, *flags), after, control) for seed in range(seeds))

    sweep("sweep", CLAIMED + FEWER, SWEEP_RATES, SWEEP_SEEDS)
    for method in (*CLAIMED, *FEWER):
        add("main", method, method, 15 if method in CLAIMED else 5)
    add("after_sft", "sft then dr_grpo", "dr_grpo", 5, after="main/sft")
    add("controls", "random mask", "dagrpo_on", 15, control="random_mask")
    add("controls", "dr_grpo, S as reward", "dr_grpo", 5, control="score_as_reward")
    sweep("sweep_others", OTHERS, FEWER_RATES, SWEEP_SEEDS[:1])
    for method in OTHERS:
        add("others", method, method, 3)
    for method in (*CLAIMED, "luffy"):
        for rate in (rate for rate in RATES if rate != rates.get(method)):  # that one is main's
            add("rates", f"{method}, rate {rate}", method, 3, "--lr", rate)
    for delta in ("0", "1", "2", "4", "5", "6"):  # 3 is main's
        add("ablations", f"delta {delta}", "dagrpo_on", 3, "--delta", delta)
    for sigma in ("1", "2", "4"):
        add("ablations", f"score noise {sigma}", "dagrpo_on", 3, control=f"score_noise={sigma}")
    for method in ("dagrpo", "luffy"):
        for flaw in ("steps", "answer"):
            add("ablations", f"{method}, anchors with wrong {flaw}", method, 3, control=f"flawed_{flaw}")
    add("ablations", "dagrpo, anchors in hard groups", "dagrpo", 3, "--anchor-when", "hard")
    add("ablations", "dagrpo, LUFFY's ratio", "dagrpo", 3, "--anchor-ratio", "shaped")
    for size in ("4", "16"):  # 8 is main's
        for method in ("dr_grpo", "dagrpo_on", "dagrpo"):
            add("ablations", f"{method}, G {size}", method, 3, "--group-size", size)
    return jobs


def best_rates(root: Path) -> dict[str, str]:
    """For each method whose sweep is whole, the rate with the best mean accuracy on the validation problems."""
    sweeps = [(job, root / job.name) for job in grid({}) if job.is_sweep]
    rows = [(job.method, job.flags[1], validation(at) if done(at) else float("nan")) for job, at in sweeps]
    by_rate = pd.DataFrame(rows, columns=["method", "rate", "accuracy"]).groupby(["method", "rate"], sort=False)
    means = by_rate["accuracy"].mean(skipna=False).groupby("method", sort=False)
    return {method: at.idxmax()[1] for method, at in means if at.notna().all()}


def validation(folder: Path) -> float:
    levels = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["benchmarks"]["validation"]["levels"]
    return sum(level["greedy"]["accuracy"] for level in levels) / len(levels)


def done(folder: Path) -> bool:
    return (folder / "eval.json").exists()


# ---------------------------------------------------------------------------------------- running


def command(job: Job, root: Path) -> list[str]:
    """A process of its own for train.py and eval.py, in which torch is imported once."""
    out = str(root / job.name)
    begin = ["--init-from", str(root / job.after / f"seed{job.seed}" if job.after else start_of(job.seed))]
    train = ["--method", job.method, "--seed", str(job.seed), "--out", out, "--resume", *SETTINGS, *job.flags, *begin]
    asked = ["--benchmarks", "validation"] if job.is_sweep else []
    return [sys.executable, "-c", PROGRAM, json.dumps([job.control, train, ["--model", out, "--k", "0", *asked]])]


def start_of(seed: int) -> Path:
    """The folder of a seed's warm start, whether it is there yet or not."""
    return warm_start_folder(WarmStart(seed=seed))


def start_result(seed: int, root: Path) -> Path:
    """The folder with what eval.py says of a seed's warm start."""
    return root / "starts" / f"seed{seed}"


def make_start(seed: int, root: Path) -> str | None:
    folder = start_result(seed, root)
    return call([sys.executable, "-c", START, str(seed), str(folder / "eval.json")], folder)


def run(job: Job, root: Path) -> str | None:
    return call(command(job, root), root / job.name)


def run_stage(jobs: list[Job], root: Path, workers: int) -> None:
    """The jobs of one stage that are not done yet, after the warm starts that they need."""
    waiting = [job for job in jobs if not done(root / job.name)]
    waiting.sort(key=lambda job: job.seed)  # whole sets of methods first: they are compared seed by seed
    starts = [seed for seed in sorted({job.seed for job in waiting}) if not done(start_result(seed, root))]
    side_by_side([partial(make_start, seed, root) for seed in starts], "warm starts", workers)
    side_by_side([partial(run, job, root) for job in waiting], jobs[0].stage, workers, len(jobs) - len(waiting))


# ---------------------------------------------------------------------------------------- what came out


def row_of(job: Job, root: Path) -> dict[str, Any]:
    """What tables and claims need of one run."""
    run, evaluated = read_run(root / job.name), read_eval(root / job.name / "eval.json")
    row = {"stage": job.stage, "label": job.label, "method": job.method, "seed": job.seed, "lr": run.config["lr"]}
    return row | accuracies(evaluated) | dynamics(run)


def accuracies(evaluated: Eval) -> dict[str, float]:
    return {name: round(score, 6) for name, score in evaluated.scores.items()}


def dynamics(run: SavedRun) -> dict[str, float]:
    """Of the steps' figures: what was generated, the end, and the gradient's norm in typical and in extreme steps."""
    means = ["reward", "entropy", "response_length", "kept_fraction", "no_signal_groups", "clip_fraction"]
    others = ["responses", "grad_norm", "kept_rows", "anchors", "rollout_seconds", "train_seconds"]
    steps = run.metrics.sort_index().reindex(columns=[*means, *others])
    norms, kept = steps["grad_norm"], steps["kept_rows"]
    figures: dict[str, float] = {"responses": steps["responses"].sum()}
    for name in means:
        figures |= {f"{name} first": steps[name].head(LAST).mean(), f"{name} last": steps[name].tail(LAST).mean()}
    figures = {name: round(figure, 6) for name, figure in figures.items()}
    figures |= {"grad_norm median": norms.quantile(interpolation="higher"), "grad_norm max": norms.max()}
    figures |= {"grad_norm not finite": int(norms.isna().sum()), "anchors": round(steps["anchors"].mean(), 6)}
    per_row = (norms / kept)[(kept > 0) & (norms > 0)]
    figures["grad_norm per kept row"] = per_row.quantile(interpolation="higher")
    return figures | {"seconds": round(steps["rollout_seconds"].sum() + steps["train_seconds"].sum(), 1)}


def collect(root: Path, out: Path) -> int:
    """Writes runs.csv, a row a finished run, and returns how many there are."""
    rates, sweep, rows = best_rates(root), [], []
    for seed in sorted({job.seed for job in grid({})}):  # the warm starts, for comparison
        if done(start := start_result(seed, root)) and seed in SWEEP_SEEDS:
            sweep.append({"method": "warm start", "lr": None, "seed": seed, "validation": validation(start)})
        elif done(start):
            row = {"stage": "main", "label": "warm start", "method": "warm start", "seed": seed}
            rows.append(row | accuracies(read_eval(start / "eval.json")))
    for job in grid(rates):
        if done(root / job.name) and job.is_sweep:
            row = {"method": job.method, "lr": job.flags[1], "seed": job.seed}
            sweep.append(row | {"validation": round(validation(root / job.name), 6)})
        elif done(root / job.name):
            rows.append(row_of(job, root))
    out.mkdir(parents=True, exist_ok=True)
    write_table(sweep, out / "sweep.csv")
    write_table(rows, out / "runs.csv")
    return len(sweep) + len(rows)


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    pd.DataFrame(rows, dtype=object).to_csv(path, index=False, lineterminator="\n")  # object: an int stays one


def read_table(path: Path) -> pd.DataFrame:
    """runs.csv, a row a run: stage, label and method are text, seed an int, and figures, NaN where there is none.

    Ends the program with one line if there are none, or if the file is not what `collect` writes.
    """
    texts = dict.fromkeys(("stage", "label", "method"), str)
    try:
        runs = pd.read_csv(path, dtype=texts | {"seed": int})
        if runs[["stage", "label", "method", "seed", "mean"]].isna().any(axis=None):
            raise ValueError
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror}); python -m analysis.experiments.grid makes it")
    except (ValueError, KeyError):
        fail(f"{path} is damaged: it is not a table of analysis.experiments.grid")
    return fail(f"{path} holds no run yet; python -m analysis.experiments.grid makes them") if runs.empty else runs


def stages_of(jobs: Iterable[Job]) -> list[str]:
    return list(dict.fromkeys(job.stage for job in jobs))


def main(argv: list[str] | None = None) -> None:
    stages = stages_of(grid({}))
    parser = Parser(prog="python -m analysis.experiments.grid", description=__doc__)
    parser.add_argument("--root", default="runs/experiments", metavar="DIR", help="where the runs go")
    parser.add_argument("--out", metavar="DIR", help="where runs.csv and sweep.csv go; default: --root")
    parser.add_argument("--stages", default=",".join(stages), metavar="A,B", help=f"of {', '.join(stages)}")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="runs at once, a core each")
    parser.add_argument("--collect", action="store_true", help="run nothing, only write the tables")
    args = parser.parse_args(argv)
    root, chosen = Path(args.root).resolve(), args.stages.split(",")
    out = Path(args.out or root)
    if unknown := set(chosen) - set(stages):
        fail(f"--stages: there is no {', '.join(sorted(unknown))}; choose from {', '.join(stages)}")
    if args.workers < 1:
        fail(f"--workers must be at least 1, not {args.workers}")
    for stage in [] if args.collect else [stage for stage in stages if stage in chosen]:
        jobs = [job for job in grid(best_rates(root)) if job.stage == stage]
        if missing := sorted({job.method for job in jobs if "?" in job.flags}):
            fail(f"stage {stage} needs the learning rate of {', '.join(missing)}: run the stage sweep first")
        run_stage(jobs, root, args.workers)
        collect(root, out)
    print(f"{collect(root, out)} runs done; next: python -m analysis.experiments.claims --runs {out / 'runs.csv'}")


if __name__ == "__main__":
    main()

"""The results of the runs of grid.py, in tables: they stay when runs are gone, and other machines can add theirs.

sweep.csv     one row per run of the sweep: its accuracy on validation problems
runs.csv      one row per run and per warm start: accuracies, means over the run and over its last ten steps
curves.csv    one row per run and BIN steps: what is drawn
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

import scoring
from analysis.experiments.processes import Job
from analysis.run_folders import read_rollouts, read_run
from harness.console import fail

BIN = 10  # steps
MEANS = [("accuracy", "test", "sampled"), ("ood mean", "ood", "sampled")]  # column of runs.csv, benchmark, responses
MEANS += [("greedy", "test", "greedy"), ("greedy ood", "ood", "greedy")]
CURVES = ("reward", "response_length", "entropy", "grad_norm", "kept_fraction", "no_signal_groups", "lucky")


def start_result(world: str, seed: int, root: Path) -> Path:
    """The folder with the result of eval.py for a seed's warm start."""
    return root / world / "starts" / f"seed{seed}"


def finished(folder: Path) -> bool:
    return (folder / "eval.json").exists()


def by_level(folder: Path, benchmark: str, how: str) -> dict[str, float]:
    """The accuracy of each level in eval.json; `how`: "greedy" or "sampled"."""
    found = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["benchmarks"][benchmark]["levels"]
    return {at["level"]: at[how]["accuracy"] for at in found}


def accuracies(folder: Path) -> dict[str, float]:
    """Accuracies of responses sampled as in training, by level and on average; and of greedy ones, on average."""
    levels = by_level(folder, "test", "sampled")
    found = {f"level {level}": share for level, share in levels.items()}
    for name, benchmark, how in MEANS:
        found[name] = mean(by_level(folder, benchmark, how).values())
    return {name: round(share, 6) for name, share in found.items()}


def validation(folder: Path) -> float:
    return mean(by_level(folder, "validation", "sampled").values())


def lucky(folder: Path) -> pd.Series:
    """By training step: of the right responses that were sampled, the share with no written step."""
    rows = [
        (group["step"], not scoring.steps(text))
        for _, _, group in read_rollouts(folder)
        for text, right, anchor in zip(group["responses"], group["R"], group["is_anchor"], strict=True)
        if right and not anchor
    ]
    return pd.DataFrame(rows, columns=["step", "bare"]).groupby("step")["bare"].mean()


def binned(job: Job, root: Path) -> pd.DataFrame:
    """One row for every BIN steps: the means of the columns in CURVES."""
    steps = read_run(root / job.name).metrics
    steps["lucky"] = lucky(root / job.name)
    rows = steps.reindex(columns=CURVES).groupby((steps.index.to_numpy() - 1) // BIN).mean()
    rows.insert(0, "step", (rows.index + 1) * BIN)
    for name in ("seed", "label", "stage", "world"):
        rows.insert(0, name, getattr(job, name))
    return rows


def row_of(job: Job, root: Path) -> dict[str, Any]:
    """What tables and claims need of one run; `grad_norm max` is the largest norm of any step."""
    found = read_run(root / job.name)
    steps, last = found.metrics, found.metrics.tail(BIN)
    row = {name: getattr(job, name) for name in ("world", "stage", "label", "method", "seed")}
    row |= {"lr": found.config["lr"], **accuracies(root / job.name)}
    for name in ("reward", "response_length", "entropy", "kept_fraction", "no_signal_groups"):
        figures = steps.get(name, pd.Series(dtype=float))
        row |= {f"{name} mean": figures.mean(), f"{name} last": figures.tail(BIN).mean()}
    row |= {"grad_norm max": steps["grad_norm"].max(), "grad_norm last": last["grad_norm"].mean()}
    row |= {name: steps[name].sum() for name in ("responses", "tokens")}
    return row | {"seconds": round(steps["rollout_seconds"].sum() + steps["train_seconds"].sum(), 1)}


def read_rows(path: Path) -> pd.DataFrame:
    """sweep.csv, runs.csv or curves.csv; no rows if it is not there. Ends the program if it is another file."""
    if not path.exists():
        return pd.DataFrame(columns=["world", "stage", "label", "method", "seed", "lr", "validation", "step"])
    try:
        rows = pd.read_csv(path, dtype={"lr": str, "seed": int})
        if rows[["world", "label", "seed"]].isna().any(axis=None):
            raise ValueError
    except (OSError, ValueError, KeyError):
        fail(f"{path} is damaged: it is not a table of analysis.experiments.grid")
    return rows


def collect(jobs: Iterable[Job], root: Path, out: Path) -> int:
    """Adds the finished runs to the tables in `out`, and returns how many rows sweep.csv and runs.csv then have."""
    out.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[Any]] = {"sweep": [], "runs": [], "curves": []}
    for job in (job for job in jobs if finished(root / job.name)):
        if job.is_sweep:
            row = {"world": job.world, "label": job.label, "method": job.method, "lr": job.flags[1], "seed": job.seed}
            made["sweep"].append(pd.DataFrame([row | {"validation": validation(root / job.name)}]))
        else:
            made["runs"].append(pd.DataFrame([row_of(job, root)]))
            made["curves"].append(binned(job, root))
    for start in {(job.world, job.seed) for job in jobs if not job.is_sweep}:
        if finished(folder := start_result(*start, root)):
            row = {"world": start[0], "stage": "main", "label": "warm start", "method": "warm start", "seed": start[1]}
            made["runs"].append(pd.DataFrame([row | accuracies(folder)]))
    count = 0
    for name, rows in made.items():
        path = out / f"{name}.csv"
        parts = [*([read_rows(path)] if path.exists() else []), *rows]
        if parts:
            keys = ["world", "label", "seed", *(["step"] if name == "curves" else [])]
            table = pd.concat(parts).drop_duplicates(keys).sort_values(keys)  # a row that is there stays
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
            count += len(table) if name != "curves" else 0
    return count


def missing(jobs: list[Job], out: Path) -> list[Job]:
    """The jobs whose rows are not in the tables yet."""
    there = pd.concat([read_rows(out / f"{name}.csv") for name in ("sweep", "runs")])
    known = set(zip(there["world"], there["label"], there["seed"], strict=True))
    return [job for job in jobs if (job.world, job.label, job.seed) not in known]

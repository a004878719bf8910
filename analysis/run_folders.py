"""Reads run folders of train.py, from which figures and tables are made."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.console import fail

# flags that may differ between runs of one method without making them two methods
BOOKKEEPING = {"out", "seed", "steps", "resume", "overwrite", "save_every", "log_rollouts_every", "show_every"}
BOOKKEEPING |= {"micro_batch_tokens", "recipe", "anchors", "problems", "python", "torch", "transformers", "threads"}
BOOKKEEPING |= {"content", "init_from", "report", "record_changes"}  # init_from is part of the name already


@dataclass(frozen=True)
class SavedRun:
    """A run folder of train.py."""

    folder: Path
    method: str  # as figures and tables call it
    config: dict[str, Any]
    metrics: pd.DataFrame  # metrics.csv, indexed by step; NaN: not available


def read_runs(folders: Iterable[Path]) -> list[SavedRun]:
    """Reads run folders, and gives runs that differ in a flag different names: `dagrpo, delta 1.0`."""
    runs = [read_run(folder) for folder in folders]
    named = []
    for run in runs:
        same = [other.config for other in runs if other.method == run.method]
        flags = [f for f in run.config if f not in BOOKKEEPING and any(c.get(f) != run.config[f] for c in same)]
        named.append(replace(run, method=", ".join([run.method, *(f"{f} {run.config[f]}" for f in flags)])))
    seen: dict[tuple[str, int], Path] = {}
    for run in named:
        other = seen.setdefault((run.method, run.config["seed"]), run.folder)
        if other is not run.folder:
            fail(f"{other} and {run.folder} are both {run.method} with seed {run.config['seed']}: give one of them")
    return named


def read_run(folder: Path) -> SavedRun:
    """Reads one run folder, named by its method. Ends the program with one line if it is not a run folder."""
    config, path = read_config(folder), folder / "metrics.csv"
    try:
        method = config["method"] + (origin(config["init_from"]) if config.get("init_from") else "")
        config["seed"] = int(config["seed"])
    except (ValueError, KeyError, TypeError):
        fail(f"{folder} is not a run folder of train.py: its config.json names no method, or no seed")
    try:
        text = path.read_text(encoding="utf-8")
        whole = io.StringIO(text[: text.rfind("\n") + 1])  # train.py is writing the rest, or was killed
        metrics = pd.read_csv(whole, index_col="step", dtype=float)
        metrics.index = metrics.index.astype(int)
    except OSError as error:
        fail(f"{folder} is not a run folder of train.py: metrics.csv cannot be read ({error.strerror})")
    except pd.errors.EmptyDataError:
        metrics = pd.DataFrame()
    except (ValueError, KeyError):
        fail(f"{path} is damaged: not every line holds a step and its figures")
    if metrics.empty:
        fail(f"{path} is empty: the run has not finished a step yet")
    return SavedRun(folder, method, config, metrics.replace([math.inf, -math.inf], math.nan))


def read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except OSError as error:
        fail(f"{folder} is not a run folder of train.py: config.json cannot be read ({error.strerror})")
    except (ValueError, TypeError, RecursionError):
        fail(f"{folder} is not a run folder of train.py: its config.json is damaged")


def read_rollouts(folder: Path) -> Iterator[tuple[int, int, Any]]:
    """Yields where each line of rollouts.jsonl begins and ends, in bytes, and its group (harness.report.records).

    The group is None if the line is not JSON. A last line without an end, which train.py is writing or was killed in,
    is left out. Raises OSError.
    """
    end = 0
    with (folder / "rollouts.jsonl").open("rb") as lines:
        for line in lines:
            begin, end = end, end + len(line)
            if line.endswith(b"\n"):
                try:
                    group = json.loads(line)
                except (ValueError, RecursionError):
                    group = None
                yield begin, end, group


def origin(start: str) -> str:
    """The end of a run's name: ` after sft` if it began where an sft run ended, ` after NAME` for another model folder.

    Empty for a warm start, because runs begin with one anyway: each seed of a method may have its own.
    """
    if (Path(start) / "warm_start.json").exists():
        return ""
    for folder in (Path(start), *Path(start).parents[:2]):  # RUN, RUN/checkpoint or RUN/checkpoint/model
        try:
            return " after " + json.loads((folder / "config.json").read_text(encoding="utf-8"))["method"]
        except (OSError, ValueError, KeyError):
            continue
    return f" after {Path(start).name}"


def by_method(runs: list[SavedRun]) -> dict[str, list[SavedRun]]:
    return {method: [run for run in runs if run.method == method] for method in dict.fromkeys(r.method for r in runs)}


def common_steps(runs: list[SavedRun]) -> list[int]:
    """The steps that all of these runs have finished."""
    return sorted(set.intersection(*(set(run.metrics.index) for run in runs)))


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def describe(runs: list[SavedRun]) -> list[str]:
    """For a caption: the seeds, steps and folders of each method. Unequal lengths are also reported on stderr."""
    lines = []
    for method, group in by_method(runs).items():
        seeds, lengths = ", ".join(str(run.config["seed"]) for run in group), [len(run.metrics) for run in group]
        steps = len(common_steps(group))
        lines += ["", f"{method}: {count(len(group), 'seed')} ({seeds}), {count(steps, 'step')}"]
        if max(lengths) > steps:
            lines.append(f"    its runs have {min(lengths)} to {max(lengths)} steps; drawn: the {steps} that all have")
            print(f"{method}: {lines[-1].strip()}", file=sys.stderr)
        lines += [f"    {run.folder}" for run in group]
    return lines

"""The run folder: what train.py writes, where it may write, and how a run goes on after it was stopped.

    config.json      all flags, the recipe they make, versions
    metrics.csv      a row per step
    rollouts.jsonl   a line per group: question, responses, tokens, log-probs, R, S, A, keep, is_anchor
    nonfinite.jsonl  the groups of steps with a gradient that was not finite, to look into; only if there are any
    judge.jsonl      a judge's scores by content, so that nothing is paid for twice; only with --scorer judge
    checkpoint/      the latest: model/ (loads with from_pretrained), trainer.pt (optimiser, step, random states) and
                     config.json, which says of which run; with --keep, earlier ones are in checkpoint-STEP/

On resume, metrics.csv, rollouts.jsonl and nonfinite.jsonl are cut back to the checkpoint's step, so that nothing is
missing or there twice.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from operator import index
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout

from dagrpo import Recipe
from harness.checkpoint import find_checkpoint, kept
from harness.config import Config
from harness.console import fail, one_line
from harness.files import aside

FILES = ("config.json", "metrics.csv", "rollouts.jsonl", "nonfinite.jsonl")
FOLDERS = ("checkpoint", "checkpoint.new", "checkpoint.old", "checkpoint.partial")
BOARDS = ("tensorboard", "wandb")

# columns of metrics.csv that depend on the machine: two runs with equal flags differ in nothing else
MACHINE = ("rollout_seconds", "train_seconds", "judge_seconds", "memory_mb", "open_files", "threads")


# flags that may change on --resume: they change neither weights nor figures
FREE = {"out", "steps", "resume", "overwrite", "preset", "keep", "save_every", "log_rollouts_every"}
FREE |= {"show_every", "report", "record_changes"}
FREE |= {"judge_url", "judge_concurrency", "judge_cache", "judge_timeout", "judge_tokens", "judge_json"}


@contextmanager
def claim(out: Path, resume: bool, overwrite: bool) -> Iterator[Path | None]:
    """Keeps the run folder for this process; gives the checkpoint to go on from, or None for a new run.

    Creates and locks the folder. Ends the program with one line if it cannot, or if a run is there and no flag says
    what to do with it. Removes nothing: `clear` does that, once every other flag has been checked.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {out}: the folder cannot be made ({error.strerror}); choose another one")
    if not os.access(out, os.R_OK | os.W_OK | os.X_OK):
        fail(f"--out {out}: no permission to read and write there; choose another one")
    lock = FileLock(out / ".lock")
    with one_line(f"--out {out}: its .lock cannot be written", OSError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            fail(f"--out {out}: another process is writing this run; wait for it, or stop it")
    try:
        holds_run = any((out / name).exists() for name in (*FILES, *FOLDERS))
        if holds_run and not resume and not overwrite:
            fail(f"--out {out} already holds a run: --resume goes on with it, --overwrite replaces it")
        yield find_checkpoint(out) if resume else None
    finally:
        lock.release()


def write_config(out: Path, about: dict[str, Any]) -> None:
    """Writes config.json: `about`, which holds the settings, and the versions of Python, torch and transformers."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "threads": torch.get_num_threads()}
    with aside(out / "config.json") as file:
        file.write(json.dumps(about | versions, indent=1) + "\n")


def clear(out: Path) -> None:
    """Removes an earlier run's files from `out`, and nothing else that may be there."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in (*FOLDERS, *BOARDS):
        shutil.rmtree(out / name, ignore_errors=True)
    for folder in kept(out):
        shutil.rmtree(folder, ignore_errors=True)


def changed(folder: Path, about: dict[str, Any]) -> list[str]:
    """What differs from the config.json of a run or checkpoint, without FREE: `--lr was 0.0001, is 0.001`.

    A flag, or a choice of the recipe, that the file does not have because it is older counts as having had its default.
    """
    path = folder / "config.json"
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        fail(f"{path} cannot be read, or holds no settings: --resume needs it; restore it, or give --overwrite")
    flags = {setting.name: setting.default for setting in fields(Config)}

    def flat(about: dict[str, Any]) -> dict[str, Any]:
        found, recipe = {name: about[name] for name in about if name not in FREE}, about.get("recipe")
        if isinstance(recipe, dict):
            del found["recipe"]
            found |= {f"recipe.{name}": value for name, value in (asdict(Recipe("")) | recipe).items()}
        return json.loads(json.dumps(found))

    before, now = flat(before), flat(about)
    return [
        f"{'--' + name.replace('_', '-') if name in flags else name} was {before.get(name)!s:.90}, is {value!s:.90}"
        for name, value in now.items()
        if before.get(name, flags.get(name)) != value
    ]


def cut_back(out: Path, step: int) -> None:
    """Drops what is after `step` from metrics.csv, rollouts.jsonl and nonfinite.jsonl, with half-written last lines.

    Removes the folders that a kill may have left next to `checkpoint`: none is needed any more.
    """
    for name in FOLDERS[1:]:
        shutil.rmtree(out / name, ignore_errors=True)

    def csv_step(line: str) -> int:
        return int(line.split(",", 1)[0])

    def jsonl_step(line: str) -> int:
        return index(json.loads(line)["step"])

    _keep_lines(out / "metrics.csv", step, csv_step, header=True)
    _keep_lines(out / "rollouts.jsonl", step, jsonl_step, header=False)
    _keep_lines(out / "nonfinite.jsonl", step, jsonl_step, header=False)


def _keep_lines(path: Path, step: int, step_of: Callable[[str], int], header: bool) -> None:
    """A last line without a line end was cut by a kill and is dropped. Any other bad line ends the program."""
    steps: list[int] = []
    if not path.exists() and not (header and step):
        return
    try:
        with path.open(encoding="utf-8") as lines, aside(path) as kept:
            first = lines.readline() if header else ""
            kept.write(first)
            for line in lines:
                if not line.endswith("\n") or (found := step_of(line)) > step:
                    break
                if header and line.count(",") + 1 != len(next(csv.reader([first]))):
                    raise ValueError
                kept.write(line)
                steps.append(found)
            if steps != (list(range(1, step + 1)) if header else sorted(steps)):
                raise ValueError
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        fail(f"{path} is damaged after line {len(steps) + header}, or lacks a step: --overwrite begins the run again")


def usage() -> dict[str, float]:
    """The process's memory, open files and threads, for metrics.csv: in a run of days, none of these may grow."""
    process = Path("/proc/self")
    if not process.exists():  # not on Linux
        return {}
    pages = int((process / "statm").read_text().split()[1])  # in memory, not in swap
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open_files": sum(1 for _ in (process / "fd").iterdir()) - 1,  # counting them opens one
        "threads": sum(1 for _ in (process / "task").iterdir()),
    }


def append_metrics(out: Path, row: dict[str, Any]) -> None:
    """Adds a step's row, and `usage`, to metrics.csv; None becomes an empty cell.

    If a resumed run has new figures (a newer version's), the file gets further columns.
    """
    path, row = out / "metrics.csv", row | usage()
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), [])
        earlier = [] if header and set(header) >= set(row) else list(csv.DictReader(file, header))
    columns = list(dict.fromkeys([*header, *row]))
    row = {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}
    if columns == header:
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
        return
    with aside(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*earlier, row])


def append_rollouts(out: Path, records: Iterable[dict[str, Any]], name: str = "rollouts.jsonl") -> None:
    """Adds a step's groups to rollouts.jsonl, a line each. Raises ValueError for NaN, which `records` replaces."""
    with (out / name).open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, allow_nan=False) + "\n")

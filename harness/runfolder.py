"""The run folder: what train.py writes, where it may write, and how a run goes on after it was stopped.

    config.json      all flags, the recipe they make, versions
    metrics.csv      a row a step
    rollouts.jsonl   a line a group: question, responses, tokens, log-probs, R, S, A, keep, is_anchor
    nonfinite.jsonl  the groups of steps with a gradient that was not finite, to look into; only if there are any
    judge.jsonl      a judge's scores by content, so that nothing is paid for twice; only with --scorer judge
    checkpoint/      the latest: model/ (loads with from_pretrained), trainer.pt (optimiser, step, random states) and
                     config.json, whose run it is; earlier ones as checkpoint-STEP/, with --keep

On resume, metrics.csv and rollouts.jsonl are cut back to the checkpoint's step: nothing is missing, and nothing is
there twice.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from operator import index
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout

from harness.checkpoint import find_checkpoint, kept
from harness.config import Config
from harness.console import fail, one_line
from harness.files import aside

FILES = ("config.json", "metrics.csv", "rollouts.jsonl", "nonfinite.jsonl")
FOLDERS = ("checkpoint", "checkpoint.new", "checkpoint.old", "checkpoint.partial")
BOARDS = ("tensorboard", "wandb")

# columns of metrics.csv that depend on the machine: two runs with equal flags differ in nothing else
MACHINE = ("rollout_seconds", "train_seconds", "judge_seconds", "memory_mb", "open_files", "threads")


# flags that a resumed run may change: they change neither weights nor figures
FREE = {"out", "steps", "resume", "overwrite", "preset", "keep", "save_every", "log_rollouts_every"}
FREE |= {"show_every", "report", "record_changes"}
FREE |= {"judge_url", "judge_concurrency", "judge_cache", "judge_timeout", "judge_tokens", "judge_json"}


@contextmanager
def claim(out: Path, resume: bool, overwrite: bool) -> Iterator[Path | None]:
    """The folder is ours within it; gives the checkpoint to go on from, None for a new run.

    Creates the folder and keeps other processes out; ends the program with one line where that cannot be. Removes
    nothing: that is for `clear`, once every other flag has been checked.
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
            fail(f"--out {out}: another process is just writing this run; wait for it, or end it")
    try:
        holds_run = any((out / name).exists() for name in (*FILES, *FOLDERS))
        if holds_run and not resume and not overwrite:
            fail(f"--out {out} already holds a run: --resume goes on with it, --overwrite replaces it")
        yield find_checkpoint(out) if resume else None
    finally:
        lock.release()


def write_config(out: Path, about: dict[str, Any]) -> None:
    """config.json: the settings, and the versions that a run is computed with."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "threads": torch.get_num_threads()}
    with aside(out / "config.json") as file:
        file.write(json.dumps(about | versions, indent=1) + "\n")


def clear(out: Path) -> None:
    """Removes a former run's files from `out`, and nothing else that may be there."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in (*FOLDERS, *BOARDS):
        shutil.rmtree(out / name, ignore_errors=True)
    for folder in kept(out):
        shutil.rmtree(folder, ignore_errors=True)


def changed(folder: Path, about: dict[str, Any]) -> list[str]:
    """What differs from the config.json of a run or checkpoint, FREE apart: `--lr was 0.0001, is 0.001`.

    A flag that is not in the file, as it is younger, had its default.
    """
    path = folder / "config.json"
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        fail(f"{path} cannot be read, or holds no settings: without it nobody can tell whether this is the same run")
    flags = {setting.name: setting.default for setting in fields(Config)}
    now = {name: json.loads(json.dumps(value)) for name, value in about.items() if name not in FREE}
    return [
        f"{'--' if name in flags else ''}{name.replace('_', '-')} was {before.get(name)!s:.90}, is {value!s:.90}"
        for name, value in now.items()
        if before.get(name, flags.get(name)) != value
    ]


def cut_back(out: Path, step: int) -> None:
    """Drops the lines of metrics.csv and rollouts.jsonl for steps after `step`, half-written last ones included.

    Of the folders that a kill has left beside `checkpoint` none is needed any more.
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
    """A last line without an end is one that a kill has cut. Any other that cannot be read ends the program."""
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
        fail(f"{path} is damaged behind line {len(steps) + header}, or lacks a step: --overwrite begins the run again")


def usage() -> dict[str, float]:
    """What the process takes up now, for metrics.csv: a run may go on for days, and none of these may grow."""
    process = Path("/proc/self")
    if not process.exists():  # not on Linux
        return {}
    pages = int((process / "statm").read_text().split()[1])  # in memory, not in swap
    return {
        "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open_files": sum(1 for _ in (process / "fd").iterdir()) - 1,  # this look at them opens one itself
        "threads": sum(1 for _ in (process / "task").iterdir()),
    }


def append_metrics(out: Path, row: dict[str, Any]) -> None:
    """Adds a step to metrics.csv, and what the process takes up; None becomes an empty cell.

    A run that goes on with other figures (another version's) gets further columns.
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
    """Adds a step's groups to rollouts.jsonl, a line each; a number that is not one becomes null."""
    with (out / name).open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, allow_nan=False) + "\n")

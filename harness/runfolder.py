"""The run folder: what train.py writes, where it may write, and how a run goes on after it was stopped.

    config.json      all flags, the recipe they make, versions
    metrics.csv      a row a step
    rollouts.jsonl   a line a group: question, responses, tokens, log-probs, R, S, A, keep, is_anchor
    nonfinite.jsonl  the groups of steps with a gradient that was not finite, to look into; only if there are any
    judge.jsonl      a judge's scores by content, so that nothing is paid for twice; only with --scorer judge
    checkpoint/      the latest: model/ (loads with from_pretrained), trainer.pt (optimiser, step, random states) and
                     config.json, whose run it is; earlier ones as checkpoint-STEP/, with --keep

A checkpoint is written aside, brought to the disk and renamed, so neither a killed run nor a power cut harms the one
before it. On resume, metrics.csv and rollouts.jsonl are cut back to the checkpoint's step: nothing is missing, and
nothing is there twice. What is read back is checked first (docs/promises.md).
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from operator import index
from pathlib import Path
from typing import IO, Any

import torch
import transformers
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch.optim import Optimizer

from harness.config import Config
from harness.console import fail, first_line, one_line
from policy import Policy, fault, save_policy

FILES = ("config.json", "metrics.csv", "rollouts.jsonl", "nonfinite.jsonl")
FOLDERS = ("checkpoint", "checkpoint.new", "checkpoint.old", "checkpoint.partial")

# columns of metrics.csv that depend on the machine: two runs with equal flags differ in nothing else
MACHINE = ("rollout_seconds", "train_seconds", "judge_seconds", "memory_mb", "open_files", "threads")


# flags that a resumed run may change: they change neither weights nor figures
FREE = {"out", "steps", "resume", "overwrite", "preset", "keep", "save_every", "log_rollouts_every"}
FREE |= {"show_every", "judge_url", "judge_concurrency", "judge_cache", "judge_timeout", "judge_tokens", "judge_json"}


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


@contextmanager
def aside(path: Path) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` once it is whole: a kill or an error leaves what was there before."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync(*paths: Path) -> None:
    """Waits until these files, and the names in these folders, are on the disk: a power cut then leaves them whole."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


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
    for name in FOLDERS:
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


def kept(out: Path) -> list[Path]:
    """Earlier checkpoints, oldest first."""
    folders = [path for path in out.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint; puts right what a kill between two renames has left."""
    latest, new, old = out / "checkpoint", out / "checkpoint.new", out / "checkpoint.old"
    if not latest.exists():
        for complete in (new, old):  # both only ever exist whole
            if complete.exists():
                complete.rename(latest)
                break
    return latest if latest.exists() else None


def save_checkpoint(out: Path, policy: Policy, optimizer: Optimizer, trainer: dict[str, Any], keep: int = 1) -> None:
    """Writes `checkpoint/`. At every moment of it, one complete checkpoint is there for find_checkpoint.

    `keep` counts the latest; only when the new one is complete are older ones removed. Raises OSError if it cannot be
    written (a full disk), FloatingPointError if it would be of no use: then the one before is still in its place.
    """
    if why := fault(policy, optimizer):
        raise FloatingPointError(f"after step {trainer['step']}, {why}: nothing is saved")
    partial, new, old, latest = (out / f"checkpoint{end}" for end in (".partial", ".new", ".old", ""))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        save_policy(policy, partial / "model")
        trainer = {**trainer, "optimizer": optimizer.state_dict(), "random": random_state()}
        torch.save(trainer, partial / "trainer.pt")
        (partial / "step").write_text(str(trainer["step"]))
        shutil.copy(out / "config.json", partial)
        sync(*partial.rglob("*"), partial, *(out / name for name in FILES if (out / name).exists()))
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors have their own names for it
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            getattr(error, "errno", None), f"the checkpoint cannot be written: {first_line(error)}"
        ) from error
    shutil.rmtree(new, ignore_errors=True)
    partial.rename(new)
    shutil.rmtree(old, ignore_errors=True)
    if latest.exists():
        latest.rename(old)
    new.rename(latest)
    sync(out)
    if keep > 1 and old.exists():
        old.rename(out / f"checkpoint-{(old / 'step').read_text()}")
    shutil.rmtree(old, ignore_errors=True)
    for folder in kept(out)[: -(keep - 1) or None]:
        shutil.rmtree(folder, ignore_errors=True)


def load_trainer(checkpoint: Path, optimizer: Optimizer) -> dict[str, Any]:
    """What save_checkpoint was given; sets the optimiser's state, not its rate, and the random states.

    No pickled code is run. AdamW's fused kernel would read beyond the end of a state that is too small.
    """
    path, parameters = checkpoint / "trainer.pt", optimizer.param_groups[0]["params"]
    with one_line(f"{path} cannot be read, or is of another run", Exception):  # a damaged file fails in any way
        trainer = torch.load(path, weights_only=True, map_location="cpu")
        state, entropy = trainer["optimizer"]["state"], trainer["start_entropy"]
        known = type(trainer["step"]) is int and (entropy is None or 0 <= entropy < math.inf)
        if not known or str(trainer["step"]) != (checkpoint / "step").read_text():
            raise ValueError(f"step {trainer['step']!s:.20} or start_entropy {entropy!s:.20} is not what was written")
        if state and list(state) != list(range(len(parameters))):
            raise ValueError("its optimiser has other parameters")
        for i, values in state.items():
            fresh = {"step": torch.tensor(0.0), "exp_avg": parameters[i], "exp_avg_sq": parameters[i]}
            for name in fresh.keys() | values.keys():
                x, y = values[name], fresh[name]
                fits = (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride()) and x.isfinite().all()
                if not fits or (name != "exp_avg" and (x < 0).any()):
                    raise ValueError(f"AdamW cannot have written {name} of parameter {i}")
        set_random_state(trainer["random"])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return trainer


def random_state() -> dict[str, Any]:
    """The random states that sampling advances. Prompts need none: their order follows seed and step."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


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
            if header:
                kept.write(lines.readline())
            for line in lines:
                if not line.endswith("\n") or (found := step_of(line)) > step:
                    break
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

"""A run of an experiment (Job), and how many of them run, a few at a time, each in its own process.

If one fails, its error is reported, and the others go on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from harness.console import fail, progress


@dataclass(frozen=True)
class Job:
    """One run. `label` is what tables call it, `flags` what makes it different from the defaults."""

    world: str
    stage: str
    label: str
    method: str
    seed: int
    flags: tuple[str, ...] = ()
    after: str | None = None  # the stage/label whose run of the same seed it begins from
    control: str = ""  # of analysis.experiments.controls; "": train.py as it is

    @property
    def name(self) -> str:
        return f"{self.world}/{self.stage}/{self.label}/seed{self.seed}"

    @property
    def is_sweep(self) -> bool:
        return self.stage == "sweep"


def call(command: list[str], folder: Path) -> str | None:
    """Runs a command on one core. Returns None, or if it failed a line with its last output; log.txt has all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        one_core = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=one_core).returncode
    if code == 0:
        return None
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    return f"{'/'.join(folder.parts[-3:])} failed ({code}): {lines[-1][:300]}"


def side_by_side(works: list[Callable[[], str | None]], what: str, workers: int, already: int = 0) -> None:
    """Calls `works`, `workers` at a time; each returns its error, if any. Ends the program at the end if one did."""
    if not works:
        return
    failures = 0
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work) for work in works]
        bar = progress(as_completed(futures), desc=what, total=already + len(works), initial=already)
        try:
            for future in bar:
                if why := future.result():
                    failures += 1
                    bar.write(why)
        except KeyboardInterrupt:  # the runs have got the signal too: each finishes its step and saves
            pool.shutdown(cancel_futures=True)
            bar.close()
            print("stopped; run the same command to go on", file=sys.stderr)
            sys.exit(130)
    if failures:
        fail(f"{failures} of {len(works)} runs failed; see log.txt in their folders")

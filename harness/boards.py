"""Curves while a run goes on, on TensorBoard or Weights & Biases: their own writers, fed with the rows of metrics.csv.

    train.py --report tensorboard    then: tensorboard --logdir RUN/tensorboard
    train.py --report wandb          WANDB_MODE=offline keeps everything in RUN/wandb

Without either, `python -m analysis.curves RUN --watch` redraws its figure as the run goes on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.console import need

Report = Callable[[dict[str, Any]], None]  # takes a row of metrics.csv


@contextmanager
def board(kind: str | None, out: Path, settings: dict[str, Any], step: int) -> Iterator[Report]:
    """What a step's figures are given to. A run that goes on after `step` replaces what was shown of later steps."""
    if kind == "tensorboard":
        need("tensorboard", "--report tensorboard")
        writer = need("torch.utils.tensorboard", "--report tensorboard").SummaryWriter(
            str(out / "tensorboard"), purge_step=step + 1 if step else None
        )
        with writer:
            yield lambda row: [writer.add_scalar(name, value, row["step"]) for name, value in figures(row).items()]
    elif kind == "wandb":
        identity = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]  # the same folder is the same run
        how = {"name": out.name, "dir": str(out), "config": settings, "id": identity, "resume": "allow"}
        with need("wandb", "--report wandb").init(project="dagrpo", **how) as run:
            yield lambda row: run.log(figures(row), step=row["step"])
    else:
        yield lambda row: None


def figures(row: dict[str, Any]) -> dict[str, float]:
    """What can be drawn: neither the step nor what is not available."""
    found = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}

"""Live curves of a run on TensorBoard or Weights & Biases: each row of metrics.csv goes to the library's own writer.

    train.py --report tensorboard    then: tensorboard --logdir RUN/tensorboard
    train.py --report wandb          WANDB_MODE=offline keeps everything in RUN/wandb

Without either, `python -m analysis.curves RUN --watch` redraws its figure while the run goes on.
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
    """Gives the function that shows a row of metrics.csv. A run resumed after `step` replaces the later steps shown."""
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
    """What a board can draw of a row: its finite numbers, without the step."""
    found = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}

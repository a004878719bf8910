"""Checkpoints: the policy, its optimiser and the random states. A run goes on from one as if it had not stopped.

A checkpoint is written under another name, synced to disk and renamed, so neither a kill nor a power cut harms the one
before it. A useless policy (weights that are not finite) is not saved; what is read is checked (docs/promises.md).
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim import Optimizer

from harness.console import first_line, one_line
from harness.files import sync
from policy import Policy, fault, save_policy


def kept(out: Path) -> list[Path]:
    """The folders checkpoint-STEP/ of earlier checkpoints, oldest first."""
    folders = [path for path in out.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def find_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint, or None. If a kill came between two renames, does the second one."""
    latest, new, old = out / "checkpoint", out / "checkpoint.new", out / "checkpoint.old"
    if not latest.exists():
        for complete in (new, old):  # if they exist, they are complete
            if complete.exists():
                complete.rename(latest)
                break
    return latest if latest.exists() else None


def save_checkpoint(out: Path, policy: Policy, optimizer: Optimizer, trainer: dict[str, Any], keep: int = 1) -> None:
    """Writes `checkpoint/`. At every moment, there is one complete checkpoint that find_checkpoint can find.

    The latest `keep` checkpoints stay; older ones are removed once the new one is complete. Raises OSError if it cannot
    be written (a full disk) and FloatingPointError if it would be useless; the one before then stays in its place.
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
        sync(*partial.rglob("*"), partial, *filter(Path.is_file, out.iterdir()))
    except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors raise their own for a full disk
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
    """The `trainer` that save_checkpoint was given; restores the random states and the optimiser's state, not its rate.

    Ends the program with one line if the file is damaged or of another run. No pickled code is run. Shapes are checked
    because AdamW's fused kernel would read beyond the end of a state that is too small.
    """
    path, parameters = checkpoint / "trainer.pt", optimizer.param_groups[0]["params"]
    with one_line(f"{path} cannot be read, or is of another run", Exception):  # a damaged file fails in any way
        trainer = torch.load(path, weights_only=True, map_location="cpu")
        state, entropy = trainer["optimizer"]["state"], trainer["start_entropy"]
        known = type(trainer["step"]) is int and (entropy is None or 0 <= entropy < math.inf)
        if not known or str(trainer["step"]) != (checkpoint / "step").read_text():
            raise ValueError(f"step {trainer['step']!s:.20} or start_entropy {entropy!s:.20} is not what was written")
        if state and list(state) != list(range(len(parameters))):
            raise ValueError("its optimiser is one for other parameters")
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
    """The random states that sampling advances. The order of prompts needs none: it follows from seed and step."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])

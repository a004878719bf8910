"""multi_gpu on two processes, for real: the loss and gradient of one process, and a run of the built-in task."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.extra
pytest.importorskip("trl", reason="needs trl: pip install -r requirements-extra.txt")

from helpers_trl import CLOSE, ROOT, SMALL, G, distance, first_step, learner, read, record, settings  # noqa: E402

import dagrpo  # noqa: E402
from policy import load_policy  # noqa: E402

DISTRIBUTED = ("dapo", "gspo", "dagrpo")


def launch(*command, **env):
    """On two processes, gloo on CPUs. `--cpu` would be accelerate's word for one process."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | env
    command = [*accelerate, "--main_process_port", "0", *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def worker(folder, where, per_device, micro_batches):
    """What each process does: the first step of every method on its recorded batch; process 0 writes the results."""
    results = {}
    for method, batch in torch.load(Path(where) / "batches.pt", weights_only=False).items():
        args = settings(where, method=method, per_device=int(per_device), micro_batches=int(micro_batches))
        loss, gradient, log, trainer = first_step(folder, batch, args)
        results[method] = {"loss": loss, "gradient": gradient, "log": log, "questions": trainer.seen}
        results[method]["processes"] = trainer.accelerator.num_processes
        main = trainer.accelerator.is_main_process
    if main:
        torch.save(results, Path(where) / "results.pt")


def test_two_processes_have_the_loss_and_gradient_of_one(tiny, tiny_folder, tmp_path):
    """3 groups of 4 on two processes: the second group has rows on both."""
    batches = {name: record(tiny, groups=3, anchors=dagrpo.METHODS[name].anchors) for name in DISTRIBUTED}
    torch.save(batches, tmp_path / "batches.pt")
    launch(Path(__file__).resolve(), tiny_folder, tmp_path, 3, 2, PYTHONPATH=str(ROOT))
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    for method, batch in batches.items():
        two = results[method]
        loss, gradient, _, _ = learner(tiny, batch, method)
        assert two["processes"] == 2 and two["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert distance(two["gradient"], gradient) < CLOSE
        one = settings(tmp_path, method=method, per_device=3, micro_batches=4)
        one_loss, one_gradient, log, _ = first_step(tiny_folder, batch, one)
        assert two["loss"] == pytest.approx(one_loss, rel=1e-5, abs=1e-7)
        assert distance(two["gradient"], one_gradient) < CLOSE
        assert two["questions"] == [p.question for p in batch["problems"] for _ in range(G)], "groups are whole"
        for name in ("kept_fraction", "anchors", "scorer_calls", "reward", "tokens", "response_length"):
            assert two["log"][f"dagrpo/{name}"] == pytest.approx(log[f"dagrpo/{name}"])


def test_two_processes_train_the_built_in_task(tiny_folder, tmp_path):
    out = tmp_path / "run"
    launch(ROOT / "multi_gpu" / "trl_dagrpo.py", "--steps", 2, "--out", out, "--model", tiny_folder, *SMALL)
    rows = read(out)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(row["anchors"] == "4" and row["responses"] == "12" for row in rows)
    assert json.loads((out / "config.json").read_text())["launch"]["processes"] == 2
    assert load_policy(str(out)).model.num_parameters() > 0


if __name__ == "__main__":
    worker(*sys.argv[1:])

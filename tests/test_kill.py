"""A run that is stopped or killed, in a process of its own, goes on as if nothing had happened (make test-all)."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.table import read_run

pytestmark = pytest.mark.extra
ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
# the tiny policy is never right, and without signal no weight moves: call every response of even length right
COMMAND = """
import torch, scoring, train
torch.set_num_threads(1)
scoring.verify = lambda response, answer: len(response) % 2 == 0
train.main()
"""
TIMES = ("rollout_seconds", "train_seconds")


def launch(folder, out, *flags):
    small = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--save-every", "2"]
    argv = ["--method", "dagrpo", "--steps", str(STEPS), "--model", str(folder), "--out", str(out), "--show-every", "0"]
    command = [sys.executable, "-c", COMMAND, *argv, *small, *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process):
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 0, err


def wait_for_step(process, out, step):
    """Until metrics.csv has that many rows, and a moment of chance more."""
    while not (out / "metrics.csv").exists() or (out / "metrics.csv").read_text().count("\n") <= step:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    time.sleep(random.Random(step).random() * 0.2)


def result(out):
    rows = read_run(out).rows
    for row in rows.values():
        for name in TIMES:
            row.pop(name)
    return rows, (out / "rollouts.jsonl").read_text(), (out / "checkpoint/model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(launch(tiny_folder, out))
    return result(out)


def test_a_run_killed_at_random_moments_ends_as_the_uninterrupted_one(tiny_folder, tmp_path, whole):
    out = tmp_path / "run"
    for step in (1, 5, 9, 14):
        process = launch(tiny_folder, out, "--resume")
        wait_for_step(process, out, step)
        process.kill()
        process.communicate()
    finish(launch(tiny_folder, out, "--resume"))
    assert len(whole[0]) == STEPS
    assert result(out) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_finishes_its_step_says_how_to_go_on_and_goes_on(tiny_folder, tmp_path, whole, number):
    out = tmp_path / "run"
    process = launch(tiny_folder, out)
    wait_for_step(process, out, 3)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "add --resume" in err and "Traceback" not in err
    done = len(read_run(out).rows)
    assert 3 <= done < STEPS
    finish(launch(tiny_folder, out, "--resume"))
    assert result(out) == whole

"""A run that is stopped, killed or out of disk, in its own process, goes on as if nothing had been (make test-all)."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from analysis.run_folders import read_run
from harness import checkpoint, runfolder

pytestmark = pytest.mark.extra
STEPS = 24
# the tiny policy is never right, and without signal no weight moves: call every response of even length right
COMMAND = """
import torch, scoring, train
torch.set_num_threads(1)
scoring.verify = lambda response, answer, ended=True: len(response) % 2 == 0
train.main()
"""
# every touch of a checkpoint's file takes a moment longer, so that a kill finds the writing half done
SLOW = """
import sys, time
watched = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
sys.addaudithook(lambda event, args: event in watched and "checkpoint" in str(args[0]) and time.sleep(0.02))
"""


def launch(folder, out, *flags, largest_file=None, slow=False):
    """`largest_file`: bytes; writing more fails as on a full disk. `slow`: where it writes checkpoints."""
    small = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--save-every", "2"]
    argv = ["--method", "dagrpo", "--steps", str(STEPS), "--model", str(folder), "--out", str(out), "--show-every", "0"]
    command = [sys.executable, "-c", SLOW * slow + COMMAND, *argv, *small, *flags]

    def limit():
        if largest_file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=limit
    )


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
    rows = read_run(out).metrics.drop(columns=list(runfolder.MACHINE), errors="ignore")
    return (
        rows.to_csv(),
        (out / "rollouts.jsonl").read_text(),
        (out / "checkpoint/model/model.safetensors").read_bytes(),
    )


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
    assert whole[0].count("\n") == 1 + STEPS
    assert result(out) == whole


def test_a_run_killed_while_it_writes_its_checkpoint_ends_as_the_uninterrupted_one(tiny_folder, tmp_path, whole):
    """Kills aimed at the writing, from the first file of the folder aside to the last rename."""
    out, left = tmp_path / "run", []
    partial = out / "checkpoint.partial"

    def last_step():
        folder = checkpoint.find_checkpoint(out)
        return int((folder / "step").read_text()) if folder else 0

    for files in range(9):  # how many there are when the kill comes; of 8, more than there will be, the renames follow
        before, process = last_step(), launch(tiny_folder, out, "--resume", slow=True)
        for there in (False, True):  # what the last kill has left is cleared away, and then the next one is begun
            while partial.exists() != there:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.001)
        while partial.exists() and sum(len(found) for _, _, found in os.walk(partial)) < files:
            time.sleep(0.001)
        time.sleep(random.Random(files).random() * 0.02)
        process.kill()
        process.communicate()
        left.append(sorted(str(path.relative_to(out)) for path in out.glob("checkpoint.*/**/*")))
        assert last_step() - before in (0, 2)
    finish(launch(tiny_folder, out, "--resume"))
    assert result(out) == whole
    expected = {".lock", "config.json", "metrics.csv", "rollouts.jsonl", "checkpoint"}
    assert {path.name for path in out.iterdir()} == expected, "nothing is left aside"
    assert len(set(map(tuple, left))) >= 6, "the kills have found the writing at different places"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_finishes_its_step_says_how_to_go_on_and_goes_on(tiny_folder, tmp_path, whole, number):
    out = tmp_path / "run"
    process = launch(tiny_folder, out)
    wait_for_step(process, out, 3)
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "to continue, run the same command with --resume" in err and "Traceback" not in err
    done = len(read_run(out).metrics)
    assert 3 <= done < STEPS
    finish(launch(tiny_folder, out, "--resume"))
    assert result(out) == whole


def fails_for_room(process):
    """The one line that it ends with."""
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Make room" in last and "Traceback" not in err
    return last


def test_no_room_for_a_checkpoint_leaves_the_last_one_intact(tiny_folder, tmp_path, whole):
    out = tmp_path / "run"
    finish(launch(tiny_folder, out, "--steps", "4"))
    before = result(out)
    weights = (tiny_folder / "model.safetensors").stat().st_size
    last = fails_for_room(launch(tiny_folder, out, "--resume", largest_file=weights // 2))
    assert "the checkpoint cannot be written" in last and "The checkpoint is of step 4" in last
    assert (out / "checkpoint/model/model.safetensors").read_bytes() == before[2]
    finish(launch(tiny_folder, out, "--resume"))
    assert result(out) == whole


def test_no_room_for_the_rollouts_is_one_clear_line(tiny_folder, tmp_path, whole):
    out = tmp_path / "run"
    last = fails_for_room(launch(tiny_folder, out, "--save-every", "999", largest_file=len(whole[1]) // 2))
    assert "There is no checkpoint yet" in last
    finish(launch(tiny_folder, out, "--resume"))
    assert result(out)[1:] == whole[1:]

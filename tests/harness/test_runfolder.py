"""runfolder.py: two processes keep apart, a folder may move, and what is renamed is on the disk before."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from helpers import groups_of, run, weights

import train
from harness import runfolder

pytestmark = pytest.mark.usefixtures("even_is_right")


def test_keep_keeps_the_newest_checkpoints(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", "--save-every", "1", "--keep", "3", steps=5)
    found = {path.name: (path / "step").read_text() for path in (tmp_path / "run").glob("checkpoint*")}
    assert found == {"checkpoint": "5", "checkpoint-4": "4", "checkpoint-3": "3"}
    run(tiny_folder, tmp_path / "run", "--resume", steps=6)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint*")] == ["checkpoint"]
    run(tiny_folder, tmp_path / "run", "--overwrite", "--save-every", "1", "--keep", "2", steps=2)
    assert {path.name for path in (tmp_path / "run").glob("checkpoint*")} == {"checkpoint", "checkpoint-1"}


def test_two_processes_cannot_write_one_run(tiny_folder, tmp_path, capsys):
    with runfolder.claim(tmp_path / "run", resume=False, overwrite=False), pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "run")
    assert "another process is writing this run" in capsys.readouterr().err
    assert len(run(tiny_folder, tmp_path / "run", steps=1)) == 1


MOVED = {
    "renamed": lambda old, new: old.rename(new),
    "copied": lambda old, new: shutil.copytree(old, new),
    "symlinked": lambda old, new: new.symlink_to(old),
}


@pytest.mark.parametrize("how", MOVED)
def test_a_folder_that_has_moved_goes_on(tiny_folder, tmp_path, how):
    whole = run(tiny_folder, tmp_path / "whole", steps=2)
    run(tiny_folder, tmp_path / "run", steps=1)
    MOVED[how](tmp_path / "run", tmp_path / "new")
    assert run(tiny_folder, tmp_path / "new", "--resume", steps=2) == whole
    assert torch.equal(weights(tmp_path / "new"), weights(tmp_path / "whole"))


def test_a_symlink_is_the_folder_that_it_leads_to(tiny_folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with runfolder.claim(tmp_path / "run", resume=False, overwrite=False), pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "link")
    assert "another process is writing this run" in capsys.readouterr().err


def test_a_folder_that_is_renamed_while_it_is_written_is_one_line(tiny_folder, tmp_path, monkeypatch, capsys):
    out, collect = tmp_path / "run", train.collect

    def renames(run, *batch):
        if run.step == 2:
            out.rename(tmp_path / "new")
        return collect(run, *batch)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train, "collect", renames)
        run(tiny_folder, out, "--save-every", "1", steps=3)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and "No such file or directory" in error
    assert len(run(tiny_folder, tmp_path / "new", "--resume", steps=3)) == 3


def test_a_clock_that_goes_back_changes_nothing(tiny_folder, tmp_path, monkeypatch):
    whole, back = run(tiny_folder, tmp_path / "whole", steps=2), iter(range(2**31, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(back)))
    run(tiny_folder, tmp_path / "run", steps=1)
    assert run(tiny_folder, tmp_path / "run", "--resume", steps=2) == whole


def test_a_process_without_the_lock_renames_nothing(tiny_folder, tmp_path):
    """The one that has it is between two renames of its checkpoint."""
    out = tmp_path / "run"
    run(tiny_folder, out, steps=1)
    with runfolder.claim(out, resume=True, overwrite=False):
        (out / "checkpoint").rename(out / "checkpoint.new")
        before = sorted(out.rglob("*"))
        with pytest.raises(SystemExit):
            run(tiny_folder, out, "--resume")
        assert sorted(out.rglob("*")) == before


def test_what_is_renamed_is_on_the_disk_before_and_the_names_after(tiny_folder, tmp_path, monkeypatch):
    """A power cut cannot be had here: the order of calls is what it depends on."""
    synced, renamed = set(), []
    fsync, rename, replace_file = os.fsync, Path.rename, Path.replace

    def note(number):
        synced.add(str(Path(f"/proc/self/fd/{number}").readlink()))
        fsync(number)

    def files(path):
        return {str(p) for p in (path, *path.rglob("*"))} if path.is_dir() else {str(path)}

    def checked(function):
        def call(path, target):
            if path.name.endswith(".partial"):  # otherwise what is renamed has been checked as .partial
                renamed.append(path.name)
                assert files(path) <= synced, f"{path} is renamed and may be empty"
                written = {str(path.parent / name) for name in ("metrics.csv", "rollouts.jsonl", "config.json")}
                assert path.name != "checkpoint.partial" or written <= synced, "the checkpoint is ahead of its rows"
            synced.discard(str(path.parent))
            return function(path, target)

        return call

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", checked(rename))
    monkeypatch.setattr(Path, "replace", checked(replace_file))
    out = tmp_path / "run"
    run(tiny_folder, out, "--save-every", "1", steps=2)
    assert {"config.json.partial", "metrics.csv.partial", "checkpoint.partial"} == set(renamed)
    assert str(out) in synced, "the last names are on the disk"


def test_overwrite_replaces_a_run_and_touches_nothing_else(tiny_folder, tmp_path):
    out = tmp_path / "run"
    run(tiny_folder, out, steps=3)
    (out / "notes.txt").write_text("mine")
    assert len(run(tiny_folder, out, "--overwrite", steps=1)) == 1
    assert (out / "notes.txt").read_text() == "mine" and len(groups_of(out)) == 4

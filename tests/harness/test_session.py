"""session.py and runfolder.py: a run goes on where it was, two processes keep apart, and errors are one line."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import groups_of, metrics, run, weights

import train
from harness import runfolder
from harness.session import Session

pytestmark = pytest.mark.usefixtures("even_is_right")


def test_a_resumed_run_is_the_uninterrupted_one(tiny_folder, tmp_path):
    whole = run(tiny_folder, tmp_path / "whole", steps=4)
    run(tiny_folder, tmp_path / "parts", steps=2)
    # what a kill after the checkpoint would leave behind: a further row, and half a line
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:
        file.write("3,0.1,")
    with (tmp_path / "parts" / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 3, "group": 0}\n{"step": 3, "gro')
    assert run(tiny_folder, tmp_path / "parts", "--resume", steps=4) == whole
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert groups_of(tmp_path / "whole") == groups_of(tmp_path / "parts")


@pytest.mark.parametrize("left", [("checkpoint.new",), ("checkpoint.old",), ("checkpoint.new", "checkpoint.old")])
def test_a_kill_between_two_renames_loses_no_checkpoint(tiny_folder, tmp_path, left):
    out = tmp_path / "run"
    run(tiny_folder, out)
    for name in left:
        shutil.copytree(out / "checkpoint", out / name)
    shutil.rmtree(out / "checkpoint")
    assert len(run(tiny_folder, out, "--resume", steps=3)) == 3


def test_resume_without_a_checkpoint_starts_from_the_beginning_and_says_so(tiny_folder, tmp_path, capsys):
    assert len(run(tiny_folder, tmp_path / "new", "--resume")) == 2
    assert "starting from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["dr_grpo", "sft"])
def test_gradients_that_are_not_finite_are_skipped_shown_saved_and_end_the_run(
    tiny_folder, tmp_path, monkeypatch, capsys, method
):
    before = weights(tiny_folder)

    def broken(function):
        def step(*args, **kwargs):
            result = function(*args, **kwargs)
            for parameter in args[0].policy.model.parameters():
                parameter.grad.fill_(float("nan"))
            return result

        return step

    monkeypatch.setattr(train, "backward", broken(train.backward))
    with pytest.raises(SystemExit) as stop:
        run(tiny_folder, tmp_path / "run", "--save-every", "1", method=method, steps=9)
    said = capsys.readouterr()
    assert stop.value.code == 2 and "gradients in a row were not finite: start again with a lower --lr" in said.err
    rows = metrics(tmp_path / "run")
    assert sum(int(row["skipped_updates"]) for row in rows) >= 5 and rows[0]["grad_norm"] == "nan"
    assert f"step {len(rows)}: an update was skipped" in said.out
    assert torch.equal(weights(tmp_path / "run"), before)
    assert (tmp_path / "run" / "nonfinite.jsonl").read_text().count("\n") == len(groups_of(tmp_path / "run"))


@pytest.mark.parametrize("flags", [[], ["--plain"]])
def test_weights_gone_astray_are_one_clear_line(tiny_folder, tmp_path, capsys, monkeypatch, flags):
    collect = train.collect

    def broken(run, *batch):
        run.policy.model.lm_head.weight.data.fill_(float("nan"))
        return collect(run, *batch)

    monkeypatch.setattr(train, "collect", broken)
    with pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "run", *flags)
    assert "the policy's logits are not finite. There is no checkpoint yet" in capsys.readouterr().err


def values(run, name):
    """What is trained, or one part of AdamW's state of it."""
    found = [p for p in run.policy.model.parameters() if p.requires_grad]
    return [p.data if name == "weights" else run.optimizer.state[p][name] for p in found]


HARM = {
    "a weight is NaN": lambda run: values(run, "weights")[3].view(-1)[5:6].fill_(float("nan")),
    "all weights are infinite": lambda run: [x.fill_(float("inf")) for x in values(run, "weights")],
    "only the logits are": lambda run: run.policy.model.lm_head.weight.data.fill_(3e38),
    "exp_avg is NaN": lambda run: values(run, "exp_avg")[-1].fill_(float("nan")),
    "exp_avg_sq is infinite": lambda run: values(run, "exp_avg_sq")[0].fill_(float("inf")),
}


@pytest.mark.parametrize("harm", HARM)
def test_nothing_that_is_not_finite_replaces_a_good_checkpoint(tiny_folder, tmp_path, monkeypatch, capsys, harm):
    out, step = tmp_path / "run", train.optimizer_step

    def harmful(run, loss):
        done = step(run, loss)
        if run.step == 1:
            HARM[harm](run)
        return done

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train, "optimizer_step", harmful)
        run(tiny_folder, out, "--save-every", "1", steps=9)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "not finite: nothing is saved. The checkpoint is of step 1, and good" in error
    run(tiny_folder, tmp_path / "one", steps=1)
    assert (out / "checkpoint" / "step").read_text() == "1" and torch.equal(weights(out), weights(tmp_path / "one"))
    assert f"--init-from {out}" in error
    lower = ["--method", "dagrpo", "--steps", "1", "--lr", "1e-9", "--out", str(tmp_path / "lower"), "--init-from"]
    train.main([*lower, str(out), "--batch-prompts", "2", "--group-size", "2", "--show-every", "0"])


def test_the_rate_is_the_flags_and_not_the_checkpoints(tiny_folder, tmp_path):
    whole = run(tiny_folder, tmp_path / "whole", steps=2)
    run(tiny_folder, tmp_path / "run", steps=1)
    path = tmp_path / "run" / "checkpoint" / "trainer.pt"
    trainer = torch.load(path)
    trainer["optimizer"]["param_groups"][0] |= {"lr": 1e-9, "weight_decay": 0.5, "maximize": True}
    torch.save(trainer, path)
    assert run(tiny_folder, tmp_path / "run", "--resume", steps=2) == whole
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


ROWS = [{"question": f"{n}+{n}=", "answer": str(2 * n), "demo": f"{n}+{n}={2 * n};#{2 * n}"} for n in range(10, 20)]
OTHER_DATA = {
    "fewer rows": (ROWS[:9], "problems was 10, is 9"),
    "another order": (ROWS[::-1], "content was"),
    "another question": ([ROWS[0] | {"question": "20="}, *ROWS[1:]], "content was"),
    "another answer": ([ROWS[0] | {"answer": "21"}, *ROWS[1:]], "anchors was"),
    "another demonstration": ([ROWS[0] | {"demo": "#20"}, *ROWS[1:]], "content was"),
}


@pytest.mark.parametrize("case", OTHER_DATA)
def test_other_data_is_another_run(tiny_folder, tmp_path, capsys, case):
    rows, message = OTHER_DATA[case]
    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    columns = ["--question-column", "question", "--answer-column", "answer", "--demo-column", "demo"]
    flags = ["--data", str(data), "--instruction", "", *columns]

    def write(rows):
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(ROWS)
    run(tiny_folder, out, *flags, steps=1)
    write(rows)
    with pytest.raises(SystemExit) as stop:
        run(tiny_folder, out, *flags, "--resume", steps=2)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert len(metrics(out)) == 1
    write(ROWS)
    assert len(run(tiny_folder, out, *flags, "--resume", steps=2)) == 2


def test_another_runs_checkpoint_is_not_gone_on_from(tiny_folder, tmp_path, capsys):
    for name, seed in {"run": "0", "other": "1"}.items():
        run(tiny_folder, tmp_path / name, "--seed", seed, steps=1)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    shutil.copytree(tmp_path / "other" / "checkpoint", tmp_path / "run" / "checkpoint")
    with pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "run", "--seed", "0", "--resume")
    assert "checkpoint: --seed was 1, is 0" in capsys.readouterr().err


CHANGED = {
    "another rate": (["--lr", "2e-3"], "--lr was 0.001, is 0.002"),
    "another method": (["--method", "dr_grpo"], "--method was dagrpo, is dr_grpo"),
    "another delta and seed": (["--delta", "1", "--seed", "5"], "--seed was 0, is 5; --delta was 3.0, is 1.0"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_resumed_run_with_other_flags_is_refused_and_goes_on_with_its_own(tiny_folder, tmp_path, capsys, case):
    flags, message = CHANGED[case]
    run(tiny_folder, tmp_path / "run", steps=1)
    with pytest.raises(SystemExit) as stop:
        run(tiny_folder, tmp_path / "run", "--resume", *flags, steps=2)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and f"--init-from {tmp_path / 'run'}" in err
    assert len(metrics(tmp_path / "run")) == 1
    assert len(run(tiny_folder, tmp_path / "run", "--resume", steps=2)) == 2


def masks_all(groups):
    return replace(groups, keep=torch.zeros_like(groups.keep))


def test_an_experiment_is_applied_recorded_and_not_lost_on_resume(tiny_folder, tmp_path, capsys):
    (row,) = run(tiny_folder, tmp_path / "run", steps=1, change=masks_all)
    assert row["kept_fraction"] == "0" and row["grad_norm"] == "0"
    assert not any(any(group["keep"]) for group in groups_of(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["experiment"] == "masks_all"
    with pytest.raises(SystemExit) as stop:
        run(tiny_folder, tmp_path / "run", "--resume")
    assert stop.value.code == 2 and "experiment was masks_all, is " in capsys.readouterr().err
    assert len(metrics(tmp_path / "run")) == 1
    rows = run(tiny_folder, tmp_path / "run", "--resume", change=masks_all)
    assert [row["grad_norm"] for row in rows] == ["0", "0"]


def test_flags_that_change_no_result_may_change_on_resume(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", steps=1)
    free = ["--save-every", "7", "--keep", "2", "--show-every", "9"]
    assert len(run(tiny_folder, tmp_path / "run", "--resume", *free, steps=2)) == 2


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


BAD = {
    "unknown method": (["--method", "gorpo"], "gorpo"),
    "no out folder possible": (["--out", "{file}/below/it"], "cannot be made"),
    "holds a run": (["--out", "{run}"], "--resume goes on with it, --overwrite replaces it"),
    "group of one": (["--group-size", "1"], "--group-size must be at least 2"),
    "negative delta": (["--delta", "-0.5"], "--delta must be at least 0"),
    "delta not a number": (["--delta", "nan"], "--delta must be a finite number, not nan"),
    "rate not finite": (["--lr", "inf"], "--lr must be a finite number, not inf"),
    "demonstrations too long": (["--max-new-tokens", "20"], "do not fit into --max-new-tokens 20"),
    "uneven updates": (["--updates-per-batch", "3"], "must be a multiple of --updates-per-batch 3"),
    "unknown flag": (["--groupsize", "3"], "--groupsize"),
    "unknown level": (["--levels", "1,9"], "no level 9"),
    "no such model": (["--model", "/nowhere/at/all"], "holds no model"),
    "rate of zero": (["--lr", "0"], "--lr must be above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_overwrites_nothing(tiny_folder, tmp_path, capsys, case):
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("precious")
    flags, message = BAD[case]
    flags = [flag.format(file=tmp_path / "file", run=tmp_path / "run") for flag in flags]
    defaults = {"--method": "dagrpo", "--out": str(tmp_path / "new"), "--model": str(tiny_folder)}
    given = [x for name, value in defaults.items() if name not in flags for x in (name, value)]
    with pytest.raises(SystemExit) as stop:
        train.main([*given, *flags])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.count("\n") == 1 and err.startswith("error: ") and message in err
    assert (tmp_path / "run" / "metrics.csv").read_text() == "precious"
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize("flag", ["--model", "--init-from", "--judge-model"])
def test_a_damaged_model_is_named(tiny_folder, tmp_path, capsys, flag):
    damaged = shutil.copytree(tiny_folder, tmp_path / "damaged")
    (damaged / "model.safetensors").write_text("{")
    begin = [] if flag != "--judge-model" else ["--model", str(tiny_folder), "--scorer", "local"]
    with pytest.raises(SystemExit) as stop:
        train.main(["--method", "dagrpo", "--out", str(tmp_path / "run"), *begin, flag, str(damaged)])
    error = capsys.readouterr().err.strip().splitlines()[-1]

    assert stop.value.code == 2 and error.startswith(f"error: {damaged} cannot be loaded: ")


def test_overwrite_replaces_a_run_and_touches_nothing_else(tiny_folder, tmp_path):
    out = tmp_path / "run"
    run(tiny_folder, out, steps=3)
    (out / "notes.txt").write_text("mine")
    assert len(run(tiny_folder, out, "--overwrite", steps=1)) == 1
    assert (out / "notes.txt").read_text() == "mine" and len(groups_of(out)) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the same command with --resume"),
        ({"overwrite": True}, "the same command with --resume instead of --overwrite"),
        ({"resume": True}, "the same command again"),
    ],
)
def test_how_to_continue_is_a_command_that_works(given, said):
    config = SimpleNamespace(**{"resume": False, "overwrite": False} | given)
    assert Session.same_command.fget(SimpleNamespace(config=config)) == said

"""session.py: a run goes on where it was, another run is refused, and bad input is one line."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import groups_of, metrics, run, weights

import train
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


def test_a_choice_that_recipes_did_not_have_yet_is_no_change_and_another_one_is_named(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    run(tiny_folder, out, steps=1)
    config = json.loads((out / "config.json").read_text())
    del config["recipe"]["soft_mask"]
    for path in (out / "config.json", out / "checkpoint" / "config.json"):
        path.write_text(json.dumps(config))
    assert len(run(tiny_folder, out, "--resume", steps=2)) == 2
    config["recipe"]["entropy_bonus"] = 0.5
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        run(tiny_folder, out, "--resume", steps=3)
    assert "recipe.entropy_bonus was 0.5, is 0.0" in capsys.readouterr().err


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

"""--report: what the libraries' own readers find of a run."""

import importlib
import math

import pytest
from helpers import run
from judge_server import wait_for

from harness.boards import board, figures


def test_what_cannot_be_drawn_is_left_out():
    row = {"step": 3, "reward": 0.5, "kept": None, "norm": math.nan, "loss": math.inf, "responses": 8}
    assert figures(row) == {"reward": 0.5, "responses": 8.0}


def test_without_a_board_nothing_is_written(tmp_path):
    with board(None, tmp_path, {}, 0) as report:
        report({"step": 1, "reward": 0.5})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_library_is_one_line(kind, tmp_path, monkeypatch, capsys):
    def gone(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(SystemExit), board(kind, tmp_path, {}, 0):
        pass
    assert f"--report {kind} needs the package {kind}" in capsys.readouterr().err


@pytest.mark.extra
def test_tensorboard_has_every_step_once_also_after_resuming(tiny_folder, tmp_path, even_is_right):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ["--report", "tensorboard"]
    run(tiny_folder, tmp_path / "run", *flags, "--save-every", "1", steps=2)
    rows = run(tiny_folder, tmp_path / "run", *flags, "--resume", steps=3)
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = events.Scalars("reward")
    assert [event.step for event in shown] == [1, 2, 3]
    assert [event.value for event in shown] == pytest.approx([float(row["reward"]) for row in rows], rel=1e-5)


@pytest.mark.extra
def test_tensorboard_replaces_steps_that_a_killed_run_had_not_saved(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step, rewards in ((0, {1: 0.1, 2: 0.2, 3: 0.3}), (1, {2: 0.6})):  # killed after 3; saved after 1
        with board("tensorboard", tmp_path, {}, step) as report:
            for n, reward in rewards.items():
                report({"step": n, "reward": reward})
    shown = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("reward")
    assert [(event.step, round(event.value, 3)) for event in shown] == [(1, 0.1), (2, 0.6)]


@pytest.mark.extra
def test_wandb_offline_needs_no_account(tiny_folder, tmp_path, monkeypatch, even_is_right):
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run(tiny_folder, tmp_path / "run", "--report", "wandb", steps=2)
    (saved,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    wait_for(lambda: b"grad_norm" in saved.read_bytes(), 60)  # another process writes it, later on a busy machine
    assert b"grad_norm" in saved.read_bytes()

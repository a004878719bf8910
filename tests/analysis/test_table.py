"""analysis.table on run folders made here: costs, the best, seeds, and evaluations that differ."""

import csv
import math

import pytest
from helpers_curves import SFT, make_run, nothing, write_eval

from analysis import table


def printed(capsys, *argv):
    """The printed rows by method, split at double spaces, with the header's."""
    table.main([str(arg) for arg in argv])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:] if len(row) == len(rows[0])}


def test_table_adds_costs_and_stars_the_best(tmp_path, capsys):
    cost = {"responses": lambda step: 100 + step, "rollout_seconds": lambda _: 1.5, "train_seconds": lambda _: 0.5}
    a = make_run(tmp_path / "a", accuracy=0.6, **cost)
    b = make_run(tmp_path / "b", method="sft", accuracy=0.5, **(SFT | {"rollout_seconds": nothing}))
    write_eval(tmp_path / "start.json", 0.2)
    rows = printed(capsys, a, b, "--baseline", f"{tmp_path / 'start.json'}:warm start")
    assert list(rows) == ["warm start", "dagrpo", "sft"]
    assert [rows["dagrpo"][name] for name in ("steps", "responses", "seconds")] == ["6", "621", "12"]
    assert [rows["sft"][name] for name in ("steps", "responses", "seconds")] == ["6", "0", "2"]
    assert [rows["warm start"][name] for name in ("steps", "responses", "seconds", "level 5")] == ["-"] * 3 + ["0.250"]
    assert [rows["dagrpo"][name] for name in ("level 1", "mean", "ood-long")] == ["0.610*", "0.630*", "0.300*"]
    assert rows["sft"]["mean"] == "0.530" and rows["sft"]["ood mean"] == "0.125"
    assert rows["sft"]["ood-large"] == rows["dagrpo"]["ood-large"] == "0.000*"  # a draw


def test_table_is_aligned(tmp_path, capsys):
    table.main([str(make_run(tmp_path / "a")), str(make_run(tmp_path / "b", method="sft", accuracy=0.3))])
    head, first, second = capsys.readouterr().out.splitlines()[:3]
    assert [i for i, c in enumerate(first) if c == "."] == [i for i, c in enumerate(second) if c == "."]
    assert first.index("0.510") + len("0.510") == head.index("level 1") + len("level 1")


def test_table_takes_the_mean_over_seeds(tmp_path, capsys):
    runs = [make_run(tmp_path / str(s), seed=s, accuracy=0.4 + 0.1 * s) for s in range(3)]
    rows = printed(capsys, *runs, make_run(tmp_path / "g", method="grpo"), "--csv", tmp_path / "t.csv")
    assert rows["dagrpo"]["seeds"] == "3" and rows["dagrpo"]["level 1"] == f"0.510 +-{4.303 * 0.1 / math.sqrt(3):.3f}*"
    assert rows["grpo"]["level 1"] == "0.510*"
    with (tmp_path / "t.csv").open() as file:
        first, second = csv.DictReader(file)
    assert float(first["mean"]) == pytest.approx(0.53)
    assert float(first["mean half-width"]) == pytest.approx(0.2484, abs=1e-4)
    assert second["mean half-width"] == "" and second["seeds"] == "1"


def test_table_warns_where_evaluations_differ(tmp_path, capsys):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", method="grpo")]
    table.main(list(map(str, runs)))
    assert "Careful" not in capsys.readouterr().out
    write_eval(runs[1] / "eval.json", 0.5, problems=25)
    table.main(list(map(str, runs)))
    out = capsys.readouterr().out
    assert "Careful" in out and "25 problems a level" in out and "+-0.20" in out

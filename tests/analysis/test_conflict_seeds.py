"""analysis.conflict_seeds: which policies are asked, what is kept of each, and C7's figure in the claims."""

import pandas as pd
import pytest

from analysis.conflict_points import ConflictPoint
from analysis.experiments import claims, conflict_seeds, grid
from analysis.experiments.conflict_seeds import ALL, METHODS, NAMES, SEEDS, START, STEPS, WITHIN, SeedPoint
from analysis.saved import write_rows


def made(value=lambda method, step, seed, name: 0.1 * (seed - SEEDS[0])):
    policies = [(START, 0), *((method, step) for method in METHODS for step in STEPS)]
    return [
        SeedPoint(m, step, seed, name, value(m, step, seed, name))
        for m, step in policies
        for seed in SEEDS
        for name in NAMES
    ]


def test_every_policy_is_measured_once_and_what_is_done_is_skipped(tmp_path, monkeypatch):
    asked = []

    def fake(command, out):
        asked.append(command[command.index("--model") + 1])
        out.mkdir(parents=True)
        rows = [(panel, "m", setup, "all", name, None, len(asked) / 100) for panel, setup, name in NAMES.values()]
        rows.append(("net", "m", "rollouts", "1", "none", None, 7.0))
        write_rows([ConflictPoint(*row, 0.0, 0.0, 9) for row in rows], out / "conflict.csv")
        (out / "conflict.txt").touch()

    places = {key: tmp_path / f"{i}" for i, key in enumerate(conflict_seeds.policies(tmp_path))}
    assert len(places) == len(SEEDS) * (1 + len(METHODS) * len(STEPS))
    monkeypatch.setattr(conflict_seeds, "policies", lambda root: places)
    monkeypatch.setattr(conflict_seeds, "call", fake)
    with pytest.raises(SystemExit):
        conflict_seeds.measure(tmp_path, workers=1)  # the runs are not there
    for place in places.values():
        place.mkdir()
    conflict_seeds.measure(tmp_path, workers=1)
    conflict_seeds.measure(tmp_path, workers=1)
    assert sorted(asked) == sorted(map(str, places.values()))
    points = conflict_seeds.gather(tmp_path)
    assert len(points) == len(places) * len(NAMES) and (points["value"] < 1).all(), "of all levels, not of one"


def test_the_folders_are_those_that_the_experiments_leave(tmp_path):
    found, run = conflict_seeds.policies(tmp_path), tmp_path / "guess" / "main" / "dagrpo" / "seed7"
    assert found["dagrpo", 50, 7] == run / "checkpoint-50" and found["dagrpo", 150, 7] == run
    assert set(STEPS) == {50, 100, grid.STEPS}


def test_table_and_figure_are_drawn_again_from_the_csv(tmp_path, capsys):
    write_rows(made(), tmp_path / "conflict_seeds.csv")
    conflict_seeds.main(["--from-csv", str(tmp_path / "conflict_seeds.csv")])
    out = capsys.readouterr().out
    assert out.count("| +0.200 [+0.004, +0.396] |") > 9, "the mean of 0, 0.1 ... 0.4, and its t-interval"
    assert "| +0.000 [+0.000, +0.000] |" in out, "the mask's change is paired"
    assert (tmp_path / "conflict_seeds.png").stat().st_size > 10_000


def test_c7_is_minus_the_mean_correlation_of_training(tmp_path):
    def value(method, step, seed, name):
        return (
            {WITHIN: -0.2 - 0.1 * (step == STEPS[0]) - 0.01 * (seed - SEEDS[0]), ALL: 5.0}.get(name, 0.0)
            if method == "dr_grpo"
            else 9.0
        )

    write_rows(made(value), tmp_path / "conflict_seeds.csv")
    row = {"world": "guess", "stage": "main", "label": "dr_grpo", "method": "dr_grpo"}
    row |= {"no_signal_groups mean": 4.0, "kept_fraction mean": 0.5}
    runs = pd.DataFrame([row | {"seed": seed, "accuracy": 0.5} for seed in range(10)])
    pd.concat([runs, runs.assign(world="plain")]).to_csv(tmp_path / "runs.csv", index=False)
    runs = claims.read(tmp_path)
    assert runs[claims.LEARNED].tolist() == [0.375] * 20, "3 of 4 groups, half of their rows"
    (c7,) = (claim for claim in claims.CLAIMS if claim.name == "C7")
    found = claims.answer(c7, runs[runs["world"] == "guess"], "guess")
    assert found.seeds == 5 and found.mean == pytest.approx(0.2 + 0.1 / 3 + 0.02)
    assert "| guess | C7 pairs of like score conflict | dr_grpo | 5 | +0.253 [" in claims.claims_table(runs)
    assert claims.answer(c7, runs[runs["world"] == "plain"], "plain") is None
    (tmp_path / "conflict_seeds.csv").unlink()  # no file, no figure, no error
    assert claims.answer(c7, claims.read(tmp_path), "guess") is None

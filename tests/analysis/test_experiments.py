"""analysis.experiments and analysis.claims: the grid is what is written down, and the claims' arithmetic is right."""

import json
import math
import random

import pandas as pd
import pytest
from scipy import stats

from analysis import run_folders
from analysis.experiments import claims, controls, grid
from analysis.experiments.claims import Answer, Claim, answer, difference, holm, verdict
from harness.config import parse
from harness.warm_start import WarmStart, warm_start_folder

RATES = dict.fromkeys((*grid.CLAIMED, *grid.FEWER, *grid.OTHERS), "1e-4")


def test_the_grid_has_the_seeds_that_were_written_down():
    jobs = grid.grid(RATES)
    assert len({job.name for job in jobs}) == len(jobs)

    def seeds(stage, label):
        return [job.seed for job in jobs if (job.stage, job.label) == (stage, label)]

    for method in ("grpo", "dr_grpo", "dagrpo_on", "dagrpo"):
        assert seeds("main", method) == list(range(15))
    assert seeds("main", "luffy") == seeds("main", "sft") == seeds("after_sft", "sft then dr_grpo") == list(range(5))
    assert all(seeds("others", method) == [0, 1, 2] for method in ("dapo", "gspo", "cispo", "rloo", "gtpo"))
    assert not set(grid.SWEEP_SEEDS) & {job.seed for job in jobs if not job.is_sweep}


def test_every_job_is_flags_that_train_takes_and_only_the_named_things_differ():
    for job in grid.grid(RATES):
        control, train, evaluate = json.loads(grid.command(job, grid.Path("/root"))[-1])
        args = parse(train)
        if control:
            controls.check(control.partition("=")[0], args)
        assert (args.steps, args.batch_prompts, args.seed) == (grid.STEPS, 8, job.seed)
        assert args.init_from == str(f"/root/{job.after}/seed{job.seed}" if job.after else grid.start_of(job.seed))
        assert ("validation" in evaluate) == job.is_sweep


def test_the_best_rate_is_the_one_with_the_best_mean_of_a_whole_sweep(tmp_path):
    for job in grid.grid({}):
        if job.stage == "sweep" and (job.method, job.seed) != ("grpo", 101):
            accuracy = {"3e-4": 0.3, "1e-3": 0.2}.get(job.flags[1], 0.1)
            levels = {"validation": {"levels": [{"greedy": {"accuracy": accuracy}}]}}
            (tmp_path / job.name).mkdir(parents=True)
            (tmp_path / job.name / "eval.json").write_text(json.dumps({"benchmarks": levels}))
    rates = grid.best_rates(tmp_path)
    assert rates["dagrpo"] == rates["sft"] == "3e-4"
    assert "grpo" not in rates and "dapo" not in rates, "a sweep that is not whole decides nothing"


def test_a_stage_before_its_sweep_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        grid.main(["--root", str(tmp_path), "--stages", "main", "--out", str(tmp_path)])
    assert "run the stage sweep first" in capsys.readouterr().err


def test_an_experiment_runs_is_skipped_when_done_and_is_collected(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "STEPS", 2)
    small = ["--steps", "2", "--batch-prompts", "2", "--group-size", "4", "--show-every", "0"]
    monkeypatch.setattr(grid, "SETTINGS", small)
    monkeypatch.setattr(grid, "start_of", lambda seed: tiny_folder)
    evaluate = (
        "import sys, eval; eval.main(['--model', sys.argv[3], '--k', '0', '--per-level', '2', '--out', sys.argv[2]])"
    )
    monkeypatch.setattr(grid, "START", evaluate.replace("sys.argv[3]", repr(str(tiny_folder))))
    job = grid.Job("main", "grpo", "grpo", 0, ("--lr", "1e-4"))
    control = grid.Job("main", "random mask", "dagrpo_on", 0, ("--lr", "1e-4"), control="random_mask")
    monkeypatch.setattr(grid, "grid", lambda rates: [job, control])
    monkeypatch.setattr(grid, "PROGRAM", grid.PROGRAM.replace("eval.main(b)", "eval.main([*b, '--per-level', '2'])"))
    grid.run_stage([job, control], tmp_path / "runs", workers=1)
    assert grid.collect(tmp_path / "runs", tmp_path / "out") == 3, "the runs, and the warm start"
    for one in (job, control):
        assert json.loads((tmp_path / "runs" / one.name / "config.json").read_text())["experiment"] == one.control
    runs = claims.read(tmp_path / "out" / "runs.csv").set_index("label")
    assert runs.loc["grpo", "responses"] == 2 * 2 * 4 and runs.loc["grpo", "mean"] >= 0
    assert runs.loc["warm start", "mean"] >= 0 and math.isnan(runs.loc["warm start", "responses"])
    monkeypatch.setattr(grid, "run", lambda *_: pytest.fail("it is done"))
    grid.run_stage([job, control], tmp_path / "runs", workers=1)


def test_every_seed_has_a_warm_start_of_its_own_that_is_made_before_its_runs(tmp_path, monkeypatch):
    assert grid.start_of(0) == warm_start_folder(WarmStart()) != grid.start_of(1)
    monkeypatch.setattr(grid, "start_of", lambda seed: tmp_path / str(seed))
    (tmp_path / "starts" / "seed1").mkdir(parents=True)
    (tmp_path / "starts" / "seed1" / "eval.json").touch()
    order = []
    monkeypatch.setattr(grid, "make_start", lambda seed, root: order.append(("start", seed)))
    monkeypatch.setattr(grid, "run", lambda job, root: order.append((job.label, job.seed)))
    jobs = [grid.Job("main", label, "grpo", seed) for label in ("a", "b") for seed in (2, 1)]
    grid.run_stage(jobs, tmp_path, workers=1)
    assert order == [("start", 2), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_seeds_with_a_warm_start_each_are_one_method(tmp_path):
    (tmp_path / "warm_start.json").touch()
    assert run_folders.origin(str(tmp_path)) == ""
    assert run_folders.origin(str(tmp_path / "a_model")) == " after a_model"


def test_a_run_that_fails_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "start_of", lambda seed: tmp_path)
    job = grid.Job("main", "grpo", "no such method", 0)
    with pytest.raises(SystemExit):
        grid.run_stage([job], tmp_path, workers=1)
    assert "invalid choice" in capsys.readouterr().out


ACCURACY = Claim("C1", "", ("a", "b"), difference("mean"), 0.02, "accuracy")


def runs_of(figures, **more):
    """A row for each label, seed and accuracy of `figures`."""
    rows = [(label, seed, mean) for label, by_seed in figures.items() for seed, mean in by_seed.items()]
    return pd.DataFrame(rows, columns=["label", "seed", "mean"]).assign(**more)


def test_an_answer_is_the_paired_t_test():
    rng = random.Random(0)
    a, b = [rng.gauss(0.6, 0.1) for _ in range(15)], [rng.gauss(0.5, 0.1) for _ in range(15)]
    found, known = answer(ACCURACY, runs_of({"a": dict(enumerate(a)), "b": dict(enumerate(b))})), stats.ttest_rel(a, b)
    assert found.p == pytest.approx(known.pvalue)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(known.confidence_interval()))


@pytest.mark.filterwarnings("error")
def test_effects_without_spread_have_a_p_too():
    assert answer(ACCURACY, runs_of({"a": {0: 0.5, 1: 0.75}, "b": {0: 0.5, 1: 0.75}})).p == 1
    same = answer(ACCURACY, runs_of({"a": {0: 0.5, 1: 0.75}, "b": {0: 0.25, 1: 0.5}}))
    assert (same.mean, same.half, same.p) == (0.25, 0, 0)


def test_pairs_are_of_the_seeds_that_both_have():
    runs = runs_of({"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {1: 0.5, 0: 0.0}})
    assert (answer(ACCURACY, runs).seeds, answer(ACCURACY, runs).mean) == (2, 1.25)
    assert answer(ACCURACY, runs[runs["label"] == "a"]) is None


def test_decades_are_powers_of_ten_and_0_has_none():
    one, other = [1.0, 10.0, 0.0, 1.0, math.nan], [100.0, 1.0, 1.0, 0.0, 1.0]
    found = claims.decades_below("x")(*(pd.DataFrame({"x": values}) for values in (one, other)))
    assert found.dropna().tolist() == [2, -1]


def test_methods_are_ranked_by_their_difference_to_the_baseline_at_the_same_seeds():
    """b has the higher mean, but from better starts: at the seeds that it shares with dr_grpo it is worse than a."""

    start = {seed: 0.1 * seed for seed in range(6)}
    figures = {
        "dr_grpo": start,
        "a": {seed: x + 0.05 for seed, x in start.items()},
        "b": {seed: start[seed] + 0.01 for seed in (3, 4, 5)},
        "two seeds": {0: 1.0, 1: 1.0},
    }
    runs = runs_of(figures, responses=9.0)
    runs = runs.assign(**dict.fromkeys([*claims.LEVELS, "ood mean"], runs["mean"]))
    lines = claims.means_table(runs).splitlines()
    assert lines[3].startswith("| a | 6 | 9 | **0.300** |") and lines[4].startswith("| b | 3 | 9 | *0.410* |")
    assert lines[3].endswith("| +0.050 [+0.050, +0.050] | +0.050 [+0.050, +0.050] |")
    assert len(lines) == 5, "labels with fewer than three seeds are left out"


def test_holm_is_the_textbooks():
    ps = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(ps, 4) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.01}, 7) == pytest.approx({"a": 0.07})


@pytest.mark.parametrize(
    ("mean", "half", "p", "told"),
    [
        (0.05, 0.02, 0.01, "holds"),
        (0.05, 0.02, 0.20, "undecided"),  # Holm took it away
        (0.01, 0.05, 0.90, "undecided"),
        (0.00, 0.01, 0.90, "does not hold"),
        (-0.05, 0.02, 0.01, "does not hold"),
    ],
)
def test_verdicts(mean, half, p, told):
    assert verdict([Answer(ACCURACY, 15, mean, half, p)], p) == told


def test_a_claim_of_two_parts_holds_only_if_both_do():
    good, bad = Answer(ACCURACY, 15, 0.05, 0.01, 0.001), Answer(ACCURACY, 15, -0.05, 0.01, 0.001)
    assert verdict([good, good], 0.001) == "holds" and verdict([good, bad], 0.001) == "does not hold"


def test_hard_more_than_easy_by_hand():
    one = pd.DataFrame([(0.5, 0.5, 0.9, 0.6, 0.4)], columns=claims.LEVELS)
    other = pd.DataFrame([(0.4, 0.5, 0.0, 0.3, 0.3)], columns=claims.LEVELS)
    assert claims.hard_more_than_easy(one, other).tolist() == pytest.approx([(0.3 + 0.1 - 0.1 - 0.0) / 2])


@pytest.mark.parametrize("text", ["", "nonsense\n", "stage,label,method,seed,mean\nmain,grpo,grpo,x,1\n"])
def test_a_damaged_table_is_one_line(tmp_path, capsys, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(SystemExit):
        claims.main(["--runs", str(path)])
    assert capsys.readouterr().err.count("\n") == 1

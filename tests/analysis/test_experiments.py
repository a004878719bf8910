"""analysis.experiments and analysis.claims: the grid is what is written down, and the claims' arithmetic is right."""

import json
import math
import random
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

import tasks
from analysis import run_folders
from analysis.experiments import claims, controls, grid, outcomes, worlds
from analysis.experiments.claims import Answer, Claim, answer, difference, holm, verdict
from harness.config import parse
from harness.warm_start import WarmStart, warm_start_folder

RATES = dict.fromkeys(grid.METHODS, "1e-4")


def test_the_grid_has_the_seeds_that_were_written_down():
    for world in grid.WORLDS:
        jobs = grid.grid(world, RATES)
        assert len({job.name for job in jobs}) == len(jobs)
        seeds = {}
        for job in jobs:
            seeds.setdefault((job.stage, job.label), []).append(job.seed)
        of_claims = {label: there for (stage, label), there in seeds.items() if stage in ("main", "controls")}
        assert len(of_claims) == 9 and all(there == list(range(10)) for there in of_claims.values())
        assert len([1 for stage, _ in seeds if stage in ("guessable", "noise")]) == (12 if world == "guess" else 0)
        assert not any(job.seed == grid.SWEEP_SEED for job in jobs if not job.is_sweep)


def test_where_rates_differ_dr_grpo_also_has_that_of_dagrpo_on():
    def flags(rates):
        return {job.flags for job in grid.grid("plain", rates) if job.label == "dr_grpo at 3e-5"}

    assert flags(RATES | {"dagrpo_on": "3e-5"}) == {("--lr", "3e-5")} and not flags(RATES)
    assert not flags({"dagrpo_on": "3e-5"}), "while the sweep of dr_grpo is not whole"


def test_the_map_compares_methods_of_one_rate():
    runs = pd.DataFrame({"world": ["guess", "guess", "plain"], "label": ["dr_grpo", "dr_grpo at 3e-5", "dr_grpo"]})
    points = [point for panel in worlds.map_points(runs).values() for point in panel]
    assert {point[1:] for point in points if point[3].startswith("dr_grpo at")} == {
        ("guess", label, "dr_grpo at 3e-5") for label in ("dagrpo_on", *(f"dagrpo_on, noise {n}" for n in "1234"))
    }
    assert (0.0, "plain", "dagrpo_on", "dr_grpo") in points


def test_the_map_names_the_places_where_the_reward_is_surely_higher():
    gaps = {"dagrpo_on": (0.1, 0.11), "dagrpo_on, noise 1": (0.3, -0.1), "dr_grpo": (0.0, 0.0)}
    rows = [("guess", label, seed, gap) for label, two in gaps.items() for seed, gap in enumerate(two)]
    runs = pd.DataFrame(rows, columns=["world", "label", "seed", "reward mean"]).assign(**{"ood mean": 0.5})
    message = worlds.draw_map(runs).get_suptitle()
    assert "a bare guess is right: 0.33; likewise, if the last digit decides: nowhere; standard" in message
    assert message.endswith("the noise on S: 0")


def test_every_job_is_flags_that_train_takes_and_only_the_named_things_differ():
    for world in grid.WORLDS:
        for job in grid.grid(world, RATES):
            control, train, evaluate = json.loads(grid.command(job, Path("/root"))[-1])
            args = parse(train)
            if control:
                controls.check(control.partition("=")[0], args)
            steps = 75 if "75" in job.label else grid.STEPS
            assert (args.steps, args.batch_prompts, args.seed, args.world) == (steps, 16, job.seed, job.world)
            start = grid.start_of(job.world, job.seed)
            assert not job.after or (("75" in job.after) == ("75" in job.label) and "/sft" in job.after)
            assert args.init_from == str(f"/root/{world}/{job.after}/seed{job.seed}" if job.after else start)
            assert ("validation" in evaluate) == job.is_sweep and job.world in evaluate


@pytest.mark.parametrize("world", grid.WORLDS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_there_are_as_many_problems_as_the_grid_asks_for(world, split):
    _, levels, _, count = grid.problems_of(world, split == "validation")
    asked = {level: tasks.WORLDS[world].levels[level] for level in levels.split(",")}
    assert len(tasks.arithmetic(split, int(count), levels=asked)) == int(count) * len(asked)


def test_the_best_rate_is_the_one_with_the_best_accuracy_of_a_whole_sweep(tmp_path):
    rows = [
        {"world": world, "label": f"{method} {rate}", "method": method, "lr": rate, "seed": 100, "validation": accuracy}
        for world, better in (("guess", "1e-5"), ("plain", "3e-5"))
        for method in grid.METHODS
        for rate in grid.RATES
        if (method, rate) != ("grpo", "1e-4")
        for accuracy in [0.3 if rate == better else 0.1]
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "sweep.csv", index=False)
    rates = grid.best_rates("guess", tmp_path)
    assert rates["dagrpo"] == rates["sft"] == "1e-5" and grid.best_rates("plain", tmp_path)["sft"] == "3e-5"
    assert "grpo" not in rates, "a sweep that is not whole decides nothing"
    assert grid.best_rates("unseen", tmp_path) == {}


def test_a_stage_before_its_sweep_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        grid.main(["--root", str(tmp_path), "--stages", "main", "--out", str(tmp_path)])
    assert "run the stage sweep first" in capsys.readouterr().err


def test_an_experiment_runs_is_collected_and_is_not_run_again(tiny_folder, tmp_path, monkeypatch):
    small = ["--steps", "2", "--batch-prompts", "2", "--group-size", "4", "--show-every", "0"]
    monkeypatch.setattr(grid, "SETTINGS", small)
    monkeypatch.setattr(grid, "start_of", lambda world, seed: tiny_folder)
    start = grid.START.replace("warm_start(of_world(world, seed))", repr(str(tiny_folder)))
    monkeypatch.setattr(grid, "START", start)
    monkeypatch.setattr(grid, "problems_of", lambda world, validation=False: ["--levels", "5", "--per-level", "2"])
    rate = ("--lr", "1e-4")
    job = grid.Job("guess", "main", "grpo", "grpo", 0, rate)
    after = grid.Job("guess", "main", "grpo again", "grpo", 0, rate, after="main/grpo")
    control = grid.Job("guess", "controls", "random mask", "dagrpo_on", 0, rate, control="random_mask")
    swept = grid.Job("guess", "sweep", "grpo 1e-4", "grpo", 100, rate)
    jobs, root, out = [after, job, control, swept], tmp_path / "runs", tmp_path / "out"
    grid.run_stage(jobs, root, workers=1)
    assert outcomes.collect([job], root, tmp_path / "one") == 2, "also where there is no sweep"
    assert outcomes.collect(jobs, root, out) == 5, "the runs, and the warm start"
    for one in (job, control):
        assert json.loads((root / one.name / "config.json").read_text())["experiment"] == one.control
    assert json.loads((root / after.name / "config.json").read_text())["init_from"] == str(root / job.name)
    runs = claims.read(out).set_index("label")
    assert (
        runs.loc["grpo", "responses"] == 2 * 2 * 4 and 0 <= runs.loc["grpo", "accuracy"] == runs.loc["grpo", "level 5"]
    )
    assert runs.loc["warm start", "ood mean"] >= 0 and math.isnan(runs.loc["warm start", "responses"])
    curves = outcomes.read_rows(out / "curves.csv")
    assert curves["step"].tolist() == [10] * 3 and curves["reward"].between(0, 1).all()
    before = (out / "runs.csv").read_text().replace("warm start,warm start,0,", "warm start,warm start,0,1e-9")
    (out / "runs.csv").write_text(before)
    assert outcomes.collect(jobs, root, out) == 5 and (out / "runs.csv").read_text() == before, "what is there stays"
    assert outcomes.missing(jobs, out) == [], "also where the run's folder is on another machine"


def test_lucky_is_the_share_of_right_responses_without_a_step(tmp_path):
    groups = [(1, ["#1", "1+1=2;#2", "#1", "#1"], [1, 1, 0, 1], [False, False, False, True]), (1, ["#4"], [1], [False])]
    names = ("step", "responses", "R", "is_anchor")
    lines = [json.dumps(dict(zip(names, group, strict=True))) for group in groups]
    (tmp_path / "rollouts.jsonl").write_text("\n".join(lines) + "\n")
    assert outcomes.lucky(tmp_path).to_dict() == {1: pytest.approx(2 / 3)}


def test_every_seed_has_a_warm_start_of_its_own_that_is_made_before_its_runs(tmp_path, monkeypatch):
    assert grid.start_of("plain", 0) == warm_start_folder(WarmStart()) != grid.start_of("plain", 1)
    assert grid.start_of("guess", 0) != grid.start_of("plain", 0)
    done = outcomes.start_result("guess", 1, tmp_path)
    done.mkdir(parents=True)
    (done / "eval.json").touch()
    order = []
    monkeypatch.setattr(grid, "make_start", lambda world, seed, root: order.append(("start", seed)))
    monkeypatch.setattr(grid, "run", lambda job, root: order.append((job.label, job.seed)))
    jobs = [grid.Job("guess", "main", label, "grpo", seed) for label in ("a", "b") for seed in (2, 1)]
    grid.run_stage([grid.Job("guess", "main", "c", "grpo", 1, after="main/a"), *jobs], tmp_path, workers=1)
    assert order == [("start", 2), ("a", 1), ("b", 1), ("a", 2), ("b", 2), ("c", 1)]


def test_seeds_with_a_warm_start_each_are_one_method(tmp_path):
    (tmp_path / "warm_start.json").touch()
    assert run_folders.origin(str(tmp_path)) == ""
    assert run_folders.origin(str(tmp_path / "a_model")) == " after a_model"


def test_a_run_that_fails_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "start_of", lambda world, seed: tmp_path)
    job = grid.Job("plain", "main", "grpo", "no such method", 0)
    with pytest.raises(SystemExit):
        grid.run_stage([job], tmp_path, workers=1)
    assert "there is no such method" in capsys.readouterr().out


ACCURACY = Claim("C1", "", ("a", "b"), difference("accuracy"), 0.02, "accuracy")


def runs_of(figures, **more):
    """A row for each label, seed and accuracy of `figures`."""
    rows = [(label, seed, mean) for label, by_seed in figures.items() for seed, mean in by_seed.items()]
    return pd.DataFrame(rows, columns=["label", "seed", "accuracy"]).assign(**more)


def test_an_answer_is_the_paired_t_test():
    rng = random.Random(0)
    a, b = [rng.gauss(0.6, 0.1) for _ in range(15)], [rng.gauss(0.5, 0.1) for _ in range(15)]
    found, known = (
        answer(ACCURACY, runs_of({"a": dict(enumerate(a)), "b": dict(enumerate(b))}), "guess"),
        stats.ttest_rel(a, b),
    )
    assert found.p == pytest.approx(known.pvalue)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(known.confidence_interval()))


@pytest.mark.filterwarnings("error")
def test_effects_without_spread_have_a_p_too():
    assert answer(ACCURACY, runs_of({"a": {0: 0.5, 1: 0.75}, "b": {0: 0.5, 1: 0.75}}), "").p == 1
    same = answer(ACCURACY, runs_of({"a": {0: 0.5, 1: 0.75}, "b": {0: 0.25, 1: 0.5}}), "")
    assert (same.mean, same.half, same.p) == (0.25, 0, 0)


def test_pairs_are_of_the_seeds_that_both_have():
    runs = runs_of({"a": {0: 1.0, 1: 2.0, 2: 9.0}, "b": {1: 0.5, 0: 0.0}})
    found = answer(ACCURACY, runs, "")
    assert (found.seeds, found.mean) == (2, 1.25)
    assert answer(ACCURACY, runs[runs["label"] == "a"], "") is None


def test_decades_are_powers_of_ten_and_0_has_none():
    one, other = [1.0, 10.0, 0.0, 1.0, math.nan], [100.0, 1.0, 1.0, 0.0, 1.0]
    found = claims.decades_below("x")(*(pd.DataFrame({"x": values}) for values in (one, other)))
    assert found.dropna().tolist() == [2, -1]


def test_tables_pair_by_seed_and_correct_over_the_claims_of_all_worlds():
    """The second method has the lower mean, but begins from worse starts: where both have a seed it is ahead."""
    figures = {"dr_grpo": {0: 0.1, 1: 0.2, 2: 0.9}, "dagrpo_on": {0: 0.2, 1: 0.31}}
    runs = runs_of(figures, responses=9.0, world="guess").reindex(
        columns=list(dict.fromkeys([*RUN, *claims.LEVELS, claims.C7]))
    )
    runs["reward mean"] = runs["accuracy"]
    lines = claims.means_table(runs).splitlines()
    assert lines[3].startswith("| dagrpo_on | 2 | 0.255 |") and lines[3].count("+0.105 [") == 1
    assert lines[2].endswith("|  |  |") and "level" not in lines[0]
    assert "| level 4 | level 5 |" in claims.means_table(runs.assign(**{"level 4": 0.5})).splitlines()[0]
    runs = pd.concat([runs, runs.assign(world="plain")])
    table = claims.claims_table(runs).splitlines()
    p = claims.answer(claims.CLAIMS[0], runs[runs["world"] == "plain"], "plain").p
    assert f"| {21 * p:.3f} |" in table[2] and table[2].startswith("| guess | C1")
    assert table[3].startswith("| plain | C1") and len(table) == 4
    further = claims.questions_table(claims.FURTHER, runs, "plain")
    assert (
        f"| the mask: sooner | dagrpo_on - dr_grpo | 2 | +0.105 [+0.041, +0.169] reward, mean of the run | {p:.3f} |"
        in further
    )


RUN = ["world", "label", "seed", "accuracy", "responses", *claims.COLUMNS]
RUN = list(dict.fromkeys(RUN))


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
    assert verdict([Answer(ACCURACY, "guess", 15, mean, half, p)], p) == told


def test_a_claim_of_two_parts_holds_only_if_both_do():
    good, bad = Answer(ACCURACY, "guess", 15, 0.05, 0.01, 0.001), Answer(ACCURACY, "guess", 15, -0.05, 0.01, 0.001)
    assert verdict([good, good], 0.001) == "holds" and verdict([good, bad], 0.001) == "does not hold"


def test_hard_more_than_easy_by_hand():
    one = pd.DataFrame([(0.5, 0.5, 0.9, 0.6, 0.4)], columns=claims.LEVELS)
    other = pd.DataFrame([(0.4, 0.5, 0.0, 0.3, 0.3)], columns=claims.LEVELS)
    assert claims.hard_more_than_easy(one, other).tolist() == pytest.approx([(0.3 + 0.1 - 0.1 - 0.0) / 2])


@pytest.mark.parametrize("text", ["", "nonsense\n", "world,stage,label,method,seed\nguess,main,grpo,grpo,x\n"])
def test_a_damaged_table_is_one_line(tmp_path, capsys, text):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(SystemExit):
        claims.main(["--results", str(tmp_path)])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_worlds_title_says_where_its_methods_end():
    ends = [("a", 10, 1.0), ("a", 20, 0.2), ("a", 20, 0.4), ("b", 20, 0.1)]
    rows = pd.DataFrame(ends, columns=["label", "step", "lucky"])
    said = worlds.at_the_end(rows, ("a", "b", "not there"), "lucky")
    assert said == "lucky: share of right responses without a step at the end: a 0.30, b 0.10"


def test_bands_of_the_reward_are_without_what_methods_of_a_seed_have_in_common():
    rewards = {("a", 0): 0.1, ("b", 0): 0.3, ("a", 1): 0.5, ("b", 1): 0.9, ("a", 2): 0.7}  # nothing of b, seed 2
    rows = pd.DataFrame(
        [(*of, 10, reward) for of, reward in rewards.items()], columns=["label", "seed", "step", "reward"]
    )
    found = worlds.within_seeds(rows)  # seed 0 has 0.2 in common, seed 1 0.7; both have 0.45
    off = 0.05 * 2**0.5  # 0.35 and 0.25 around 0.3, 0.55 and 0.65 around 0.6; then Morey's correction for two methods
    assert found["reward"].tolist() == pytest.approx([0.3 + off, 0.6 - off, 0.3 - off, 0.6 + off])
    assert found.groupby("label")["reward"].mean().tolist() == pytest.approx([0.3, 0.6]), "as before, of seeds 0 and 1"

"""analysis.scorers: corruptions are what they say, the correlation is Spearman's, and the command line."""

import csv
import math
import random

import pytest

import scoring
from analysis.experiments import scorers
from analysis.experiments.scorers import (
    CARRIED,
    DROPPED,
    KINDS,
    SWAPPED,
    WRONG,
    build_cases,
    correlations,
    corrupt,
    measure,
)
from analysis.stats import spearman
from judges.prompt import JudgeDown
from tasks import arithmetic, solve

CASES = build_cases(per_level=3, seed=0)
PROBLEMS = arithmetic("test", per_level=5)


def test_corruptions_worked_by_hand():
    problem = solve("12+5-3=", "3")
    wrong = {corrupt(problem, WRONG, "right", 1, random.Random(seed)) for seed in range(200)}
    results = {f"12+5={17 + i};17-3=14;#14" for i in range(1, 10)} | {
        f"12+5=17;17-3={14 + i};#14" for i in range(1, 10)
    }
    assert wrong == results
    carried = {corrupt(problem, CARRIED, "follows", 1, random.Random(seed)) for seed in range(200)}
    late = {f"12+5=17;17-3={14 + i};#{14 + i}" for i in range(1, 10)}
    assert carried == late | {f"12+5={17 + i};{17 + i}-3={14 + i};#{14 + i}" for i in range(1, 10)}
    dropped = {corrupt(problem, DROPPED, "right", 1, random.Random(seed)) for seed in range(20)}
    assert dropped == {"12+5=17;#14", "17-3=14;#14"}
    assert corrupt(problem, SWAPPED, "right", 2, random.Random(0)) == "17+5=12;14-3=17;#14"


@pytest.mark.parametrize(("kind", "answer"), KINDS)
def test_k_steps_are_corrupted_and_the_answer_is_as_said(kind, answer):
    for problem in PROBLEMS:
        own = scoring.steps(problem.demo)
        for k in range(len(own) + 1):
            response = corrupt(problem, kind, answer, k, random.Random(k))
            said = scoring.steps(response)
            assert len(said) == len(own) - (k if kind == DROPPED else 0)
            assert sum(not scoring.holds(step) for step in said) == (0 if kind == DROPPED else k)
            assert scoring.verify(response, problem.answer) == (answer == "right" or (answer == "follows" and k == 0))
            if k == 0 and answer != "wrong":
                assert response == problem.demo


def test_the_cases_are_the_same_every_time_and_balanced():
    assert build_cases(per_level=3, seed=0) == CASES != build_cases(per_level=3, seed=1)
    counts = [sum((case.kind, case.answer) == kind for case in CASES) for kind in KINDS]
    assert counts == [3 * (3 + 4 + 5)] * len(KINDS)  # levels 3, 4, 5 have 2, 3, 4 steps, so 3, 4, 5 values of k


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3], [1, 10, 100], 1.0),  # ranks, not values
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),  # with a tie: ranks 1, 2, 3.5, 5, 3.5
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.0),
    ],
)
def test_spearman_by_hand(a, b, wanted):
    assert spearman(a, b) == pytest.approx(wanted)


@pytest.mark.filterwarnings("error")
def test_without_spread_there_is_no_correlation():
    assert math.isnan(spearman([1, 2, 3], [7, 7, 7])) and math.isnan(spearman([], []))


def test_a_scorer_that_counts_corrupted_steps_is_perfect_and_nan_is_left_out():
    by_pair = {(case.problem, case.response): case.corrupted for case in CASES}
    cases = [case for case in CASES if case.kind == SWAPPED]

    def counts(pairs):
        return [-float(by_pair[pair]) for pair in pairs]

    def counts_some(pairs):
        return [math.nan if i % 2 else value for i, value in enumerate(counts(pairs))]

    rows = measure(cases, {"exact": counts, "half": counts_some, "none": lambda pairs: [math.nan] * len(pairs)})
    total = rows.set_index("corruption").loc["all"]
    assert total["exact"] == pytest.approx(-1) and total["half"] == pytest.approx(-1) and math.isnan(total["none"])
    assert total["half missing"] == len(cases) // 2 and total["none missing"] == total["cases"] == len(cases)
    assert "exact missing" not in total


def test_the_rules_order_responses_and_the_reward_alone_does_not():
    rows = measure(
        build_cases(10, 0), {"rule": scoring.rule_scores, "R": scorers.reward_only, "maths": scorers.rule_of_maths}
    )
    kinds, total = rows[:-1], rows.iloc[-1]
    assert (kinds["rule"] < -0.85).all() and (kinds["maths"] < -0.7).all()
    assert (kinds["R"].isna() == (kinds["corruption"] != CARRIED)).all()
    assert total["rule"] < total["maths"] < total["R"] < 0
    assert correlations(rows).count("\n") == len(rows) + 1 and "-0.9" in correlations(rows)


def test_the_command_line(tmp_path, capsys):
    scorers.main(["--per-level", "2", "--csv", str(tmp_path / "t.csv")])
    shown = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert len(rows) == len(KINDS) + 1 == len(shown) - 2
    assert [float(row["rule"]) < -0.8 for row in rows[:-1]] == [True] * len(KINDS)
    assert all(row["cases"] in line for row, line in zip(rows, shown[1:], strict=False))


def test_the_local_judge_has_the_model_that_the_flag_names(tiny, tiny_folder, monkeypatch, capsys):
    def local_judge(policy, counters):
        assert policy.model.num_parameters() == tiny.model.num_parameters()
        return scoring.rule_scores

    monkeypatch.setattr(scorers, "local_judge", local_judge)
    scorers.main(["--per-level", "1", "--judge-model", str(tiny_folder)])
    assert "local judge" in capsys.readouterr().out


def test_the_http_judge_is_asked_for_every_case(monkeypatch, capsys):
    asked = []

    def http_judge(endpoint, counters):
        assert (endpoint.base_url, endpoint.model) == ("http://localhost:1/v1", "m")
        return lambda pairs: asked.extend(pairs) or scoring.rule_scores(pairs)

    monkeypatch.setattr(scorers, "http_judge", http_judge)
    scorers.main(["--per-level", "1", "--judge-url", "http://localhost:1/v1", "--judge-name", "m"])
    assert "HTTP judge" in capsys.readouterr().out and len(asked) == len(build_cases(1, 0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--per-level", "0"], "from 1 to 1000"),
        (["--per-level", "1000000"], "from 1 to 1000"),
        (["--judge-url", "http://localhost:1/v1"], "go together"),
        (["--judge-model", "no/such/folder/at/all"], "no/such/folder/at/all"),
        (["--csv", "/dev/null/t.csv"], "cannot be written"),
        (["--what"], "--what"),
    ],
)
def test_bad_input_gets_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        scorers.main(["--per-level", "1", *flags])
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert end.value.code == 2 and len(err) == 1 and message in err[0]


def test_a_judge_that_is_down_gets_one_line(monkeypatch, capsys):
    def http_judge(endpoint, counters):
        def scorer(pairs):
            raise JudgeDown("the judge is down")

        return scorer

    monkeypatch.setattr(scorers, "http_judge", http_judge)
    with pytest.raises(SystemExit) as end:
        scorers.main(["--per-level", "1", "--judge-url", "http://localhost:1/v1", "--judge-name", "m"])
    assert end.value.code == 2 and "the judge is down" in capsys.readouterr().err

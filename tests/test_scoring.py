"""The rule scorer of Eq. 7, on the built-in task and on real maths."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import scoring
from maths import verifier
from maths.equations import equations
from scoring import holds, rule_scores, score, steps, verify
from tasks import OOD_LEVELS, Problem, arithmetic, direct, solve

many = settings(deadline=None, max_examples=200)
PROBLEMS = arithmetic("train", per_level=8) + arithmetic("test", per_level=8, levels=OOD_LEVELS)
problems = st.sampled_from(PROBLEMS)


def test_the_reward_is_the_verifiers():
    assert scoring.verify is verifier.verify


# ---------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ("", []),
        ("#14", []),
        ("12+5=17;17-3=14;#14", ["12+5=17", "17-3=14"]),
        ("12+5=17;17-3", ["12+5=17", "17-3"]),  # cut off before the mark
        (";;12+5=17;;#14", ["12+5=17"]),
        ("1+1=2;#2;2+2=4;#4", ["1+1=2", "#2", "2+2=4"]),
    ],
)
def test_steps_stand_before_the_last_mark(response, wanted):
    assert steps(response) == wanted


@pytest.mark.parametrize("step", ["12+5=17", "17-3=14", "3-10=-7", "-7+9=2", "0-0=0", "012+5=17", "7-0=7"])
def test_a_right_sum_or_difference_holds(step):
    assert holds(step)


@pytest.mark.parametrize(
    "step",
    ["", "=", "12+5", "12+5=", "12+5=18", "17-3=-14", "12+5=17=17", "12+5+1=18", "6*2=12", " 12+5=17", "12+5=17\n"],
)
def test_everything_else_does_not_hold(step):
    assert not holds(step)


# ---------------------------------------------------------------------------------------- the score, Eq. 7


def score_by_integers(response, problem):
    """S = 1 + 9 (0.4 right + 0.3 valid + 0.3 complete), to the nearest half, a quarter going up; no float, no Fraction.

    With n steps of which h hold, and m of w wanted ones there: 2S = 2 + 18 (4 right + 3 h/n + 3 m/w) / 10.
    """
    before, mark, _ = response.rpartition("#")
    said = [s for s in (before if mark else response).split(";") if s]
    wanted = problem.demo.split(";")[:-1]
    right = 1 if verify(response, problem.answer) else 0
    h = 0
    for step in said:
        left, equals, result = step.partition("=")
        sign = "+" if "+" in left else "-"
        x, _, y = left.partition(sign)
        if x.isdigit() and y.isdigit() and result.isdigit() and equals:
            h += int(result) == (int(x) + int(y) if sign == "+" else int(x) - int(y))
    m, left_over = 0, list(said)
    for step in wanted:
        if step in left_over:
            left_over.remove(step)
            m += 1
    n, w = max(len(said), 1), len(wanted)
    over = 10 * n * w
    twice = 2 * over + 18 * (4 * right * n * w + 3 * h * w + 3 * m * n)  # 2S * over
    return (2 * twice + over) // (2 * over) / 2


@st.composite
def responses(draw, problem):
    """Some of the demonstration's steps, in any order and number, others, and an answer or none."""
    own = problem.demo.split(";")[:-1]
    wrong = [f"{step}0" for step in own] + ["1+1=3", "12+5", "hm", ""]
    other = ["1+1=2", "30-7=23"]
    said = draw(st.lists(st.sampled_from(own + own + wrong + other), max_size=7))
    final = draw(st.sampled_from(["#" + problem.answer, "#" + problem.answer, "#0", "#", problem.answer, ""]))
    return ";".join([*said, final])


with_response = problems.flatmap(lambda problem: st.tuples(st.just(problem), responses(problem)))


@many
@given(pair=with_response)
def test_the_score_is_its_formula(pair):
    problem, response = pair
    assert score(response, problem) == score_by_integers(response, problem)


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ("12+5=17;17-3=14;#14", 10.0),  # 1 + 9 * (0.4 + 0.3 + 0.3)
        ("#14", 4.5),  # 1 + 9 * 0.4 = 4.6
        ("", 1.0),
        ("#9", 1.0),
        ("12+5=17;17-3=14", 10.0),  # no mark, so the last number is the answer
        ("12+5=17;17-3=", 3.5),  # cut off: 1 + 9 * (0.15 + 0.15) = 3.7
        ("12+5=17;17-3=14;#9", 6.5),
        ("12+5=17;17-3=15;#15", 3.5),  # 1 + 9 * (0.15 + 0.15) = 3.7
        ("12+5=17;17-3=15;#14", 7.5),  # 1 + 9 * (0.4 + 0.15 + 0.15) = 7.3
        ("12+5=17;#14", 8.5),  # what is said is valid, half is missing: 1 + 9 * (0.4 + 0.3 + 0.15) = 8.65
        ("5+12=17;17-3=14;#14", 8.5),  # likewise: 5+12=17 is valid and not the step wanted
    ],
)
def test_scores_worked_by_hand(response, wanted):
    assert score(response, solve("12+5-3=", "2")) == wanted


@many
@given(pair=with_response, anything=st.text(alphabet="0123456789+-=;# x", max_size=30))
def test_a_score_is_a_half_from_1_to_10(pair, anything):
    problem, response = pair
    for text in (response, anything):
        assert 1 <= score(text, problem) <= 10
        assert score(text, problem) * 2 % 1 == 0


def test_the_demonstration_scores_10_and_the_bare_answer_does_not():
    for problem in PROBLEMS:
        assert score(problem.demo, problem) == 10
        assert score(direct(problem), problem) == 4.5


def test_a_demonstration_without_steps_asks_for_the_answer_alone():
    problem = Problem("?", "14", "#14", "x")
    assert 10 >= score("#14", problem) > score("#15", problem) == 1.0


@many
@given(pair=with_response, data=st.data())
def test_corrupting_a_step_never_raises_the_score(pair, data):
    problem, response = pair
    assume("#" in response)  # without it, a wrong result at the end may be the answer by accident
    said = response.split(";")
    good = [i for i, step in enumerate(said) if holds(step)]
    assume(good)
    i = data.draw(st.sampled_from(good))
    left, result = said[i].split("=")
    said[i] = f"{left}={int(result) + data.draw(st.integers(-50, 50).filter(bool))}"
    assert score(";".join(said), problem) <= score(response, problem)


def test_corrupting_a_step_of_the_demonstration_lowers_the_score():
    for problem in PROBLEMS:
        first, rest = problem.demo.split(";", 1)
        assert score(f"{first}0;{rest}", problem) < 10


def test_a_step_said_twice_counts_once():
    """1 + 9 * (0.3 valid + 0.15 complete) = 5.05, rounded to 5: the second 12+5=17 is not the missing 17-3=14."""
    problem = solve("12+5-3=", "2")
    assert score("12+5=17;#9", problem) == score("12+5=17;12+5=17;#9", problem) == 5.0


def test_a_step_that_the_demonstration_says_twice_is_wanted_twice():
    problem = solve("5+3-3+3=", "4")  # 5+3=8 comes twice among three steps
    assert score("5+3=8;8-3=5;#8", problem) == 9.0  # 1 + 9 * (0.4 + 0.3 + 0.3 * 2/3) = 9.1
    assert score("5+3=8;8-3=5;5+3=8;#8", problem) == 10


def test_an_unreadable_gold_answer_has_no_score():
    with pytest.raises(ValueError, match="cannot be read"):
        score("#14", replace(PROBLEMS[0], answer=""))


# ---------------------------------------------------------------------------------------- real maths

DEMO = "Six boxes hold 6 * 4 = 24 eggs. 24 - 3 = <<24-3=21>>21 are left, 21 / 2 = $10.50 for each.\n#### 10.50"
EGGS = Problem("What does each get?", "10.50", DEMO, "")  # results 24, 21, 10.5


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        (DEMO, 10.0),
        ("#### 10.5", 5.5),  # 1 + 9 * (0.4 + 0.3 / 3) = 5.5
        ("", 1.0),
        ("I do not know.", 1.0),
        (r"4 * 6 = 24, 24 - 3 = 21, 21 / 2 = 10.5: \boxed{10.5}", 10.0),  # in another order, by other words
        (r"4 * 6 = 24, 24 - 3 = 21, 21 / 2 = 10.5: \boxed{10}", 6.5),  # 1 + 9 * 0.6 = 6.4
        (r"4 * 6 = 25, 25 - 3 = 22, 22 / 2 = 11: \boxed{11}", 3.0),  # 1 + 9 * 0.3 * 2/3 = 2.8
        (r"1 + 1 = 2. \boxed{10.5}", 8.0),  # 1 + 9 * (0.4 + 0.3 + 0.3 / 3) = 8.2
        (r"24 eggs, then 21: \boxed{7}", 3.0),  # no equation, two of three results: 1 + 9 * 0.2 = 2.8
        (r"1 + 1 = 3 and 1 + 1 = 3. \boxed{7}", 1.0),
        (r"1 + 1 = 2 and 1 + 1 = 3. \boxed{7}", 2.5),  # 1 + 9 * 0.15 = 2.35
    ],
)
def test_scores_of_real_maths_worked_by_hand(response, wanted):
    assert score(response, EGGS) == wanted


@pytest.mark.parametrize("demo", ["", "See the figure, so x = 5.", "It is #5"])
def test_without_results_in_the_demonstration_the_answer_is_all_that_can_be_complete(demo):
    problem = Problem("?", "5", demo, "")
    assert score("2 + 3 = 5", problem) == 10
    assert score("5", problem) == 7.5  # 1 + 9 * 0.7 = 7.3
    assert score("2 + 2 = 4", problem) == 3.5  # 1 + 9 * 0.3 = 3.7


@many
@given(pair=with_response)
def test_a_demonstration_of_the_built_in_task_is_compared_step_by_step_and_any_other_by_its_results(pair):
    problem, response = pair
    in_words = replace(problem, demo=problem.demo.replace(";", "; "))
    assert 1 <= score(response, in_words) <= 10
    assert score(problem.demo, in_words) == 10
    assert score(problem.demo, problem) == 10


def test_a_step_by_other_words_is_one_on_real_maths_only():
    problem = solve("12+5-3=", "2")
    assert score("5+12=17;17-3=14;#14", problem) == 8.5
    assert score("5+12=17;17-3=14;#14", replace(problem, demo="12 + 5 = 17, 17 - 3 = 14")) == 10


def test_the_rule_in_the_form_of_all_scorers():
    pairs = [(problem, problem.demo) for problem in PROBLEMS] + [(EGGS, "#### 10.5")]
    assert rule_scores(pairs) == [10.0] * len(PROBLEMS) + [5.5]
    assert rule_scores([]) == []


# ---------------------------------------------------------------------------------------- real data


@pytest.mark.extra
def test_the_rule_on_gsm8k():
    """Its human solutions: nearly all their equations hold, each scores best for its own problem."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k_test.parquet"
    if not path.exists():
        pytest.skip("there is no gsm8k_test.parquet in ../shared/data")
    rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    found = [equation for row in rows for equation in equations(row["answer"])]
    share = sum(equation.true for equation in found) / len(found)
    print(f"{len(found)} equations in {len(rows)} solutions, {share:.3f} of them hold")
    assert len(found) > 2 * len(rows) and share > 0.99
    own_problems = [Problem(r["question"], r["answer"].rpartition("####")[2].strip(), r["answer"], "") for r in rows]
    own = rule_scores([(problem, problem.demo) for problem in own_problems])
    others = rule_scores([(problem, other.demo) for problem, other in pairwise(own_problems)])
    assert sum(s == 10 for s in own) / len(own) > 0.8 and min(own) >= 7.5
    assert sum(s <= 5 for s in others) / len(others) > 0.9

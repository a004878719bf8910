"""The reward R (`verify`), the fine-grained score S of Eq. 7 (`score`), and the examples in the docstrings."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scoring import holds, score, steps, verify
from tasks import OOD_LEVELS, Problem, arithmetic, direct, solve

many = settings(deadline=None, max_examples=200)
PROBLEMS = arithmetic("train", per_level=8) + arithmetic("test", per_level=8, levels=OOD_LEVELS)
problems = st.sampled_from(PROBLEMS)


# ---------------------------------------------------------------------------------------- the reward


@pytest.mark.parametrize(
    "response",
    ["#14", "12+5=17;17-3=14;#14", "#9;#14", "#014", "#000014", "# 14 ", "#14\n", "##14", "12+5=99;#14", "x#14"],
)
def test_the_number_behind_the_last_mark_is_the_answer(response):
    assert verify(response, "14")


@pytest.mark.parametrize(
    "response",
    [
        "",
        "#",
        "14",
        "12+5=17;17-3=14",
        "#14#",
        "#14;#9",
        "#14;",
        "#-14",
        "#+14",
        "#14.0",
        "#1 4",
        "#--14",
        "#14$",
        "#0x14",
    ],
)
def test_everything_else_is_wrong(response):
    assert not verify(response, "14")


@pytest.mark.parametrize("response", ["#-7", "#-07", "3-10=-7;# -7"])
def test_negative_answers(response):
    assert verify(response, "-7")
    assert not verify(response, "7")


@pytest.mark.parametrize("zero", ["0", "-0", "000", "-000"])
def test_zero_has_no_sign(zero):
    for other in ("0", "-0", "00"):
        assert verify(f"#{zero}", other)
        assert verify(f"#{other}", zero)
    assert not verify("#", zero)


def test_digit_strings_longer_than_int_takes_are_compared_as_they_are():
    huge = "9" * 6000
    assert verify(f"#{huge}", huge)
    assert verify(f"#00{huge}", huge)
    assert not verify(f"#{huge}9", huge)
    assert not verify(f"#-{huge}", huge)
    assert not verify(f"#{huge}", "14")
    assert score(f"{huge}+1={huge};#{huge}", PROBLEMS[0]) == 1.0


@pytest.mark.parametrize("digits", ["\uff11\uff14", "\u0661\u0664", "\u0967\u096a", "\xb9\u2074", "\u246d", "14\u0661"])
def test_digits_of_other_scripts_are_not_digits(digits):
    assert not verify(f"#{digits}", "14")
    assert not holds(f"{digits}+1=15")
    with pytest.raises(ValueError, match="not a whole number"):
        verify("#14", digits)


@pytest.mark.parametrize("gold", ["", " ", "-", "x", "14.0", "1/2", "1 4", "--14", "#14", "1e3", "½", "None"])
@pytest.mark.parametrize("response", ["", "#", "#14", "same"])
def test_an_unreadable_gold_answer_is_an_error_and_never_a_match(gold, response):
    with pytest.raises(ValueError, match="not a whole number"):
        verify(f"#{gold}" if response == "same" else response, gold)


@many
@given(response=st.text() | st.text(alphabet="##--0123 x\n\u0661", max_size=12), number=st.integers(-30, 30))
def test_any_text_gets_a_verdict(response, number):
    """Right: there is a #, and what stands behind the last one is the number, spelled in ASCII digits."""
    final = response.split("#")[-1].strip()
    wanted = "#" in response and final.isascii() and final.removeprefix("-").isdigit() and int(final) == number
    assert verify(response, str(number)) == wanted
    assert verify(f"{response}#{number}", str(number))


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
    before, mark, final = response.rpartition("#")
    said = [s for s in (before if mark else response).split(";") if s]
    wanted = problem.demo.split(";")[:-1]
    right = 1 if mark and final == problem.answer else 0
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
        ("12+5=17;17-3=14", 6.5),  # cut off before the answer: 1 + 9 * 0.6 = 6.4
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
    with pytest.raises(ValueError, match="not a whole number"):
        score("#14", replace(PROBLEMS[0], answer="?"))

"""data.py: every layout and file kind, the columns by flags, and the command."""

import json
import time
from decimal import Decimal

import pytest
from helpers import SHARED
from helpers_data import GSM8K, OPENR1, fails

from maths import data
from tasks import Problem

MATH = {
    "problem": "Half of $x=1$?",
    "level": "Level 2",
    "type": "Algebra",
    "solution": "$\\boxed{0.5}$",
    "answer": "0.5",
}

MATH_OF_THE_HUB = {name: value for name, value in MATH.items() if name != "answer"}
NUMINA = {
    "source": "cn_k12",
    "problem": "Half of $3$?",
    "solution": "It is \\[ \\boxed{\\frac{3}{2}} \\]",
    "messages": [],
}
SVAMP = {
    "ID": "chal-1",
    "Body": "Ann has 3 pens.",
    "Question": "How many?",
    "Equation": "3.0",
    "Answer": 3.0,
    "Type": "Sum",
}
ASDIV = {"body": "Ann has 3 pens.", "question": "How many?", "answer": "3 (pens)", "formula": "3"}


# ---------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (GSM8K, Problem("Two pens at $24?", "48", "They are 2*24=$48.\nNot a << mark.\n#### 48", "all")),
        (MATH, Problem("Half of $x=1$?", "0.5", "$\\boxed{0.5}$", "Level 2")),
        (OPENR1, Problem("1+1?", "2", "<think>easy</think> $\\boxed{2}$", "all")),
        (MATH_OF_THE_HUB, Problem("Half of $x=1$?", "0.5", "$\\boxed{0.5}$", "Level 2")),
        (NUMINA, Problem("Half of $3$?", "\\frac{3}{2}", "It is \\[ \\boxed{\\frac{3}{2}} \\]", "all")),
        (SVAMP, Problem("Ann has 3 pens. How many?", "3", "", "all")),
        (ASDIV, Problem("Ann has 3 pens. How many?", "3 (pens)", "", "all")),
    ],
)
def test_the_layouts_are_recognised_in_every_kind_of_file(write, name, row, problem):
    problems, report = data.load_problems(write([row, row], name))
    assert problems == [problem, problem]
    assert (report.rows, report.skipped.total()) == (2, 0)


@pytest.mark.parametrize("demo", [{}, {"solution": None}, {"solution": ""}])
def test_without_a_demonstration_it_is_empty(write, demo):
    problems, _ = data.load_problems(write([{"problem": "1+1?", "answer": "2", **demo}]))
    assert problems == [Problem("1+1?", "2", "", "all")]


def test_a_bare_answer_is_no_demonstration(write):
    problems, _ = data.load_problems(write([{"question": "1+1?", "answer": "2"}, GSM8K]))
    assert [bool(problem.demo) for problem in problems] == [False, True]


@pytest.mark.parametrize(
    ("answer", "text"),
    [(142.0, "142"), (0.5, "0.5"), (-7, "-7"), (10**400, "1" + 400 * "0"), (["3", "5"], "3, 5"), (" 025 ", "025")],
)
def test_answers_become_text(write, answer, text):
    assert data.load_problems(write([{"problem": "?", "answer": answer}]))[0][0].answer == text


def test_a_column_of_decimals_and_one_of_lists_are_read(write):
    rows = [{"question": "1?", "answer": Decimal("1.50")}, {"question": "2?", "answer": Decimal("2.00")}]
    assert [p.answer for p in data.load_problems(write(rows, "rows.parquet"))[0]] == ["1.50", "2.00"]
    rows = [{"question": "1?", "answer": [70]}, {"question": "2?", "answer": [1, 2]}]
    assert [p.answer for p in data.load_problems(write(rows, "lists.parquet"))[0]] == ["70", "1, 2"]


def test_a_boxed_answer_is_unwrapped_and_of_a_solution_the_last_box_counts(write):
    rows = [
        {"question": "1?", "answer": "\\boxed{5}"},
        {**NUMINA, "question": "2?", "answer": "\\boxed{4}, so \\fbox{9}"},
    ]
    assert [p.answer for p in data.load_problems(write(rows))[0]] == ["5", "9"]


@pytest.mark.parametrize(
    "gold", ["proof", "notfound", "N/A", "There is no such number, since n must be even and odd at once."]
)
def test_what_is_no_answer_is_skipped_and_counted(write, gold):
    problems, report = data.load_problems(write([MATH, {**MATH, "answer": gold}]))
    assert len(problems) == 1 and dict(report.skipped) == {"an answer that the verifier cannot read": 1}


def test_a_solution_without_a_box_is_no_answer(write):
    without = {
        **NUMINA,
        "solution": "Suppose not. Then the sum of all angles is larger than two right angles, which is absurd.",
    }
    problems, report = data.load_problems(write([NUMINA, without, {**NUMINA, "solution": "It is \\boxed{}."}]))
    assert len(problems) == 1 and report.skipped.total() == 2


def test_a_question_in_two_columns_and_a_column_that_is_left_out(write):
    rows = write([{"Body": "Ann has 3 pens.", "Question": "How many?", "Solution": "3"}])
    flags = {"question": "Body,Question", "answer": "Solution"}
    problems, report = data.load_problems(rows, **flags)
    assert problems[0].question == "Ann has 3 pens. How many?" and "not used" not in str(report)
    problems, report = data.load_problems(rows, **{**flags, "question": "Question"})
    assert problems[0].question == "How many?"
    assert "column Body is not used: if it belongs to the question, give --question-column Body,Question" in str(report)


def test_a_json_object_over_several_lines_is_named(write, capsys):
    said = fails(capsys, write(json.dumps(MATH, indent=1).encode(), "rows.jsonl"))
    assert "a JSON object over several lines: write a row on one line" in said


def test_of_a_conversation_the_last_message_of_the_role_counts(write):
    said = [("user", "1+1?"), ("assistant", "2"), ("user", "And 1+2?")]
    chat = [{"role": role, "content": text} for role, text in said]
    answer = [{"role": "assistant", "content": "3"}, {"role": "user", "content": "Thanks."}]
    row = {"prompt": chat, "target": answer, "reward_model": {"ground_truth": "3"}}
    assert data.load_problems(write([row]))[0] == [Problem("And 1+2?", "3", "3", "all")]


def test_only_the_last_marked_answer_counts(write):
    row = {"question": "?", "answer": "first #### 3\nno: #### 4 "}
    assert data.load_problems(write([row]))[0][0].answer == "4"


def test_lines_in_a_json_file_blank_lines_and_a_byte_order_mark(write):
    text = b"\xef\xbb\xbf" + json.dumps(MATH).encode() + b"\r\n\n" + json.dumps(MATH).encode()
    for name in ("rows.json", "rows.jsonl"):
        assert len(data.load_problems(write(text, name))[0]) == 2


def test_a_file_name_is_no_pattern(write):
    write([GSM8K], "a1.parquet")
    problems, _ = data.load_problems(write([MATH, MATH, MATH], "a[1]*.parquet"))
    assert [problem.answer for problem in problems] == ["0.5"] * 3


def test_levels_are_short_words_or_nothing(write):
    levels = ["x", 3, "", "a\nb", "a" * 41, None, True, 2.5, ["x"]]
    problems, _ = data.load_problems(write([{**MATH, "level": level} for level in levels]))
    assert [problem.level for problem in problems] == ["x", "3"] + ["all"] * 7


def test_a_column_of_many_values_is_no_level(write):
    rows = [{**MATH, "level": f"unit {i}"} for i in range(data.MOST_LEVELS + 1)]
    assert {p.level for p in data.load_problems(write(rows))[0]} == {"all"}
    assert len({p.level for p in data.load_problems(write(rows[1:]))[0]}) == data.MOST_LEVELS


def test_a_broken_first_row_does_not_decide_the_layout(write):
    odd = {"prompt": "?", "reward_model": {"ground_truth": "1"}}
    problems, report = data.load_problems(write([{"x": 1}, 5, odd, MATH, MATH]))
    assert len(problems) == 2 and report.layout.name == "MATH"


def test_limit_counts_usable_rows_and_stops_reading(write):
    problems, report = data.load_problems(write([{"problem": ""}, MATH, MATH, {"problem": ""}, MATH]), limit=2)
    assert len(problems) == 2 and (report.rows, report.skipped.total()) == (3, 1)


def test_the_instruction_stands_under_the_question():
    problem = Problem("1+1?", "2", "demo", "all")
    assert data.instruct([problem], "Box it.") == [Problem("1+1?\nBox it.", "2", "demo", "all")]
    assert data.instruct([problem], "") == [problem]


# ---------------------------------------------------------------------------------------- flags


ODD = {"q": "1+1?", "gold": {"value": "2"}, "steps": "so \\boxed{2}", "topic": "sums", "a.b": "3"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_flags_name_the_columns_of_any_layout(write, name):
    file = write([ODD], name)
    problems, _ = data.load_problems(file, question="q", answer="gold.value", demo="steps", level="topic")
    assert problems == [Problem("1+1?", "2", "so \\boxed{2}", "sums")]
    assert data.load_problems(file, question="q", answer="a.b")[0] == [Problem("1+1?", "3", "", "all")]


def test_a_flag_overrules_one_column_of_a_known_layout(write):
    row = {**MATH, "short": "It is 0.5."}
    assert data.load_problems(write([row]), demo="short")[0][0].demo == "It is 0.5."
    assert data.load_problems(write([row]), level="type")[0][0].level == "Algebra"


def test_question_and_answer_by_flag_take_no_demonstration_from_elsewhere(write):
    row = {**GSM8K, "final": "48"}
    assert data.load_problems(write([row]), question="question", answer="final")[0][0].demo == ""


@pytest.mark.parametrize("flags", [{}, {"question": "q"}, {"demo": "steps"}])
def test_an_unknown_layout_lists_columns_and_flags(write, capsys, flags):
    err = fails(capsys, write([ODD]), **flags)
    assert all(
        word in err for word in ("unknown", "q, gold, gold.value, steps, topic", "--question-column", "--answer")
    )


def test_a_flag_that_names_nothing_lists_the_columns(write, capsys):
    err = fails(capsys, write([ODD]), question="q", answer="gold.text")
    assert "--answer-column gold.text" in err and "gold.value" in err


# ---------------------------------------------------------------------------------------- the command


def test_the_command_shows_what_was_recognised(write, capsys):
    data.main([write([GSM8K, {**GSM8K, "answer": ""}, GSM8K]), "--show", "1"])
    out = capsys.readouterr().out
    assert "2 of 3 rows used; layout GSM8K" in out and "skipped 1: an empty answer, first row 2" in out
    assert "question from question, answer from answer, demo from answer" in out and "2 have a demonstration" in out
    assert out.count("Two pens") == 1 and "They are 2*24=$48." in out


def test_the_command_takes_columns_and_a_limit(write, capsys):
    data.main([write([ODD, ODD]), "--question-column", "q", "--answer-column", "gold.value", "--limit", "1"])
    assert "1 of 1 rows used; layout by flags" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        data.main([write([ODD]), "--limit", "0"])


@pytest.mark.extra
@pytest.mark.parametrize(("name", "rows"), [("gsm8k_train", 7473), ("gsm8k_test", 1319)])
def test_all_of_gsm8k_loads_in_seconds(name, rows):
    if not (SHARED / "data").is_dir():
        pytest.skip("there is no ../shared/data")
    begin = time.perf_counter()
    problems, report = data.load_problems(str(SHARED / "data" / f"{name}.parquet"))
    seconds = time.perf_counter() - begin
    print(f"{name}: {report} in {seconds:.1f} s")
    assert len(problems) == rows and not report.skipped and seconds < 30
    assert all(p.demo.rstrip().endswith(f"#### {p.answer}") and "<<" not in p.demo for p in problems)

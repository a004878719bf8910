"""data.py: every layout and file kind, flags, what is skipped of broken rows, what ends the program, and the hub."""

import json
import time
from decimal import Decimal
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maths import data
from tasks import Problem

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
GSM8K = {"question": "Two pens at $24?", "answer": "They are 2*24=$<<2*24=48>>48.\nNot a << mark.\n#### 48"}
MATH = {
    "problem": "Half of $x=1$?",
    "level": "Level 2",
    "type": "Algebra",
    "solution": "$\\boxed{0.5}$",
    "answer": "0.5",
}
OPENR1 = {
    "data_source": "openr1",
    "prompt": [{"role": "system", "content": "Think first."}, {"role": "user", "content": "1+1?"}],
    "target": [{"role": "assistant", "content": "<think>easy</think> $\\boxed{2}$"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0},
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


@pytest.fixture
def write(tmp_path):
    """Writes rows (or raw bytes) to a file and returns its name."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif name.endswith(".parquet"):
            datasets.Dataset.from_list(rows).to_parquet(path)
        else:
            text = "\n".join(json.dumps(row) for row in rows) if name.endswith(".jsonl") else json.dumps(rows, indent=1)
            path.write_text(text)
        return str(path)

    return write


def fails(capsys, *args, **flags):
    """The one line with which loading ends the program."""
    with pytest.raises(SystemExit) as stop:
        data.load_problems(*map(str, args), **flags)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


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


# ---------------------------------------------------------------------------------------- broken rows


GOOD = {"problem": "1+1?", "solution": "2", "answer": "2"}
BROKEN = [
    (5, "not a row with named columns"),
    (["problem", "answer"], "not a row with named columns"),
    (None, "not a row with named columns"),
    ({}, "no question"),
    ({"answer": "2"}, "no question"),
    ({**GOOD, "problem": None}, "no question"),
    ({**GOOD, "problem": " \n"}, "an empty question"),
    ({**GOOD, "problem": 5}, "a question of a wrong type"),
    ({**GOOD, "problem": {"text": "1+1?"}}, "a question of a wrong type"),
    ({**GOOD, "problem": []}, "a question of a wrong type"),
    ({**GOOD, "problem": [{"role": "assistant", "content": "no user"}]}, "a question of a wrong type"),
    ({**GOOD, "problem": [{"role": "user", "content": None}]}, "a question of a wrong type"),
    ({**GOOD, "problem": [{"role": "user", "content": "x"}, 3]}, "a question of a wrong type"),
    ({**GOOD, "problem": "1+1\0?"}, "a NUL character in the question"),
    ({**GOOD, "problem": "half a pair \ud83d"}, "broken Unicode in the question"),
    ({"problem": "1+1?"}, "no answer"),
    ({**GOOD, "answer": None}, "no answer"),
    ({**GOOD, "answer": ""}, "an empty answer"),
    ({**GOOD, "answer": "because #### "}, "an empty answer"),
    ({**GOOD, "answer": True}, "an answer of a wrong type"),
    ({**GOOD, "answer": float("nan")}, "an answer of a wrong type"),
    ({**GOOD, "answer": float("inf")}, "an answer of a wrong type"),
    ({**GOOD, "answer": []}, "an answer of a wrong type"),
    ({**GOOD, "answer": ["2", 3]}, "an answer of a wrong type"),
    ({**GOOD, "answer": {"value": 2}}, "an answer of a wrong type"),
    ({**GOOD, "answer": "2\ud83d"}, "broken Unicode in the answer"),
    ({**GOOD, "answer": "9" * 1001}, "an answer of more than 1,000 characters"),
    ({**GOOD, "answer": "no answer at all"}, "an answer that the verifier cannot read"),
    ({**GOOD, "solution": 7}, "a demonstration of a wrong type"),
    ({**GOOD, "solution": "2\0"}, "a NUL character in the demonstration"),
    ({**GOOD, "solution": "\udc00"}, "broken Unicode in the demonstration"),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN)
def test_a_broken_row_is_skipped_counted_and_quoted(write, monkeypatch, row, reason):
    monkeypatch.setattr(data, "readable", lambda answer: "no answer" not in answer)
    problems, report = data.load_problems(write([GOOD, row, {**GOOD, "problem": "3?"}, row]))
    assert [problem.question for problem in problems] == ["1+1?", "3?"]
    assert report.skipped == {reason: 2} and report.rows == 4
    assert report.first[reason].startswith("row 2")
    assert "2 of 4 rows used" in str(report) and f"skipped 2: {reason}, first row 2" in str(report)


def test_what_is_quoted_is_short_and_cannot_steer_a_terminal(write):
    hostile = "\x1b[2J\u202e\r\n\0" + "x" * 1_000_000
    _, report = data.load_problems(write([GOOD, {**GOOD, "problem": hostile}]))
    told = report.first["a NUL character in the question"]
    assert told.isprintable() and len(told) < 120 and "\\x1b[2J\\u202e\\r\\n\\x00xx" in told
    told.encode()


def test_odd_but_whole_texts_are_kept_as_they_are(write):
    texts = [
        "שלום \u202e 1+1?",
        "x" * 1_000_000,
        "\\boxed{" * 10_000,
        "9**9**9",
        "{" * 10_000,
        "../../etc/passwd",
        "😀",
    ]
    problems, report = data.load_problems(write([{**GOOD, "problem": text, "solution": text} for text in texts]))
    assert [problem.question for problem in problems] == texts == [problem.demo for problem in problems]
    assert not report.skipped


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "ground_truth", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
rows = st.dictionaries(st.sampled_from(["question", "answer", "level", "prompt", "target", "reward_model"]), values)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some=st.lists(values | rows, max_size=4))
def test_rows_of_anything_never_crash_it(monkeypatch, some):
    monkeypatch.setattr(data, "readable", lambda answer: True)
    for good in (GSM8K, OPENR1):
        problems, report = data.to_problems([*some, *[good] * 5], "fuzz")
        assert len(problems) + report.skipped.total() == len(some) + 5 == report.rows and len(problems) >= 5
        for problem in problems:
            assert problem.question.strip() and problem.answer.strip()
            "".join([problem.question, problem.answer, problem.demo, problem.level]).encode()
        assert str(report).replace("\n", "").isprintable()


# ---------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "a.jsonl", "holds no rows"),
        (b" \n\n", "a.json", "holds no rows"),
        (b"[]", "a.json", "holds no rows"),
        (b'{"problem": "1", "answer": "1"}\n{"problem": \n', "a.jsonl", "a.jsonl, line 2: not JSON"),
        (b'{"problem": "1", "answer": "1"}\n\n\n}', "a.json", "a.json, line 4: not JSON"),
        (b'[{"problem": "1",\n"answer": "1"},\n{"problem" 1}]', "a.json", "a.json, line 3: not JSON"),
        (b'{"problem": "\xff\xfe", "answer": "1"}', "a.jsonl", "line 1: not JSON that can be read"),
        (b"[" * 100_000, "a.jsonl", "line 1: not JSON"),
        (b"[" * 100_000, "a.json", "not JSON"),
        (b'{"problem": "1", "answer": ' + b"9" * 10_000 + b"}", "a.jsonl", "line 1: not JSON that can be read"),
        (b'{"problem": "1", "answer": "1"}', "a.parquet", "cannot be read as parquet"),
        (b"PAR1 and then nothing PAR1", "a.parquet", "cannot be read as parquet"),
        (b"", "a.parquet", "cannot be read as parquet"),
        (b"problem,answer\n1,1\n", "a.csv", "must end in .jsonl, .json, .parquet"),
        (b"x", "a", "must end in"),
        (
            b'{"problem": "", "answer": "1"}\n{"problem": ""}',
            "a.jsonl",
            "none of its 2 rows can be used; mostly: an empty",
        ),
        (b"5\n6\n", "a.jsonl", "columns found: none"),
    ],
)
def test_a_broken_file_gets_one_line(write, capsys, content, name, said):
    assert said in fails(capsys, write(content, name))


def test_a_cut_parquet_file_gets_one_line(write, capsys, caplog):
    whole = Path(write([GSM8K] * 100, "whole.parquet")).read_bytes()
    capsys.readouterr()  # a progress bar
    datasets.logging.set_verbosity_warning()
    assert "cannot be read as parquet" in fails(capsys, write(whole[: len(whole) // 2], "cut.parquet"))
    assert not caplog.records  # or datasets tells it a second time


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{tmp}", "is a folder"),
        ("{tmp}/none.jsonl", "there is no such file"),
        ("none.parquet", "there is no such file"),
        ("{tmp}/none", "a hub id has the form owner/name"),
        ("../../no/such", "a hub id has the form owner/name"),
        ("a/b/c", "a hub id has the form owner/name"),
        ("", "is a folder"),
        ("a" * 5000, "too long"),
        ("a\0b", "a\\x00b: there is no such file"),
    ],
)
def test_a_source_that_is_not_there_gets_one_line(tmp_path, capsys, source, said):
    assert said in fails(capsys, source.format(tmp=tmp_path))


# ---------------------------------------------------------------------------------------- the hub


@pytest.mark.parametrize(("source", "config"), [("openai/gsm8k:main", "main"), ("openai/gsm8k", None)])
def test_a_hub_id_is_read_through_datasets_and_runs_no_code(monkeypatch, source, config):
    calls = []

    def load_dataset(*args, **flags):
        calls.append((args, flags))
        return datasets.Dataset.from_list([GSM8K, GSM8K])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems, _ = data.load_problems(source, split="test")
    assert calls == [(("openai/gsm8k", config), {"split": "test"})]
    assert [problem.answer for problem in problems] == ["48", "48"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach the Hub\nbecause of many things"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist or is gated"),
        ValueError("Config name is missing.\nPlease pick one among ['main']"),
        RuntimeError("Dataset scripts are no longer supported"),
        KeyError("split"),
        OSError(),
    ],
)
def test_a_hub_that_does_not_answer_gets_one_line(monkeypatch, capsys, error):
    def load_dataset(*_args, **_flags):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    err = fails(capsys, "a/b")
    assert ("as in openai/gsm8k:main" in err) == ("Config" in str(error))
    assert "the hub cannot give it" in err and (not str(error) or str(error).split()[-1] in err)


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
    if not SHARED.is_dir():
        pytest.skip("there is no ../shared/data")
    begin = time.perf_counter()
    problems, report = data.load_problems(str(SHARED / f"{name}.parquet"))
    seconds = time.perf_counter() - begin
    print(f"{name}: {report} in {seconds:.1f} s")
    assert len(problems) == rows and not report.skipped and seconds < 30
    assert all(p.demo.rstrip().endswith(f"#### {p.answer}") and "<<" not in p.demo for p in problems)

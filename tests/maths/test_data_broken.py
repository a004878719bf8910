"""data.py: broken rows are skipped and counted, a file or source that cannot be read gets one line; and the hub."""

from pathlib import Path

import datasets
import pytest
from helpers_data import GSM8K, OPENR1, fails
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maths import data

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

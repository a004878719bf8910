"""Countdown and chains: what is made can be solved, and only what solves it is right."""

import json
import random
from fractions import Fraction

import pytest
from helpers import many
from hypothesis import given
from hypothesis import strategies as st

import tasks
from maths import data, puzzles
from maths.puzzles import GOAL, combine, countdown, main, rows, search, solves
from maths.verifier import readable, verify
from scoring import score
from tasks import Problem

SOME = [*rows("countdown", [2, 3, 4], 120, "train", largest=9), *rows("chains", [2, 3, 4], 120, "train")]


def reachable(numbers):
    """Every total that can be made of all these numbers, by trying everything."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i != j:
                rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
                for result in (a + b, a * b, *([a - b] if a >= b else []), *([a // b] if b > 1 and a % b == 0 else [])):
                    found |= reachable([result, *rest])
    return found


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), st.integers(1, 99))
@many
def test_the_search_finds_a_way_exactly_where_there_is_one(numbers, total):
    steps = search([(n, str(n)) for n in numbers], total)
    assert (steps is not None) == (total in reachable(numbers))
    if steps:
        assert solves(steps[-1][1], f"{total} from {', '.join(map(str, numbers))}")


@pytest.mark.parametrize("row", SOME, ids=lambda row: row["problem"][:50])
def test_every_demonstration_is_right_and_scores_ten(row):
    problem = Problem(row["problem"], row["answer"], row["solution"], row["level"])
    assert readable(problem.answer)
    assert verify(problem.demo, problem.answer)
    assert score(problem.demo, problem) == 10


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("4 + 6 + 7", True),
        ("(7+6)+4", True),
        ("7 + 6 + 4 = 17", True),
        ("$7 + (6 + 4)$", True),
        ("7 + 6 + 4 = 18", False),  # it says something else of itself
        ("18 = 7 + 6 + 4", False),
        ("17", False),  # the total is no way to make it
        ("17 = 17", False),
        ("4 + 6", False),
        ("4 + 6 + 7 + 0", False),
        ("4 + 6 + 7 * 1", False),
        ("4 + 6 + 7 - 4 + 4", False),  # a number twice
        ("46 - 29", False),  # other numbers
        ("4 + 6 + 7.0", False),
        ("4 + 6 + 7%", False),
        ("4 + 6 7", False),
        ("4 + 6 + x", False),
        ("__import__('os') or 4 + 6 + 7", False),
        ("4**6 + 7", False),
        ("(" * 150 + "4 + 6 + 7", False),
        ("4+6+7" + " " * 300, False),
        ("7 / (6 - 6) + 4", False),
        ("", False),
    ],
)
def test_an_expression_is_right_only_if_it_uses_each_number_once(expression, right):
    assert solves(expression, "17 from 4, 6, 7") is right


@given(st.text("0123456789+-*/()=. %$\\x", max_size=60))
@many
def test_no_expression_raises(expression):
    assert solves(expression, "17 from 4, 6, 7") in (True, False)


def test_fractions_on_the_way_are_allowed_to_a_response():
    """The search makes none, but 8 / (3 - 8 / 3) = 24 is a famous way."""
    assert solves("8 / (3 - 8 / 3)", "24 from 3, 3, 8, 8")
    assert not any(result != Fraction(result) for _, result in combine(8, 3))


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (r"So \boxed{4 + 6 + 7}.", True),
        ("4 + 6 = 10\n10 + 7 = 17\n#### (4 + 6) + 7", True),
        ("<answer>(4+6)+7</answer>", True),
        ("4 + 6 = 10\n10 + 7 = 17", False),  # no final answer: it has to be marked
        ("#### 17", False),
        (r"\boxed{4 + 6 + 7", False),
    ],
)
def test_the_reward_of_a_countdown(response, right):
    assert verify(response, "17 from 4, 6, 7") is right


def test_a_goal_is_no_other_answer():
    assert not GOAL.fullmatch("17") and not GOAL.fullmatch("5 from 3 apples")
    with pytest.raises(ValueError, match="not a goal"):
        solves("1", "17")


def test_the_same_seed_makes_the_same_rows_and_splits_share_nothing():
    made = {split: rows("countdown", [3], 50, split) for split in tasks.SPLITS}
    assert made["train"] == rows("countdown", [3], 50, "train")
    assert made["train"] != rows("countdown", [3], 50, "train", seed=1)
    asked = [{row["problem"] for row in part} for part in made.values()]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]


def test_equal_questions_have_equal_demonstrations():
    """However a question was drawn: what SFT learns from is a function of it."""
    rng, made = random.Random(0), {}
    for row in (countdown(rng, 3, 3) for _ in range(300)):
        assert made.setdefault(row["problem"], row["solution"]) == row["solution"]
    assert len(made) < 200


@pytest.mark.parametrize("kind", ["chains", "countdown"])
def test_train_reads_what_the_command_writes(kind, tmp_path, capsys):
    path = tmp_path / "made.jsonl"
    main([kind, "--sizes", "2,3", "--count", "9", "--out", str(path)])
    assert "Next: python -m maths.data" in capsys.readouterr().out
    problems, report = data.load_problems(str(path))
    assert len(problems) == 9 and not report.skipped
    assert {problem.level for problem in problems} == {"2", "3"}
    assert [p.demo for p in problems] == [json.loads(line)["solution"] for line in path.read_text().splitlines()]


def test_it_gives_up_soon_where_there_are_no_more_problems(monkeypatch):
    drawn = []
    monkeypatch.setitem(puzzles.KINDS, "few", lambda rng, size, largest: drawn.append(1) or {"problem": "What is 1?"})
    with pytest.raises(ValueError, match="there are no 1000000"):
        puzzles.rows("few", [2], 10**6, tasks.split_of("What is 1?"))
    assert len(drawn) == 1 + puzzles.TRIES


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["dice"], "invalid choice"),
        (["chains", "--sizes", "three"], "--sizes must be numbers"),
        (["countdown", "--sizes", "9"], "--sizes must be from 2 to 6"),
        (["chains", "--sizes", "2", "--largest", "3", "--count", "500"], "there are no 500 different chains"),
        (["chains", "--out", "no/such/folder/x.jsonl"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1

"""The exercises' checks: the solutions pass, what is not written is said so, and each mistake gets its words."""

from types import SimpleNamespace

import pytest
import torch

from lessons import check, exercises, solutions
from lessons.cases import CASES

NUMBERS = range(1, len(CASES) + 1)
MISTAKES = [
    (name, words, value)
    for name, cases in CASES.items()
    if cases
    for case in cases()
    for words, value in case.mistakes.items()
]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solution_is_right_and_the_exercise_is_not_written(number):
    assert check.check(number, solutions) == ""
    assert check.check(number, exercises) is None
    name = check.NAMES[number - 1]
    assert getattr(exercises, name).__doc__.startswith(f"{number}. ")


@pytest.mark.parametrize(("name", "words", "value"), MISTAKES, ids=[words[:40] for _, words, _ in MISTAKES])
def test_a_known_mistake_is_named_with_the_case_that_shows_it(name, words, value):
    case = next(case for case in CASES[name]() if words in case.mistakes)
    said = check.compare(value, case, ["first", "second", "third", "fourth"])
    assert said.startswith(words.strip()) and "first = " in said and "it gives" in said and "but should give" in said


def test_a_mask_of_another_type_is_said_to_be_right_but_for_that():
    said = check.check(
        7, solve_with("completion_mask", lambda tokens, end: solutions.completion_mask(tokens, end).float())
    )
    assert said.startswith("the values are right, but their type is torch.float32; return a bool tensor")


def solve_with(name, function):
    return SimpleNamespace(**{name: function})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda rewards: None, "is there a return?"),
        (lambda rewards: rewards.mean(), "its shape is ()"),
        (lambda rewards: rewards + 1, "some values differ, the first at [0, 0]"),
        (lambda rewards: "A", "it gives str, not numbers"),
        (lambda rewards: 1 / 0, "it stopped with ZeroDivisionError: division by zero (test_check.py, line"),
    ],
)
def test_other_mistakes_are_one_answer_too(function, words):
    assert words in check.check(1, solve_with("group_advantages", function))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda keep, A, generator: keep, "always the mask that was handed in"),
        (lambda keep, A, generator: torch.rand(keep.shape, generator=generator) < 0.5, "stay in the two groups, not"),
        (lambda keep, A, generator: solutions.random_mask(keep, A, torch.Generator()), "hardly ever stays"),
        (lambda keep, A, generator: solutions.random_mask(keep, A, None), "the same generator gave two masks"),
        (lambda keep, A, generator: keep.float(), "a bool tensor"),
    ],
)
def test_a_random_mask_is_random_and_of_the_same_size(function, words):
    assert words in check.check(11, solve_with("random_mask", function))


def test_the_command_counts_what_is_not_right(capsys):
    with pytest.raises(SystemExit) as end:
        check.main(["--solutions"])
    assert end.value.code == 0 and capsys.readouterr().out.count(": right") == 12
    with pytest.raises(SystemExit) as end:
        check.main(["3"])
    assert end.value.code == 1 and "3 leave_one_out: not written yet" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        check.main(["13"])
    assert end.value.code == 2 and "there are exercises 1 to 12" in capsys.readouterr().err

"""The built-in task: what is drawn, which split it falls into, and the worked demonstrations."""

import re
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.warm_start import of_world
from scoring import holds, score, steps, verify
from tasks import LEVELS, OOD_LEVELS, SPLITS, WORLDS, Form, arithmetic, direct, solve, split_of

ALL = LEVELS | OOD_LEVELS
every_split = pytest.mark.parametrize("split", SPLITS)


def questions(split, seed, levels=ALL, per_level=40):
    return {problem.question for problem in arithmetic(split, per_level, seed, levels)}


def numbers(question):
    return [int(n) for n in re.findall(r"[0-9]+", question)]


@every_split
def test_the_same_seed_gives_the_same_problems_in_the_same_order(split):
    assert arithmetic(split, 20, seed=3, levels=ALL) == arithmetic(split, 20, seed=3, levels=ALL)


def test_the_problems_are_the_same_on_every_machine():
    """Pinned text: a change of the generator changes every published number, and must be seen to."""
    pinned = ["10+20=", "9+8+10=", "19-3+18=", "6-6+15+4=", "21+24-1+23-2="]
    assert [problem.question for problem in arithmetic("train", 1, seed=0)] == pinned


@every_split
def test_another_seed_gives_other_problems(split):
    for level, form in ALL.items():
        assert questions(split, 0, {level: form}, 20) != questions(split, 1, {level: form}, 20)


def test_a_longer_list_begins_with_the_shorter_one():
    form = {"3": LEVELS["3"]}
    assert arithmetic("train", 30, levels=form)[:10] == arithmetic("train", 10, levels=form)


def test_levels_do_not_depend_on_the_levels_beside_them():
    assert arithmetic("train", 5, levels={"3": LEVELS["3"]}) == [p for p in arithmetic("train", 5) if p.level == "3"]


@every_split
@pytest.mark.parametrize("seed", [0, 1])
def test_every_question_is_in_exactly_the_split_asked_for(split, seed):
    assert {split_of(question) for question in questions(split, seed)} == {split}


def test_splits_share_no_question_whatever_the_seeds():
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        for seed, other in product(range(3), repeat=2):
            assert not questions(first, seed) & questions(second, other)


def test_the_splits_are_about_70_10_and_20_percent():
    """10,000 questions: five standard deviations of a fair draw are under 2.3 %."""
    drawn = [split_of(f"{n}+1=") for n in range(10_000)]
    shares = {split: drawn.count(split) / len(drawn) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.023)


@given(st.text())
def test_split_of_any_text_is_one_of_the_splits(question):
    assert split_of(question) in SPLITS


@every_split
def test_every_level_gives_as_many_different_questions_as_asked_for(split):
    for level, form in ALL.items():
        found = arithmetic(split, 30, levels={level: form})
        assert len({problem.question for problem in found}) == len(found) == 30
        assert {problem.level for problem in found} == {level}


def test_problems_have_their_levels_form():
    for problem in arithmetic("train", 100, levels=ALL):
        form, found = ALL[problem.level], numbers(problem.question)
        assert len(found) == form.operands
        assert all(form.smallest <= n <= form.largest for n in found)
        assert set(re.sub("[0-9]", "", problem.question)) <= set("+-=")


def test_out_of_distribution_forms_are_none_of_the_trained_ones():
    """No question can belong to both: the operand counts differ, or the number ranges do not touch."""
    for ood, trained in product(OOD_LEVELS.values(), LEVELS.values()):
        apart = ood.smallest > trained.largest or ood.largest < trained.smallest
        assert ood.operands != trained.operands or apart
    assert not OOD_LEVELS.keys() & LEVELS.keys()


def test_the_answer_is_the_value_of_the_question():
    for problem in arithmetic("train", 40, levels=ALL):
        assert int(problem.answer) == eval(problem.question.rstrip("="))


def test_demonstrations_verify_step_by_step_and_as_a_whole():
    for problem in arithmetic("train", 40, levels=ALL):
        worked = steps(problem.demo)
        assert verify(problem.demo, problem.answer)
        assert len(worked) == ALL[problem.level].operands - 1
        assert all(map(holds, worked))


def test_demonstrations_work_through_the_question_from_left_to_right():
    for problem in arithmetic("train", 40, levels=ALL):
        total = str(numbers(problem.question)[0])
        for step, operation in zip(steps(problem.demo), re.findall(r"[+-][0-9]+", problem.question), strict=True):
            left, result = step.split("=")
            assert left == total + operation
            total = result
        assert problem.demo.endswith(f"={total};#{total}")


def test_no_total_is_negative_on_the_way():
    for split in SPLITS:
        for problem in arithmetic(split, 50, seed=5, levels=ALL):
            assert all(int(step.split("=")[1]) >= 0 for step in steps(problem.demo))


def test_both_signs_occur():
    text = "".join(questions("train", 0))
    assert 0.25 < text.count("-") / (text.count("-") + text.count("+")) < 0.75


def test_the_direct_response_is_right_and_has_no_steps():
    for problem in arithmetic("test", 10):
        assert verify(direct(problem), problem.answer)
        assert steps(direct(problem)) == []


@pytest.mark.parametrize(("question", "total"), [("3-10=", "-7"), ("0+0=", "0"), ("100-99-1=", "0"), ("7=", "7")])
def test_solve_takes_questions_that_are_not_drawn(question, total):
    problem = solve(question, "x")
    assert problem.answer == total
    assert verify(problem.demo, total)


@pytest.mark.parametrize("split", ["", "Train", "dev", "train "])
def test_an_unknown_split_is_an_error(split):
    with pytest.raises(ValueError, match="unknown split"):
        arithmetic(split, 1)


def test_asking_for_more_questions_than_there_are_is_an_error():
    tiny = {"tiny": Form(operands=2, smallest=1, largest=2)}  # 1+1 1-1 1+2 2+1 2-1 2+2 2-2: seven in all splits
    with pytest.raises(ValueError, match="level tiny has no 8"):
        arithmetic("train", 8, levels=tiny)


@pytest.mark.parametrize("name", WORLDS)
def test_a_worlds_problems_and_start_fit_together(name):
    world = WORLDS[name]
    assert set(world.trained) <= set(world.levels) and not set(world.levels) & set(world.ood)
    assert len(of_world(name).level_weights) == len(world.levels)
    for problem in arithmetic("train", per_level=20, levels=world.levels | world.ood):
        assert verify(problem.demo, problem.answer) and score(problem.demo, problem) == 10
        assert score(direct(problem), problem) == 4.5, "right, and no step"


@pytest.mark.parametrize("modulus", [2, 3, 5, 10])
def test_of_modulus_guesses_one_is_right(modulus):
    world = "guess" if modulus == 3 else f"guess{modulus}"
    answers = Counter(p.answer for p in arithmetic("train", per_level=600, levels={"5": WORLDS[world].levels["5"]}))
    assert set(answers) == {str(i) for i in range(modulus)}
    assert all(abs(count / 600 - 1 / modulus) < 0.08 for count in answers.values())
    problem = solve("12+5-3=", "2", modulus=modulus)
    assert problem.answer == str(14 % modulus) and problem.demo.startswith("12+5=17;17-3=14;#")

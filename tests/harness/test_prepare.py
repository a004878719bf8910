"""prepare.py: which problems a step takes, and which are left out."""

import copy

import pytest

import tasks
from anchors import prepare_anchors
from harness import prepare
from harness.config import parse
from harness.prepare import Task, fitting, pick
from policy import Policy
from scoring import rule_scores

PROBLEMS = tasks.arithmetic("train", per_level=2)


def test_every_step_takes_the_next_prompts_and_an_epoch_takes_each_once():
    epoch = [i for step in range(5) for i in pick(10, step, 2, seed=3)]
    assert sorted(epoch) == list(range(10))
    assert pick(10, 2, 4, seed=3) == epoch[8:10] + pick(10, 5, 2, seed=3)


def task_of(problems, anchors):
    return Task(problems, anchors, {}, rule_scores, None)


def test_prompts_that_do_not_fit_the_window_are_counted_and_left_out(tiny, capsys):
    policy = Policy(copy.deepcopy(tiny.model), tiny.tokenizer)
    policy.model.config.max_position_embeddings = 30
    long = tasks.solve("1+1+1+1+1+1+1+1+1+1=", "x")  # 20 tokens
    config = parse(["--method", "dagrpo", "--out", "x", "--max-new-tokens", "15"])
    task = fitting(policy, task_of([long, PROBLEMS[0]], [None, None]), config)
    assert task.problems == [PROBLEMS[0]] and task.anchors == [None]
    assert "1 of 2 problems left out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fitting(policy, task_of([long], [None]), config)
    assert "no prompt fits" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "left"), [("sft", [0, 2]), ("dagrpo", [0, 1, 2])])
def test_without_rollouts_problems_without_a_demonstration_leave(tiny, method, left):
    problems, config = PROBLEMS[:3], parse(["--method", method, "--out", "x"])
    (first, _, third), _ = prepare_anchors(tiny, problems, max_new_tokens=64)
    task = fitting(tiny, task_of(problems, [first, None, third]), config)
    assert task.problems == [problems[i] for i in left]
    assert task.anchors == [[first, None, third][i] for i in left]


@pytest.mark.parametrize(
    ("flags", "levels", "pool"), [([], 5, 2000), (["--world", "guess"], 1, 2000), (["--levels", "1"], 1, 400)]
)
def test_there_are_2000_built_in_problems_unless_a_level_has_not_so_many(flags, levels, pool):
    """Of few problems, seen again and again, guesses are learned by heart."""
    problems = prepare.load_problems(parse(["--method", "grpo", "--out", "x", *flags]))
    assert len(problems) == len(set(problems)) == pool and len({problem.level for problem in problems}) == levels

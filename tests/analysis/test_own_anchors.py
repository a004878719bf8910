"""analysis.experiments.own_anchors: what is remembered, what takes a demonstration's place, and that it resumes."""

import json

import pytest
import torch
from helpers import groups_of, weights

import dagrpo
import scoring
from analysis.experiments import controls
from analysis.experiments.own_anchors import Success, exchange, remember
from rollout import Groups, Rollouts
from tasks import Problem

NAN = float("nan")
OLD = Success("12+5=17;#17", [7, 8, 9, 2], [-0.1, -0.2, -0.3, -0.4], 9.0, True)


def hard_groups():
    """Two prompts, G = 3; both groups are wrong but for their demonstration, the last row."""
    problems = [Problem("12+5=", "17", "12+5=17;#17", "1"), Problem("3+4=", "7", "3+4=7;#7", "1")]
    tokens, mask = torch.ones(6, 2, dtype=torch.long), torch.ones(6, 2, dtype=torch.bool)
    anchor = torch.tensor([False, False, True] * 2)
    logp = torch.full((6, 2), -0.5).masked_fill(anchor[:, None], NAN)
    prompt = torch.zeros(2, 1, dtype=torch.long)
    group, ended = torch.arange(6) // 3, torch.ones(6, dtype=torch.bool)
    rollouts = Rollouts(problems, prompt, prompt == 0, tokens, mask, logp, -logp, group, anchor, ended, list("abcdef"))
    R, S = torch.tensor([[0.0, 0.0, 1.0]] * 2), torch.tensor([[1.0, 4.5, 10.0]] * 2)
    A = dagrpo.group_advantages(R)
    keep = dagrpo.rectification_mask(A, S)
    return Groups(rollouts, R, S, A, keep, keep, responses=6, tokens=12)


@pytest.mark.parametrize("kind", ["fixed", "clipped"])
def test_a_success_takes_the_demonstrations_place_and_a_group_without_one_has_no_signal(kind):
    after = exchange(hard_groups(), {"12+5=": OLD}, kind, delta=3.0)
    assert after.advantages.tolist()[1] == [0, 0, 0] and not after.keep[1].any()
    torch.testing.assert_close(after.advantages[0], torch.tensor([-1 / 3, -1 / 3, 2 / 3]))
    assert after.keep[0].tolist() == after.distinct[0].tolist() == [True, True, True]
    assert after.scores.tolist() == [[1.0, 4.5, 9.0], [1.0, 4.5, 10.0]]
    rows = after.rollouts
    assert rows.texts == ["a", "b", OLD.text, "d", "e", "f"] and rows.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.tokens[2].tolist() == OLD.tokens and rows.mask.sum(1).tolist() == [2, 2, 4, 2, 2, 2]
    assert rows.is_anchor.tolist() == [False, False, kind == "fixed", False, False, True]
    if kind == "clipped":
        torch.testing.assert_close(rows.logp[2], torch.tensor(OLD.logp))
    else:
        assert rows.logp[2].isnan().all()


def test_without_its_demonstration_a_groups_mean_is_over_its_rollouts():
    groups = hard_groups()
    groups.rewards[0, 0] = 1.0
    A = exchange(groups, {}, "fixed", delta=3.0).advantages
    assert A.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]


def test_a_groups_own_rollout_is_left_alone_where_there_is_no_anchor():
    groups = hard_groups()
    groups.rollouts.is_anchor[:] = False
    after = exchange(groups, {"12+5=": OLD}, "fixed", delta=3.0)
    assert after.rollouts.texts == groups.rollouts.texts and torch.equal(after.advantages, groups.advantages)


def test_the_best_score_is_remembered_then_the_shortest_then_the_first():
    store = {}
    line = {"question": "q", "R": [1, 1, 1, 1, 0, 1], "S": [5, 9, 9, 9, 10, 10], "ended": [True] * 6}
    line |= {"responses": list("abcdef"), "tokens": [[1], [1, 2], [1], [3], [1], [1]], "logp": [[0.0]] * 6}
    remember(store, line | {"is_anchor": [False] * 5 + [True]})
    assert store["q"].text == "c", "e is wrong, f a demonstration"
    remember(store, line | {"is_anchor": [True] * 3 + [False, True, True]})
    assert store["q"].text == "c"


@pytest.mark.parametrize("kind", ["fixed", "clipped"])
def test_training_uses_earlier_successes_and_a_resumed_run_is_the_same(tiny_folder, tmp_path, monkeypatch, kind):
    def rewards(rollouts):  # a demonstration is right, and about half of what a random policy says
        return (rollouts.is_anchor | (rollouts.tokens[:, 0] % 2 == 0)).float().view(len(rollouts.problems), -1).cpu()

    monkeypatch.setattr(scoring, "rewards", rewards)
    data = tmp_path / "data.jsonl"
    lines = [{"problem": f"{n}+1=", "answer": str(n + 1), "solution": f"{n}+1={n + 1};#{n + 1}"} for n in range(1, 5)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    flags = [
        "--method",
        "dagrpo",
        "--data",
        str(data),
        "--instruction",
        "",
        "--batch-prompts",
        "4",
        "--group-size",
        "3",
    ]
    flags += ["--model", str(tiny_folder), "--show-every", "0", "--save-every", "2", "--lr", "1e-3"]

    def go(out, steps, *more):
        controls.run(f"own_anchor={kind}", [*flags, "--out", str(tmp_path / out), "--steps", steps, *more])

    go("whole", "6")
    go("parts", "4")
    go("parts", "6", "--resume")
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert groups_of(tmp_path / "whole") == groups_of(tmp_path / "parts")
    seen, used = {}, 0
    for group in groups_of(tmp_path / "whole"):
        past, last = seen.setdefault(group["question"], set()), group["responses"][-1]
        if past:
            assert last in past and group["A"][-1] >= 0 and group["is_anchor"][-1] == (kind == "fixed")
            used += group["A"][-1] > 0
        else:
            assert last == group["demonstration"] and group["A"][-1] == 0 and not group["keep"][-1]
        rows = zip(group["responses"], group["R"], group["is_anchor"], strict=True)
        past |= {text for text, right, anchor in rows if right and not anchor}
    assert used > 3

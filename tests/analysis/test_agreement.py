"""analysis.experiments.agreement: a judge's scores next to the rule's, on groups whose agreement is known."""

import json

import pytest

from analysis.experiments import agreement

RIGHT, SLIP = "1 + 2 = 3, 3 + 4 = 7", "1 + 2 = 4, 4 + 4 = 8"  # the rule gives 10 and 2.5
GROUP = {"question": "1 + 2 + 4?", "answer": "7", "demonstration": RIGHT, "level": "3"}
GROUP |= {
    "responses": [RIGHT, RIGHT, SLIP, SLIP],
    "R": [1, 1, 0, 0],
    "A": [0.5, 0.5, -0.5, -0.5],
    "is_anchor": [False] * 4,
}


def cells(*groups, delta=3.0):
    return agreement.compare([GROUP | group for group in groups], delta)


def test_a_judge_that_agrees_and_one_that_does_not():
    assert cells({"S": [9, 8, 2, 1]})[2:] == ["0.89", "1.00", "1.00", "7.00", "7.50", "1.00", "1.00", "1.00"]
    assert cells({"S": [1, 2, 8, 9]})[3:5] == ["0.00", "1.00"]
    equal = cells({"S": [5, 5, 5, 5]})
    assert equal[2:] == ["nan", "0.50", "1.00", "0.00", "7.50", "0.00", "1.00", "0.00"]


def test_the_mask_is_made_with_the_runs_delta():
    assert cells({"S": [9, 6, 5, 2]})[7] == "0.50", "9 and 2 are kept; 6 and 5 are too close to the other side"
    assert cells({"S": [9, 6, 5, 2]}, delta=0.5)[7] == "1.00"


def test_only_what_was_asked_and_scored_counts_and_pairs_are_within_a_group():
    silent = {"A": [0, 0, 0, 0], "S": [None] * 4}
    assert cells({"S": [9, None, 2, 1]}, silent)[:2] == ["4", "3"]
    one_sided = [{"S": [1, 1, 9, 9], "R": [1] * 4}, {"S": [9, 9, 1, 1], "R": [0] * 4}]
    assert cells(*one_sided)[3] == "", "no pair of a right and a wrong response in one group"
    assert cells(silent) == ["0", "0", *[""] * 7]


def test_a_demonstration_sets_the_bar_and_is_not_counted():
    demonstrated = {"responses": [RIGHT, SLIP, SLIP, RIGHT], "R": [1, 0, 0, 1], "A": [0.5, -0.5, -0.5, 0.5]}
    found = cells(demonstrated | {"S": [9, 2, 1, 2.5], "is_anchor": [False] * 3 + [True]})
    assert found[:2] == ["3", "3"] and found[3] == "1.00"
    assert found[7:9] == ["0.33", "1.00"], "2 and 1 are not 3 below the demonstration's 2.5"


def test_the_command_prints_a_row_a_run_and_says_what_it_needs(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"scorer": "local", "delta": 3.0}), encoding="utf-8")
    (tmp_path / "rollouts.jsonl").write_text(json.dumps(GROUP | {"S": [9, 8, 2, 1]}) + "\n", encoding="utf-8")
    agreement.main([str(tmp_path)])
    assert "| 4 | 4 | 0.89 |" in capsys.readouterr().out
    (tmp_path / "rollouts.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit):
        agreement.main([str(tmp_path)])
    assert "has no group yet" in capsys.readouterr().err
    (tmp_path / "rollouts.jsonl").write_text("[]\n", encoding="utf-8")
    for config, said in (({"scorer": "local", "delta": 3.0}, "damaged"), ({"scorer": "rule"}, "scored by the rule")):
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(SystemExit):
            agreement.main([str(tmp_path)])
        assert said in capsys.readouterr().err

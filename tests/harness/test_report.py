"""report.py: what is said of a step, and the reasons of Eq. 8-9 in words."""

from types import SimpleNamespace

import pytest
import torch
from helpers import NAN, deltas, groups, many, run, split
from hypothesis import given

import scoring
import tasks
from dagrpo import rectification_mask
from harness.console import fail
from harness.report import reasons, show
from rollout import Groups


@many
@given(batch=groups, delta=deltas)
def test_the_reasons_say_what_the_mask_does(batch, delta):
    advantages, scores = split(batch)
    keep, why = rectification_mask(advantages, scores, delta), reasons(advantages, scores, delta)
    words = torch.tensor([["kept", "masked", "no signal"].index(text.split(":")[0]) for row in why for text in row])
    wanted = torch.where(keep, 0, torch.where(advantages == 0, 2, 1))
    assert words.tolist() == wanted.flatten().tolist()


def test_the_reasons_name_the_rival_and_the_gap():
    advantages = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.0]])
    scores = torch.tensor([[10.0, 4.5, 5.5, 1.0, NAN]])
    assert reasons(advantages, scores, 3.0) == [
        [
            "kept: S 10 against the best negative's 5.5, gap 4.5 >= 3",
            "masked: S 4.5 against the best negative's 5.5, gap -1 < 3",
            "masked: S 5.5 against the worst positive's 4.5, gap -1 < 3",
            "kept: S 1 against the worst positive's 4.5, gap 3.5 >= 3",
            "no signal: A = 0",
        ]
    ]


@pytest.mark.usefixtures("even_is_right")
def test_the_shown_groups_say_what_was_masked_and_why_there_is_no_signal(tiny_folder, tmp_path, capsys, monkeypatch):
    run(tiny_folder, tmp_path / "a", "--show-every", "1", "--delta", "9", method="dagrpo_on", steps=1)
    shown = capsys.readouterr().out
    assert "masked: S" in shown and "every response is masked" in shown and "answer" in shown
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: False)
    run(tiny_folder, tmp_path / "b", "--show-every", "1", method="dagrpo_on", steps=1)
    assert "no signal: all 4 are wrong" in capsys.readouterr().out


HOSTILE = {"\x1b[2J": r"\x1b[2J", "\x9b31m": r"\x9b31m", "\u202e": r"\u202e", "\ud800": r"\ud800", "\r": r"\r"}


@pytest.mark.parametrize("sent", HOSTILE)
def test_control_characters_are_shown_and_not_sent_to_the_terminal(sent, capsys):
    problem = tasks.Problem(f"1+{sent}1=", f"2{sent}", "", f"a{sent}")
    texts = [f"日本 é\n{sent}#2", "#3"]
    rollouts = SimpleNamespace(problems=[problem], texts=texts, is_anchor=torch.tensor([False, False]))
    A, S = torch.tensor([[0.5, -0.5]]), torch.tensor([[10.0, 1.0]])
    keep = torch.ones(1, 2, dtype=torch.bool)
    shown = show(Groups(rollouts, torch.tensor([[1.0, 0.0]]), S, A, keep, keep, responses=2, tokens=4), 1, 3.0)
    with pytest.raises(SystemExit):
        fail(f"the judge says: {sent}")
    said = capsys.readouterr().err
    assert shown.count(HOSTILE[sent]) == 4 and f"日本 é\n{HOSTILE[sent]}#2" in shown
    assert sent not in shown + said and (HOSTILE[sent] in said or sent == "\r")  # a line break is one blank of the line


@pytest.mark.parametrize(("S", "why"), [([4.5, NAN], "a score is missing"), ([4.5, 4.0], "none is clearly better")])
def test_a_group_that_is_masked_as_a_whole_says_why(S, why):
    rollouts = SimpleNamespace(
        problems=[tasks.Problem("1+1=", "2", "", "a")], texts=["#2", "#3"], is_anchor=torch.tensor([False, False])
    )
    A, keep = torch.tensor([[0.5, -0.5]]), torch.zeros(1, 2, dtype=torch.bool)
    groups = Groups(rollouts, torch.tensor([[1.0, 0.0]]), torch.tensor([S]), A, keep, keep, responses=2, tokens=4)
    assert f"every response is masked, {why}" in show(groups, 1, 3.0)

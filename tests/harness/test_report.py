"""report.py: what is said of a step, and the reasons of Eq. 8-9 in words."""

import pytest
import torch
from helpers import NAN, deltas, groups, many, run, split
from hypothesis import given

import scoring
from dagrpo import rectification_mask
from harness.report import reasons


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

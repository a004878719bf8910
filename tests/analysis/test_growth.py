"""analysis.growth: each case differs from the base in one thing, and the table's growth is that of its block."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from analysis.bench import growth, sides
from analysis.bench.growth import BASE, VARIED, GrowthPoint
from policy import load_policy
from tasks import solve


def test_cases_differ_from_the_base_in_the_thing_they_name():
    found = list(growth.cases())
    assert found[0] == ("", BASE) and len(found) == 12
    for varied, case in found[1:]:
        assert [n for n in VARIED if getattr(case, n) != getattr(BASE, n)] == [varied]


def made():
    """Seconds as if time grew with the square root of whatever grows."""
    for varied, case in growth.cases():
        shape = (case.group_size, case.prompt_tokens, case.new_tokens)
        seconds = (shape[0] * shape[1] * shape[2]) ** 0.5
        yield GrowthPoint(varied, *shape, seconds, seconds / 4, seconds / 2, 1.5, 2048, "model")


def test_the_table_and_the_figure_are_of_what_was_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "points", lambda model: made())
    growth.main(["--model", "/somewhere/model", "--out", str(tmp_path)])
    *table, written = capsys.readouterr().out.splitlines()
    assert written == f"written: {tmp_path}/growth.png, growth.csv, growth.txt"
    assert len(table) == 2 + 4 + 5 + 5, "each block has its own cases, and the base"
    assert "| group size G | 16 | 128 | 128 | 512.0 | 128.0 | 256.0 | 1.50 | 2.0 (4) |" in table
    assert "| response tokens T | 8 | 128 | 512 | 724.1 | 181.0 | 362.0 | 1.50 | 4.0 (16) |" in table
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert "/somewhere" not in (tmp_path / "growth.txt").read_text()
    (tmp_path / "growth.png").unlink()
    growth.main(["--from-csv", str(tmp_path / "growth.csv")])
    assert capsys.readouterr().out.splitlines()[:-1] == table and (tmp_path / "growth.png").exists()


def test_the_title_says_how_a_step_grows():
    title = growth.growth_message(pd.DataFrame(made()))
    assert title.startswith("A step takes 2.8 times as long with 8 times the group size G, 4.0 times as long with 16")


@pytest.mark.parametrize("flags", [[], ["--model", "x", "--from-csv", "y"]])
def test_a_model_or_a_csv(capsys, flags):
    with pytest.raises(SystemExit):
        growth.main(flags)
    assert capsys.readouterr().err.count("\n") == 1


def test_what_would_end_a_response_is_the_token_that_is_least_likely(tiny_folder, monkeypatch):
    monkeypatch.setattr(sides.scoring, "rewards", sides.scoring.rewards)  # put back afterwards
    policy = load_policy(str(tiny_folder))
    chosen = policy.tokenizer.convert_tokens_to_ids(sides.never_drawn(policy, [solve("1+2=", "1")]))
    logits = policy.model(torch.tensor([policy.encode_prompt("1+2=")])).logits[0, -1]
    assert (logits >= logits[chosen]).all()
    ends = []
    monkeypatch.setattr(sides, "never_drawn", lambda *_: "9")
    monkeypatch.setattr(sides, "medians", lambda *_: {})
    monkeypatch.setattr(sides, "learner_work", lambda policy, *_: ends.append(policy.eos_id) or {})
    case = sides.Case(str(tiny_folder), prompts=1, group_size=4, prompt_tokens=5, new_tokens=4, steps=1)
    for whole in (False, True):
        sides.ours(replace(case, whole=whole))
    assert ends == [policy.eos_id, policy.tokenizer.convert_tokens_to_ids("9")]

"""analysis.bench: what is compared is what is said, and the ratios' arithmetic."""

import json
from dataclasses import replace

import pytest
import torch

from analysis.bench import sides, step
from analysis.bench.sides import Case
from policy import load_policy


@pytest.mark.parametrize(("who", "share"), [("all", 1.0), ("kept", 0.5)])
def test_the_shares_that_carry_signal_are_exact(tiny_folder, monkeypatch, who, share):
    monkeypatch.setattr(sides.scoring, "rewards", sides.scoring.rewards)  # put back afterwards
    case = Case(str(tiny_folder), prompts=2, group_size=4, prompt_tokens=5, new_tokens=6, steps=1, who=who)
    found = sides.ours(case)
    assert found["kept"] == share and found["step"] > 0 and 0 < found["tokens"] <= 48


def test_in_bf16_decoding_reads_half_the_bytes_and_the_limit_is_that_of_bf16(tiny_folder, monkeypatch):
    monkeypatch.setattr(sides.scoring, "rewards", sides.scoring.rewards)
    case = Case(str(tiny_folder), prompts=2, group_size=4, prompt_tokens=5, new_tokens=6, steps=1)
    assert sides.ours(replace(case, bf16=True))["bytes"] == sides.ours(case)["bytes"] / 2
    seen = []
    monkeypatch.setattr(sides, "fastest", lambda work: seen.append(work()) or 1.0)
    for bf16 in (False, True):
        sides.limits(replace(case, bf16=bf16))
    assert [product.dtype for product in seen[::2]] == [torch.float32, torch.bfloat16]


def test_prompts_of_a_model_have_their_length(tiny_folder):
    policy = load_policy(str(tiny_folder))
    made = sides.questions(policy, Case(str(tiny_folder), prompts=3, prompt_tokens=7))
    assert len(made) == 3 and all(len(policy.encode_prompt(text)) == 7 for text in made)


def rounds():
    one = {"step": 2.0, "learner": 1.0, "rollout": 1.0, "tokens": 100.0, "peak_gb": 1.0, "flop": 4e9, "bytes": 1e9}
    return [
        {
            "trl": {"step": 8.0 * slow, "learner": 6.0 * slow, "rollout": 2.0, "tokens": 100.0, "peak_gb": 4.0},
            "all": one | {"kept": 1.0},
            "kept": one | {"step": 1.0, "learner": 0.5, "kept": 0.5},
            "generate": {"plain": 0.03, "ours": 0.01},
            "limits": {"flop_per_second": 8e9, "bytes_per_second": 1e11},
        }
        for slow in (1.0, 1.1, 50.0)  # the last round was disturbed
    ]


def test_ratios_are_medians_of_the_rounds_ratios():
    result = step.write(Case(), rounds(), None)
    ratios = result["ratios"]
    assert ratios["step_ratio_vs_trl"] == pytest.approx(8.8) and ratios["step_ratio_vs_trl_all_rows"] == pytest.approx(
        4.4
    )
    assert ratios["learner_ratio_vs_trl"] == pytest.approx(13.2)
    assert ratios["rollout_ratio_vs_generate"] == pytest.approx(3.0)
    assert ratios["peak_memory_ratio_vs_trl"] == pytest.approx(0.25)
    assert result["machine"] == {
        "learner_share_of_matmul_rate": 0.5,
        "decoding_share_of_bandwidth": pytest.approx(0.64),
        "decoding_ms_a_step": 15.625,
    }
    assert "here, kept rows (64 of 128)" in step.bench_table(result, 128)


def test_the_json_has_the_ratios_at_its_top(tmp_path):
    step.write(Case(), rounds(), tmp_path / "b.json")
    found = json.loads((tmp_path / "b.json").read_text())
    assert {"step_ratio_vs_trl", "rollout_ratio_vs_generate", "learner_ratio_vs_trl"} <= set(found)
    assert found["peak_memory_ratio_vs_trl"] == 0.25 and found["kept_share"]["kept"] == 0.5


@pytest.mark.parametrize("flags", [["--group-size", "6"], ["--rounds", "0"]])
def test_numbers_that_cannot_work_are_one_line(capsys, monkeypatch, flags):
    monkeypatch.setattr(step, "need", lambda *_: None)
    with pytest.raises(SystemExit):
        step.main(flags)
    assert capsys.readouterr().err.startswith("error: all numbers must be at least 1")


@pytest.mark.extra
def test_trl_runs_the_same_case(tiny_folder):
    pytest.importorskip("trl", reason="needs the extra trl")
    found = sides.trl(Case(str(tiny_folder), prompts=2, group_size=4, prompt_tokens=5, new_tokens=6, steps=1))
    assert found["step"] > found["rollout"] > 0 and found["learner"] > 0 and 0 < found["tokens"] <= 48

"""Families of models, tiny and random: both paths agree on each, and what cannot be trained here is one line.

All text architectures of transformers, with the result of each: docs/models.md, by analysis/models.py.
"""

import pytest
import torch
from helpers import metrics, run

import fast
import rollout
from analysis.models import CSV, PAGE, PROBLEMS, differences, read, table, tiny, try_out
from fast import prompt_cache
from fast.learning import one_pass_works
from fast.sampling import sampling_works
from harness import trial
from policy import load_policy, save_policy

# family, is it sampled by the fast path, does the learner run every token once
FAMILIES = {
    "llama": (True, True),
    "qwen2": (True, True),
    "qwen3": (True, True),
    "gpt2": (True, True),
    "phi3": (True, True),
    "olmo2": (True, True),
    "gemma2": (True, False),  # soft caps, sliding windows
    "gemma3_text": (True, False),  # sliding windows
    "qwen3_5_text": (True, False),  # linear attention in three of four layers
    "lfm2": (True, False),  # convolutions
    "jamba": (True, False),  # Mamba layers and attention
    "falcon_h1": (True, False),  # both in one layer
    "mamba": (False, False),  # no attention at all
}
MORE = {
    **dict.fromkeys(["qwen3_moe", "mixtral", "olmo", "phi", "smollm3", "deepseek_v3", "gpt_neox", "opt"], (True, True)),
    **dict.fromkeys(["qwen3_next", "qwen3_5_moe_text", "lfm2_moe", "granitemoehybrid", "bamba"], (True, False)),
    **dict.fromkeys(["nemotron_h", "olmo_hybrid", "kimi_linear"], (True, False)),
    **dict.fromkeys(["mistral", "olmo3", "gpt_oss", "cohere2", "llama4_text", "bloom", "falcon"], (True, False)),
    **dict.fromkeys(["mamba2", "falcon_mamba", "minimax", "openai-gpt"], (False, False)),
}
EXTRA = [pytest.param(name, *paths, marks=pytest.mark.extra) for name, paths in MORE.items()]


@pytest.mark.parametrize(
    ("family", "sampled_fast", "one_pass"), [*((name, *paths) for name, paths in FAMILIES.items()), *EXTRA]
)
def test_both_paths_agree_and_a_row_in_a_batch_is_the_row_alone(family, sampled_fast, one_pass):
    policy = tiny(family)
    assert trial.trouble_of(policy) == ""
    assert (sampling_works(policy), one_pass_works(policy)) == (sampled_fast, one_pass)
    found = differences(policy)  # infinite if greedy tokens differ
    assert found["log_probs"] <= 2e-5 and found["gradients"] <= 1e-5


def test_the_window_of_a_model_of_several_parts_is_that_of_its_text():
    assert tiny("gemma3").window == tiny("gemma3_text").window == 256


def test_the_differences_are_of_something(monkeypatch):
    """A path that shifts positions is noticed, in log-probs and in gradients."""
    policy = tiny("llama")
    one_pass_works(policy)
    monkeypatch.setattr(rollout, "positions_of", lambda attention: attention.cumsum(dim=1).clamp(max=5))
    found = differences(policy)
    assert found["log_probs"] > 1e-3 and found["gradients"] > 1e-3


@pytest.mark.usefixtures("even_is_right")
@pytest.mark.parametrize("family", ["qwen3_5_text", "mamba"])
def test_a_run_and_its_checkpoint(tmp_path, capfd, family):
    """By train.py, and resumed; which parts go the plain path is said once."""
    save_policy(tiny(family), tmp_path / "model")
    run(tmp_path / "model", tmp_path / "run", "--save-every", "1", method="grpo", steps=1)
    said = capfd.readouterr().err
    assert said.count("the learner takes the slower plain path") == 1
    assert said.count("sampling takes the slower plain path") == (family == "mamba")
    run(tmp_path / "model", tmp_path / "run", "--save-every", "1", "--resume", method="grpo", steps=2)
    assert [row["step"] for row in metrics(tmp_path / "run")] == ["1", "2"]


def test_a_cache_that_loses_the_wrong_rows_is_noticed_and_sampling_goes_the_plain_path(monkeypatch, capsys):
    monkeypatch.setattr(
        prompt_cache.Growing, "reorder_cache", lambda layer, rows: layer.batch_select_indices(rows.flip(0))
    )
    policy = tiny("llama")
    found, expected = (path.sample_groups(policy, PROBLEMS, [1, 2, 1], 24, greedy=True) for path in (fast, rollout))
    assert torch.equal(found.tokens, expected.tokens)
    assert "sampling takes the slower plain path" in capsys.readouterr().err


REFUSED = {
    "bart": "in a padded batch",  # its positions count padding
    "roberta": "in a padded batch",  # its positions begin at 2
    "rwkv": "in a padded batch",  # a recurrence over padding
    "recurrent_gemma": "in a padded batch",  # likewise, with a small effect
    "gemma4_unified_assistant": "cannot be loaded",  # part of another model
}


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_cannot_be_trained_is_one_line(tmp_path, capsys, family):
    save_policy(tiny(family), tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        trial.try_out(load_policy(str(tmp_path / "model")))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and REFUSED[family] in said


def test_a_family_that_cannot_be_tried_is_no_error():
    assert try_out("musicgen").kind == "not tried"


def test_the_page_has_the_table_of_the_committed_results():
    results = read(CSV)
    assert len({result.family for result in results}) == len(results) > 150
    assert table(results) in PAGE.read_text(encoding="utf-8")
    kinds = {result.family: result.kind for result in results}
    for family, (sampled_fast, one_pass) in (FAMILIES | MORE).items():
        how = f"sampling {'fast' if sampled_fast else 'plain'}, learning {'in one pass' if one_pass else 'by rows'}"
        assert kinds[family] == how

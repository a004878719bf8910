"""multi_gpu on recorded batches: what is logged and asked for, who stands in an anchor's place, where rows end."""

import copy
from dataclasses import replace

import pytest
import torch

pytestmark = pytest.mark.extra
pytest.importorskip("trl", reason="needs trl: pip install -r requirements-extra.txt")

from helpers_trl import G, first_step, make, record, settings  # noqa: E402

import dagrpo  # noqa: E402
import scoring  # noqa: E402
import tasks  # noqa: E402
from multi_gpu import trl_dagrpo  # noqa: E402
from policy import save_policy  # noqa: E402


def test_the_log_can_be_recounted(tiny, tiny_folder, tmp_path):
    batch = record(tiny, anchors=True)
    batch["S"][3, 1] = torch.nan  # no score: its group is masked
    _, _, log, _ = first_step(tiny_folder, batch, settings(tmp_path, method="dagrpo"))
    A = dagrpo.group_advantages(batch["R"])
    keep, signal, lengths = dagrpo.rectification_mask(A, batch["S"]), A != 0, list(map(len, batch["tokens"]))
    sampled = [n for n in range(16) if n % G != G - 1]
    expected = {
        "kept_positive": keep[A > 0].float().mean(), "kept_negative": keep[A < 0].float().mean(),
        "kept_fraction": keep[signal].float().mean(), "anchors": 4, "anchors_kept": keep[:, -1].float().mean(),
        "no_signal_groups": 0, "masked_groups": (~keep.any(dim=1)).sum(), "unscored_groups": 1,
        "scorer_calls": signal.sum(), "responses": 12, "tokens": sum(lengths[n] for n in sampled),
        "reward": batch["R"][:, :-1].mean(), "response_length": sum(lengths[n] for n in sampled) / 12,
        "ended_fraction": 8 / 12,
    }  # fmt: skip
    assert {name: log[f"dagrpo/{name}"] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )
    assert 0 < expected["kept_positive"] < 1


def test_a_group_without_signal_costs_no_score(tiny, tiny_folder, tmp_path):
    batch, asked = record(tiny), []
    trainer = make(tiny_folder, batch, settings(tmp_path, method="dagrpo_on"))
    scores, trainer.scorer = trainer.scorer, lambda **columns: asked.extend(columns["question"]) or scores(**columns)
    trainer.train()
    log = trainer.state.log_history[0]
    assert len(asked) == 12 == log["dagrpo/scorer_calls"] and log["dagrpo/no_signal_groups"] == 1
    assert batch["problems"][2].question not in asked


def test_a_demonstration_that_is_too_long_leaves_its_place_to_a_rollout(tiny, tiny_folder, tmp_path):
    batch = record(tiny, anchors=True)
    longest = max(len(batch["tokens"][n]) for n in range(G - 1, 16, G))
    short = settings(tmp_path, method="dagrpo", max_completion_length=longest - 1)
    _, _, log, trainer = first_step(tiny_folder, batch, short)
    assert log["dagrpo/anchors"] == 3 and trainer.sampled == 13


def test_with_vllm_all_rows_are_asked_for_and_anchors_have_no_log_probs(tiny, tiny_folder, tmp_path):
    batch = record(tiny, anchors=True)
    trainer = make(tiny_folder, batch, settings(tmp_path, method="dagrpo", max_steps=1))
    trainer.model.train()
    trainer.rows, trainer.use_vllm = range(16), True
    trainer._anchors = [batch["tokens"][n] if n % G == G - 1 else None for n in range(16)]
    tokens, logp = trainer._generate_single_turn([[5]] * 16, None, {}, G)
    assert trainer.asked == 16 and tokens == batch["tokens"]
    assert all((set(row) == {None}) == (n % G == G - 1) and len(row) == len(tokens[n]) for n, row in enumerate(logp))


def test_what_ends_a_turn_in_the_chat_template_ends_responses_and_anchors(tiny, tmp_path):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<unk>\n{% endfor %}"
    policy = replace(tiny, tokenizer=tokenizer)
    save_policy(policy, tmp_path / "model")
    trainer = make(tmp_path / "model", record(policy, anchors=True), settings(tmp_path, method="dagrpo"))
    ends = [tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert trainer.eos_token_ids == trainer.generation_config.eos_token_id == ends
    trainer.train()
    last = [
        int(tokens[mask.bool()][-1])
        for batch in trainer._buffered_inputs
        for tokens, mask, anchor in zip(
            batch["completion_ids"], batch["completion_mask"], batch["is_anchor"], strict=True
        )
        if anchor
    ]
    assert last == [ends[0]] * 4


def test_this_projects_scorers_and_chats_are_taken():
    problem = tasks.solve("12+5-3=", "2")
    columns = {name: [getattr(problem, name)] * 2 for name in ("question", "answer", "demo", "level")}
    chat = [[{"role": "assistant", "content": text}] for text in ("12+5=17;17-3=14;#14", "#9")]
    assert trl_dagrpo.as_function(scoring.rule_scores)(completions=chat, **columns) == [10.0, 1.0]
    assert trl_dagrpo.right(completions=["#14", "#9"], answer=["14", "14"]) == [1.0, 0.0]
    assert trl_dagrpo.to_dataset([problem], [None], chat=True)[0]["prompt"] == [{"role": "user", "content": "12+5-3="}]

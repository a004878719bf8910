"""train.py from end to end on a tiny policy: every method, determinism, and what is written."""

import json

import pytest
import torch
from helpers import both_paths, groups_of, metrics, run, weights
from safetensors.torch import load_file

import dagrpo
import rollout
import scoring
import tasks
import train
from policy import load_policy

pytestmark = pytest.mark.usefixtures("even_is_right")


def test_bf16_changes_the_products_but_not_the_weights_that_are_saved(tiny_folder, tmp_path):
    exact = run(tiny_folder, tmp_path / "fp32", steps=1)
    rows = run(tiny_folder, tmp_path / "bf16", "--bf16", steps=1)
    assert rows[0]["grad_norm"] != exact[0]["grad_norm"] and float(rows[0]["grad_norm"]) > 0
    saved = load_file(tmp_path / "bf16" / "checkpoint" / "model" / "model.safetensors")
    assert {x.dtype for x in saved.values()} == {torch.float32}


@pytest.mark.parametrize("method", dagrpo.METHODS)
def test_every_method_trains_and_leaves_a_model_that_loads(tiny_folder, tmp_path, method):
    rows = run(tiny_folder, tmp_path / "run", method=method)
    assert [row["step"] for row in rows] == ["1", "2"]
    before = torch.cat([p.detach().flatten() for p in load_policy(str(tiny_folder)).model.parameters()])
    moved = not torch.equal(before, weights(tmp_path / "run"))
    assert moved == any(float(row["grad_norm"]) > 0 for row in rows)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == method and config["seed"] == 0


def test_a_step_without_signal_is_one_with_gradient_zero(tiny_folder, tmp_path, monkeypatch):
    """AdamW's momentum moves on in it; a parameter without a gradient would be left out."""
    run(tiny_folder, tmp_path / "run", steps=1, method="dr_grpo")
    before = weights(tmp_path / "run")
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: False)
    rows = run(tiny_folder, tmp_path / "run", "--resume", steps=2, method="dr_grpo")
    assert float(rows[0]["grad_norm"]) > 0 and float(rows[1]["grad_norm"]) == 0
    assert not torch.equal(before, weights(tmp_path / "run"))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_folder, tmp_path):
    first = run(tiny_folder, tmp_path / "a")
    assert first == run(tiny_folder, tmp_path / "b")
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert first != run(tiny_folder, tmp_path / "c", "--seed", "1")


@pytest.mark.parametrize("method", ["dagrpo", "luffy", "grpo", "gtpo", "dapo", "sft"])
def test_the_micro_batch_changes_no_weights(tiny_folder, tmp_path, method):
    """To fp32 rounding: Adam divides by a gradient's own size, so tiny gradients show rounding at the rate's scale."""
    run(tiny_folder, tmp_path / "one", "--micro-batch-tokens", "100000", method=method, steps=1)
    run(tiny_folder, tmp_path / "many", "--micro-batch-tokens", "100", method=method, steps=1)
    one, many = metrics(tmp_path / "one")[0], metrics(tmp_path / "many")[0]
    assert float(one["grad_norm"]) == pytest.approx(float(many["grad_norm"]), rel=2e-5)
    assert float(one["loss"]) == pytest.approx(float(many["loss"]), abs=2e-6)


def test_metrics_can_be_recounted_from_the_rollouts(tiny_folder, tmp_path):
    rows = run(tiny_folder, tmp_path / "run", "--delta", "2", steps=3)
    for row in rows:
        groups = [g for g in groups_of(tmp_path / "run") if g["step"] == int(row["step"])]
        flat = [
            dict(zip(("r", "s", "a", "k", "anchor", "tokens"), values, strict=True), level=g["level"])
            for g in groups
            for values in zip(g["R"], g["S"], g["A"], g["keep"], g["is_anchor"], g["tokens"], strict=True)
        ]
        sampled, signal = [x for x in flat if not x["anchor"]], [x for x in flat if x["a"]]
        assert float(row["reward"]) == pytest.approx(sum(x["r"] for x in sampled) / len(sampled), rel=1e-5)
        mean_length = sum(len(x["tokens"]) for x in sampled) / len(sampled)
        assert float(row["response_length"]) == pytest.approx(mean_length, rel=1e-5)
        assert int(row["anchors"]) == 4 == len(flat) - len(sampled)
        assert int(row["responses"]) == len(sampled) == 12
        assert int(row["tokens"]) == sum(len(x["tokens"]) for x in sampled)
        assert int(row["no_signal_groups"]) == sum(not any(g["A"]) for g in groups)
        if signal:
            assert float(row["kept_fraction"]) == pytest.approx(sum(x["k"] for x in signal) / len(signal), rel=1e-5)


def test_rollouts_hold_what_the_functions_say(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", "--delta", "2", steps=1)
    for group in groups_of(tmp_path / "run"):
        problem = tasks.solve(group["question"], group["level"])
        texts = zip(group["responses"], group["ended"], strict=True)
        assert group["R"] == [float(scoring.verify(text, problem.answer, ended)) for text, ended in texts]
        assert group["S"] == [scoring.score(text, problem) for text in group["responses"]]
        A = dagrpo.group_advantages(torch.tensor([group["R"]]))
        torch.testing.assert_close(torch.tensor([group["A"]]), A)
        keep = dagrpo.rectification_mask(A, torch.tensor([group["S"]]), 2.0)
        assert group["keep"] == keep[0].tolist()
        assert group["responses"][-1] == group["demonstration"] and group["is_anchor"] == [False] * 3 + [True]
        trained = any(group["A"]) and group["keep"][-1]
        assert all((x is not None) == trained for x in group["logp"][-1]), "an anchor's log-probs are the learner's"


def test_a_soft_mask_weighs_what_is_trained_and_not_what_is_recorded(tiny_folder, tmp_path, even_is_right):
    """At delta 9, the largest gap there can be, no weight is above a half."""
    norms, recorded = [], []
    for name in ("dagrpo_soft", "dr_grpo"):
        (row,) = run(tiny_folder, tmp_path / name, "--delta", "9", method=name, steps=1)
        norms.append(float(row["grad_norm"]))
        recorded.append([group["A"] for group in groups_of(tmp_path / name)])
    assert 0 < norms[0] < 0.5 * norms[1] and recorded[0] == recorded[1]


def test_single_update_ratios_are_one_and_the_second_of_two_updates_is_not(tiny_folder, tmp_path):
    one = run(tiny_folder, tmp_path / "one", "--updates-per-batch", "1", method="gspo", steps=3)
    two = run(tiny_folder, tmp_path / "two", "--updates-per-batch", "2", method="gspo", steps=3)
    assert all(float(row["clip_fraction"]) == 0 for row in one)
    assert any(float(row["clip_fraction"]) > 0 for row in two)


def test_dapo_counts_every_response_that_it_samples_again(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: False)
    rows = run(tiny_folder, tmp_path / "run", method="dapo", steps=1)
    assert int(rows[0]["responses"]) > 16, "all are wrong: groups are sampled again"
    assert int(rows[0]["responses"]) == 16 * 4
    assert len(groups_of(tmp_path / "run")) == 4


def test_hard_anchors_stand_only_where_no_rollout_is_right(tiny_folder, tmp_path):
    rows = run(tiny_folder, tmp_path / "run", "--anchor-when", "hard", steps=2)
    assert all(int(row["responses"]) == 16 for row in rows), "G are sampled"
    for group in groups_of(tmp_path / "run"):
        rollout_right = any(r for r, anchor in zip(group["R"], group["is_anchor"], strict=True) if not anchor)
        assert group["is_anchor"][-1] == (not rollout_right) and len(group["R"]) == 4


def test_an_extra_anchor_makes_the_groups_one_larger(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", "--extra-anchor", steps=1)
    assert all(g["is_anchor"] == [False] * 4 + [True] for g in groups_of(tmp_path / "run"))


def test_kl_to_the_start_is_zero_at_first_and_pulls_later(tiny_folder, tmp_path):
    free = run(tiny_folder, tmp_path / "free", "--updates-per-batch", "1", method="rloo", steps=2)
    held = run(tiny_folder, tmp_path / "held", "--updates-per-batch", "1", "--kl-beta", "10", method="rloo", steps=2)
    assert held[0]["reward"] == free[0]["reward"]
    assert float(held[0]["grad_norm"]) == pytest.approx(float(free[0]["grad_norm"]), rel=1e-3), "k3' = 0 at the start"
    assert held[1]["grad_norm"] != free[1]["grad_norm"]


def test_sft_goes_before_any_method(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "sft", method="sft", steps=3)
    begin = weights(tmp_path / "sft")
    out = tmp_path / "then"
    train.main(["--method", "grpo", "--steps", "1", "--out", str(out), "--init-from", str(tmp_path / "sft"),
                "--batch-prompts", "2", "--group-size", "2", "--lr", "1e-12"])  # fmt: skip
    torch.testing.assert_close(weights(out), begin, atol=1e-9, rtol=0)


@pytest.mark.usefixtures("even_is_right")
@both_paths
def test_a_recorded_change_is_the_log_prob_after_the_step_minus_before(tiny_folder, tmp_path, path):
    """Of every token of every row; of an anchor that was masked it is not known what it was before."""
    flags = ["--record-changes", *(["--plain"] if path is rollout else [])]
    run(tiny_folder, tmp_path / "run", *flags, steps=1)
    policy = load_policy(str(tmp_path / "run"))
    for group in groups_of(tmp_path / "run"):
        prompt = policy.encode_prompt(group["question"])
        for ids, before, change in zip(group["tokens"], group["logp"], group["change"], strict=True):
            logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            after = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
            for now, was, moved in zip(after, before, change, strict=True):
                assert (moved is None) == (was is None)
                assert was is None or moved == pytest.approx(now - was, abs=5e-4)
    run(tiny_folder, tmp_path / "without", *flags[1:], steps=1)
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "without")), "looking changes nothing"

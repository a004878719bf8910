"""What only a GPU runs: graphs of decoding steps, products in bf16, tensors on two devices. Skipped without one."""

import csv
from dataclasses import replace

import pytest
import torch

import eval as evaluation
import fast
import train
from analysis import conflict
from analysis.experiments import controls
from dagrpo import METHODS
from fast import cuda_graphs, learning, prompt_cache
from policy import load_policy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")]
LENGTH = 40


@pytest.fixture
def policy(tiny_folder):
    return load_policy(str(tiny_folder))


def sample(policy, problems, **further):
    torch.manual_seed(3)
    return fast.sample_groups(policy, problems, [8] * len(problems), LENGTH, **further)


@pytest.mark.parametrize("room", [512, 20])
def test_a_replayed_step_is_the_step(policy, problems, monkeypatch, room):
    """The same kernels on the same numbers: equal to the last bit, also recorded anew when rows have left."""
    made, record = [], cuda_graphs.record
    monkeypatch.setattr(prompt_cache, "STATIC_ROOM", room)
    monkeypatch.setattr(cuda_graphs, "record", lambda *given: made.append(1) or record(*given))
    replayed = sample(policy, problems)
    assert len(made) > 1 and "forward" not in vars(policy.model)
    monkeypatch.setattr(cuda_graphs, "WORTH_STEPS", LENGTH + 1)
    made.clear()
    plain = sample(policy, problems)
    assert not made and torch.equal(replayed.tokens, plain.tokens) and torch.equal(replayed.logp, plain.logp)


def test_samples_are_those_of_the_growing_cache(policy, problems, monkeypatch):
    exact = replace(policy, autocast_dtype=None)
    static = sample(exact, problems)
    monkeypatch.setattr(cuda_graphs, "cache_kind", lambda *_: prompt_cache.Growing)
    growing = sample(exact, problems)
    assert torch.equal(static.tokens, growing.tokens)
    torch.testing.assert_close(static.logp, growing.logp, atol=1e-4, rtol=0)


@pytest.mark.parametrize("autocast, off", [(None, 1e-4), (torch.bfloat16, 0.1)])
def test_sampled_log_probs_are_the_learners(policy, problems, autocast, off):
    policy = replace(policy, autocast_dtype=autocast)
    rollouts = sample(policy, problems)
    with torch.no_grad():
        logp, _ = fast.token_logprobs(policy, rollouts, torch.arange(len(rollouts.texts), device=policy.device))
    torch.testing.assert_close(rollouts.logp, logp, atol=off, rtol=0)


def test_a_prompt_that_is_run_once_changes_no_gradient(policy, problems, monkeypatch):
    exact = replace(policy, autocast_dtype=None)
    rollouts = sample(exact, problems)
    rows = torch.arange(len(rollouts.texts), device=exact.device)

    def gradient(cost):
        monkeypatch.setattr(learning, "A_PASS", cost)
        exact.model.zero_grad()
        fast.token_logprobs(exact, rollouts, rows)[0].sum().backward()
        return torch.cat([p.grad.flatten() for p in exact.model.parameters()])

    small, large = (learning.worth_a_pass(policy, rollouts.group, P) for P in (100, 10**12))
    assert large and not small
    once = gradient(cost=0)
    assert (once - gradient(cost=1e30)).norm() <= 1e-5 * once.norm()


SMALL = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--show-every", "0", "--lr", "1e-3"]


def run(folder, out, *flags, method="dagrpo"):
    train.main(["--method", method, "--model", str(folder), "--out", str(out), *SMALL, *flags])
    return read(out)


def read(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_is_resumed_and_evaluated(tiny_folder, tmp_path, method):
    run(tiny_folder, tmp_path, "--steps", "2", method=method)
    rows = run(tiny_folder, tmp_path, "--steps", "3", "--resume", method=method)
    assert len(rows) == 3 and all(float(row["grad_norm"]) >= 0 for row in rows)
    evaluation.main(["--model", str(tmp_path), "--per-level", "2", "--k", "2"])


OTHER = ["--kl-beta 0.1", "--gradient-checkpointing", "--micro-batch-tokens 200", "--overlong-buffer 8"]
OTHER += ["--anchor-when hard", "--extra-anchor", "--updates-per-batch 1", "--plain"]


@pytest.mark.parametrize("flags", OTHER)
@pytest.mark.parametrize("shared", [False, True])
def test_other_ways_through_a_step(tiny_folder, tmp_path, monkeypatch, flags, shared):
    monkeypatch.setattr(learning, "A_PASS", 0 if shared else 1e30)
    assert float(run(tiny_folder, tmp_path, "--steps", "2", *flags.split())[1]["grad_norm"]) > 0


@pytest.mark.parametrize(
    "name, method", [("random_mask", "dagrpo"), ("score_noise=1", "dagrpo"), ("score_as_reward", "luffy")]
)
def test_controls(tiny_folder, tmp_path, name, method):
    controls.run(
        name, ["--method", method, "--model", str(tiny_folder), "--out", str(tmp_path), *SMALL, "--steps", "2"]
    )
    assert float(read(tmp_path)[1]["grad_norm"]) > 0


@pytest.mark.extra
@pytest.mark.parametrize("flags", [[], ["--kl-beta", "0.1"], ["--gradient-checkpointing"]])
def test_lora_on_a_base_in_bf16(tiny_folder, tmp_path, flags):
    pytest.importorskip("peft", reason="needs the extra peft")
    rows = run(tiny_folder, tmp_path, "--steps", "2", "--lora-rank", "4", *flags)
    assert float(rows[1]["grad_norm"]) > 0


def test_gradients_of_groups_are_drawn(tiny_folder, tmp_path):
    conflict.main(["--model", str(tiny_folder), "--problems", "3", "--out", str(tmp_path)])
    assert (tmp_path / "groups.png").exists()

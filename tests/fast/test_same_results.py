"""rollout.py and fast/ are one thing twice: the same greedy tokens, log-probs and gradients of an update.

That both draw from the trained distribution is in tests/test_rollout.py.
"""

from dataclasses import replace

import pytest
import torch
from helpers import gradient, small_gpt2

import fast
import rollout
import train
from anchors import mix, prepare_anchors
from fast import learning
from harness.config import parse
from tasks import solve

PATHS = (rollout, fast)
PROBLEMS = [solve("1+2=", "1"), solve("12+13-14+15=", "3"), solve("7-5=", "1"), solve("20-3+18=", "3")]
RAGGED = [3, 4, 3, 4]  # rollouts: the second and the last prompt have no anchor


@pytest.fixture(params=["llama", "gpt2"])
def policy(request, tiny):
    return tiny if request.param == "llama" else small_gpt2(tiny.tokenizer)


@pytest.fixture
def demonstrations(tiny):
    prepared, _ = prepare_anchors(tiny, PROBLEMS, max_new_tokens=40)
    return [anchor if count == 3 else None for anchor, count in zip(prepared, RAGGED, strict=True)]


def test_greedy_tokens_are_identical(policy):
    plain, quick = (path.sample_groups(policy, PROBLEMS, [1, 2, 1, 1], 40, greedy=True) for path in PATHS)
    assert len(set(plain.lengths.tolist())) > 1 or not plain.ended.any()
    assert torch.equal(plain.tokens, quick.tokens) and torch.equal(plain.mask, quick.mask)
    assert plain.texts == quick.texts and torch.equal(plain.ended, quick.ended)
    torch.testing.assert_close(plain.logp, quick.logp, atol=2e-5, rtol=0)
    torch.testing.assert_close(plain.entropy, quick.entropy, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropies_are_equal(policy, demonstrations, temperature):
    """Of rollouts and anchors, all rows and some."""
    rollouts = fast.sample_groups(policy, PROBLEMS, RAGGED, 30, temperature)
    rollouts = mix(policy, rollouts, demonstrations, group_size=4)
    assert rollouts.is_anchor.sum() == 2 and len(set(rollouts.lengths.tolist())) > 2
    for rows in (torch.arange(16), torch.tensor([7, 3, 12, 11])):
        found = [path.token_logprobs(policy, rollouts, rows, temperature, with_entropy=True) for path in PATHS]
        for plain, quick in zip(*found, strict=True):
            assert plain.shape == (len(rows), rollouts.lengths[rows].max()) and plain.any()
            torch.testing.assert_close(plain, quick, atol=2e-5, rtol=0)


UPDATES = {
    "dagrpo": ([], {}),
    "an entropy bonus": ([], {"entropy_bonus": 0.1}),
    "KL to the start": (["--kl-beta", "0.5"], {}),
    "gradient checkpointing": (["--gradient-checkpointing"], {}),
    "another temperature": (["--temperature", "0.7"], {}),
    "one update": (["--updates-per-batch", "1"], {}),
    "shaped anchors, no mask": (["--method", "luffy"], {}),
    "weights of tokens": (["--method", "gtpo"], {}),
    "ratios of sequences": (["--method", "gspo"], {}),
    "all at once": (["--kl-beta", "0.5", "--gradient-checkpointing", "--temperature", "0.7"], {"entropy_bonus": 0.1}),
}
LORA = {
    "LoRA": (["--lora-rank", "4"], {}),
    "LoRA, all at once": (["--lora-rank", "4", *UPDATES["all at once"][0]], {"entropy_bonus": 0.1}),
}


@pytest.mark.usefixtures("even_is_right")
@pytest.mark.parametrize("budget", [10**6, 90])
@pytest.mark.parametrize("name", [*UPDATES, *(pytest.param(name, marks=pytest.mark.extra) for name in LORA)])
def test_the_gradients_of_an_update_are_equal(tiny_folder, demonstrations, monkeypatch, name, budget):
    """Through train.backward: prompts and responses of different lengths, two groups with anchors, ratios that clip."""
    flags, choices = (UPDATES | LORA)[name]
    if name in LORA:
        pytest.importorskip("peft")
    argv = ["--method", "dagrpo", "--out", "x", "--model", str(tiny_folder), "--batch-prompts", "4", "--delta", "1"]
    argv += ["--group-size", "4", "--max-new-tokens", "40", "--micro-batch-tokens", str(budget)]
    run = train.start(parse([*argv, *flags]))
    run.recipe = replace(run.recipe, **choices)
    groups = train.collect(run, PROBLEMS, demonstrations if run.recipe.anchors else [None] * 4)
    with torch.no_grad():  # as if a first update had moved it
        for parameter in run.policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    gradients, figures = [], []

    def optimizer_step(run, loss):
        gradients.append(gradient(run.policy))
        run.optimizer.zero_grad()
        return 1.0, True

    monkeypatch.setattr(train, "optimizer_step", optimizer_step)
    for run.path in PATHS:
        figures.append(train.learn(run, groups)[1])
    updates = run.config.updates_per_batch
    assert len(gradients) == 2 * updates and all(g.norm() > 0 for g in gradients)
    assert learning.one_pass_works(run.policy), "not the plain pass twice"
    for plain, quick in zip(gradients[:updates], gradients[updates:], strict=True):
        assert (plain - quick).norm() <= 1e-5 * plain.norm()
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-5, abs=1e-7)
    assert figures[0]["clip_fraction"] == figures[1]["clip_fraction"]
    assert (figures[0]["clip_fraction"] > 0) == (updates > 1 and run.recipe.clip[0] > 0)

"""packed.py: the same products but for rounding, only where they pay, and nothing left behind."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fast
from fast import packed
from policy import Policy

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkl, "_mkl_linear"), reason="this torch was built without MKL")


@pytest.fixture
def worthwhile(monkeypatch):
    """However small the model and its layers are."""
    monkeypatch.setattr(packed, "WORTH_WEIGHTS", 0)
    monkeypatch.setattr(packed, "WORTH_LAYER", 0)


@pytest.fixture
def biased(tiny):
    """A model whose linear layers have a bias, and fewer key heads than query heads."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return Policy(model, tiny.tokenizer)


def replaced(policy):
    return [name for name, module in policy.model.named_modules() if "forward" in vars(module)]


@torch.no_grad()
def test_products_are_the_same_but_for_rounding_whatever_the_rows(biased, worthwhile):
    ids = torch.randint(4, len(biased.tokenizer), (6, 1))
    plain = biased.model(ids).logits
    with packed.packed(biased, rows=6, steps=100):
        assert len(replaced(biased)) == 2 * 7 + 1
        torch.testing.assert_close(biased.model(ids).logits, plain, atol=1e-5, rtol=0)
        torch.testing.assert_close(biased.model(ids[:4]).logits, plain[:4], atol=1e-5, rtol=0)
    assert not replaced(biased) and torch.equal(biased.model(ids).logits, plain)


def test_small_layers_of_a_large_model_stay_as_they_are(biased, worthwhile, monkeypatch):
    """Three layers of each block have 32 x 64 weights, the others 32 x 32 at most."""
    monkeypatch.setattr(packed, "WORTH_LAYER", 32 * 64)
    with packed.packed(biased, rows=6, steps=100):
        assert {name.split(".")[-1] for name in replaced(biased)} == {"gate_proj", "up_proj", "down_proj"}


def test_an_error_leaves_nothing_behind(tiny, worthwhile):
    with pytest.raises(KeyError), packed.packed(tiny, rows=2, steps=100):
        raise KeyError
    assert not replaced(tiny)


@pytest.mark.parametrize("case", ["a small model", "few steps", "bf16"])
def test_where_it_does_not_pay_nothing_is_done(tiny, monkeypatch, worthwhile, case):
    monkeypatch.setattr(packed, "WORTH_WEIGHTS", 10**6 if case == "a small model" else 0)
    policy = replace(tiny, autocast_dtype=torch.bfloat16 if case == "bf16" else None)
    with packed.packed(policy, rows=2, steps=2 if case == "few steps" else 100):
        assert not replaced(policy)


def test_sampled_log_probs_are_those_of_the_weights_at_that_time(biased, problems, worthwhile):
    """The layout is of one batch: what an update changes between two is in the second."""
    for _ in range(2):
        rollouts = fast.sample_groups(biased, problems, [3, 1, 4], max_new_tokens=30)
        with torch.no_grad():
            logp, _ = fast.token_logprobs(biased, rollouts, torch.arange(8))
            for parameter in biased.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        torch.testing.assert_close(rollouts.logp, logp, atol=2e-5, rtol=0)

"""learning.py: log-probs and gradients of the plain pass from fewer tokens; micro-batches keep prompts together."""

from dataclasses import replace

import pytest
import torch
from helpers import gradient
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
)

import fast
import rollout
from fast import learning
from harness.warm_start import build_tokenizer
from policy import Policy, load_policy, save_policy
from tasks import solve

TOKENIZER = build_tokenizer()
V = len(TOKENIZER)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FALCON = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# config, does one pass over tokens side by side work, are logits what the output layer gives
MODELS = {
    "llama": (LlamaConfig(**SMALL, attention_bias=True), True, True),
    "absolute positions": (GPT2Config(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=2), True, True),
    "experts": (MixtralConfig(**SMALL, num_local_experts=4), True, True),
    "scaled logits": (CohereConfig(**SMALL, logit_scale=0.5), True, False),
    "bounded logits, eager attention": (Gemma2Config(**SMALL, head_dim=8), False, False),
    "a sliding window": (MistralConfig(**SMALL, sliding_window=6), False, True),
    "alibi": (FalconConfig(**FALCON, alibi=True), False, True),
}
PROBLEMS = [solve("1+2=", "1"), solve("12+13-14+15=", "3"), solve("7-5=", "1")]


def build(name):
    torch.manual_seed(1)
    return Policy(AutoModelForCausalLM.from_config(MODELS[name][0]).eval(), TOKENIZER)


def weighted_gradient(path, policy, rollouts, rows, weights):
    """Of log-probs and entropies at temperature 0.7, each token with a weight of its own."""
    policy.model.zero_grad()
    logp, entropy = path.token_logprobs(policy, rollouts, rows, 0.7, with_entropy=True)
    (torch.stack([logp, entropy]) * weights[:, :, : logp.shape[1]]).sum().backward()
    return gradient(policy)


@pytest.mark.parametrize("logits_at_once", [2**24, 100])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_the_plain_passes(tmp_path, monkeypatch, name, checkpointing, logits_at_once):
    """Rows of three prompts in any order, with logits in one part and in many, whether one pass works or not."""
    plain, (_, one_pass, plain_head) = build(name), MODELS[name]
    save_policy(plain, tmp_path / "model")
    policy = load_policy(str(tmp_path / "model"), checkpointing=checkpointing)
    rollouts = rollout.sample_groups(plain, PROBLEMS, [3, 4, 2], max_new_tokens=20)
    rows, weights = torch.tensor([8, 0, 5, 1, 4]), torch.randn(2, 5, 20)
    monkeypatch.setattr(learning, "LOGITS_AT_ONCE", logits_at_once)
    expected = weighted_gradient(rollout, plain, rollouts, rows, weights)
    found = weighted_gradient(fast, policy, rollouts, rows, weights)
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (learning.one_pass_works(policy), learning.output_layer(policy) is not None) == (one_pass, plain_head)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_what_is_sampled_has_the_plain_log_probs(name):
    policy = build(name)
    rollouts = fast.sample_groups(policy, PROBLEMS, [3, 4, 2], max_new_tokens=20)
    logp, entropy = rollout.token_logprobs(policy, rollouts, torch.arange(9), with_entropy=True)
    torch.testing.assert_close(rollouts.logp, logp, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollouts.entropy, entropy, atol=2e-5, rtol=0)


def test_every_token_runs_once_without_padding(tiny, monkeypatch):
    """Four rows of three prompts, one prompt shared: 4 + 12 + 4 prompt tokens and the rows' own."""
    rollouts = rollout.sample_groups(tiny, PROBLEMS, [2, 1, 1], max_new_tokens=20)
    fast.token_logprobs(tiny, rollouts, torch.arange(4))  # one_pass_works has tried it out
    shapes, base = [], tiny.model.base_model.forward

    def spy(input_ids, **inputs):
        shapes.append(tuple(input_ids.shape))
        return base(input_ids=input_ids, **inputs)

    monkeypatch.setattr(tiny.model.base_model, "forward", spy)
    fast.token_logprobs(tiny, rollouts, torch.arange(4))
    prompts = sum(len(tiny.encode_prompt(problem.question)) for problem in PROBLEMS)
    assert shapes == [(1, prompts + int(rollouts.lengths.sum()))]


WRONG = {
    "positions": lambda found: found._replace(positions=torch.arange(found.ids.shape[1])[None]),
    "what is seen": lambda found: found._replace(parts=tuple(part._replace(seen=None) for part in found.parts)),
    "places": lambda found: found._replace(back=found.back.flip(0)),
}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("what", WRONG)
def test_a_pass_that_gives_other_hidden_states_is_noticed_and_rows_run_as_usual(monkeypatch, what, autocast):
    """As of a model that does not hand on what it is given, an untrained one too; its own attention is back then."""
    policy, lay_out = replace(build("llama"), autocast_dtype=autocast), learning.lay_out
    monkeypatch.setattr(learning, "lay_out", lambda *args: WRONG[what](lay_out(*args)))
    rollouts = rollout.sample_groups(policy, PROBLEMS, [2, 2, 2], max_new_tokens=10)
    found, expected = (path.token_logprobs(policy, rollouts, torch.arange(6))[0] for path in (fast, rollout))
    assert not learning.one_pass_works(policy) and policy.model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_autocast_computes_in_bf16(tiny, problems):
    """And is near the plain pass under autocast, as far as bf16 goes."""
    policy = replace(tiny, autocast_dtype=torch.bfloat16)
    rollouts = fast.sample_groups(policy, problems, [4, 4, 4], max_new_tokens=20)
    with torch.no_grad():
        found, plain = (path.token_logprobs(policy, rollouts, torch.arange(12))[0] for path in (fast, rollout))
        exact, _ = fast.token_logprobs(tiny, rollouts, torch.arange(12))
    assert 1e-5 < (found - exact).abs().max() < 0.1 and (found - plain).abs().max() < 0.1


# ---------------------------------------------------------------------------------------- micro-batches


@given(
    groups=st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(1, 50), max_size=8)), min_size=1, max_size=8),
    budget=st.integers(1, 400),
)
def test_micro_batches_hold_every_row_once_and_stay_in_the_budget(groups, budget):
    """A prompt counts once in a batch; a row that is over the budget by itself goes alone."""
    prompts = [prompt for prompt, _ in groups]
    group = [b for b, (_, lengths) in enumerate(groups) for _ in lengths]
    lengths = [length for _, own in groups for length in own]

    def run(batch):
        return sum(prompts[b] for b in {group[i] for i in batch}) + sum(lengths[i] for i in batch)

    batches = learning.pack(group, lengths, prompts, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(run(batch) <= budget or len(batch) == 1 for batch in batches)


def test_rows_of_a_prompt_stay_together_where_they_fit():
    def pack(group, lengths, prompt, budget):
        return learning.pack(group, lengths, [prompt] * 3, budget)

    assert pack([0, 0, 1, 1, 2, 2], [10, 40, 11, 41, 12, 42], 200, budget=290) == [[0, 1], [2, 3], [4, 5]]
    # a row of the second prompt would fit with the first's, but then that prompt would run twice
    assert pack([0, 0, 0, 1, 1, 1], [10] * 6, 20, budget=90) == [[0, 1, 2], [3, 4, 5]]
    assert pack([0, 0, 0, 1], [10] * 4, 20, budget=40) == [[0, 1], [2], [3]], "too many for one batch: cut"


def test_micro_batches_are_of_the_rows_asked_for(tiny, problems):
    rollouts = rollout.sample_groups(tiny, problems, [4, 4, 4], max_new_tokens=20)
    rows = torch.tensor([1, 2, 5, 10, 11])
    prompts, lengths = rollouts.prompt_mask.sum(dim=1), rollouts.lengths
    batches = fast.micro_batches(rollouts, rows, budget=70)
    assert torch.equal(torch.cat(batches), rows) and len(batches) > 1
    for batch in batches:
        assert len(batch) == 1 or prompts[rollouts.group[batch].unique()].sum() + lengths[batch].sum() <= 70

"""rollout.py: the sampled distribution is the trained one, and masks and log-probs do not depend on padding."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

import rollout
from fast import prompt_cache
from harness.warm_start import build_tokenizer
from policy import Policy, load_policy, save_policy
from tasks import solve


def small_gpt2(tokenizer):
    """An architecture with absolute positions: left padding shifts them unless position_ids say otherwise."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    return Policy(GPT2LMHeadModel(config).eval(), tokenizer)


def test_mask_ends_with_the_first_end_token_also_where_pad_is_the_end_token():
    tokens = torch.tensor([[5, 6, 2, 2, 2], [5, 6, 7, 8, 9], [2, 2, 2, 2, 2]])
    mask, ended = rollout.completion_mask(tokens, eos_id=2)
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert ended.tolist() == [True, False, True]


def test_the_end_token_is_trained_where_pad_is_the_end_token(tiny, problems):
    shared = Policy(tiny.model, copy.deepcopy(tiny.tokenizer))
    shared.tokenizer.pad_token = shared.tokenizer.eos_token
    assert shared.pad_id == shared.eos_id
    rollouts = rollout.sample_groups(shared, problems, [8, 8, 8], max_new_tokens=30)
    assert rollouts.ended.any()
    for row in rollouts.ended.nonzero().flatten():
        inside = rollouts.tokens[row][rollouts.mask[row]]
        assert inside[-1] == shared.eos_id and (inside[:-1] != shared.eos_id).all()


def frequencies_match(policy, temperature, draws=4000):
    """Chi-square of sampled first tokens against the softmax that is trained."""
    problem = solve("1+2=", "1")
    rollouts = rollout.sample_groups(policy, [problem], [draws], max_new_tokens=1, temperature=temperature)
    ids = torch.tensor([policy.encode_prompt(problem.question)])
    with torch.no_grad():
        expected = (policy.model(ids).logits[0, -1] / temperature).softmax(0) * draws
    seen = torch.bincount(rollouts.tokens[:, 0], minlength=len(expected)).float()
    common = expected >= 5
    pairs = list(zip(seen[common], expected[common], strict=True))
    pairs.append((seen[~common].sum(), expected[~common].sum()))  # the rare ones together
    chi_square = sum((s - e) ** 2 / e for s, e in pairs if e > 0).item()
    freedom = len(pairs) - 1
    return chi_square < freedom + 4 * math.sqrt(2 * freedom)  # 4 standard deviations


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_follow_the_trained_distribution(tiny, temperature):
    assert frequencies_match(tiny, temperature)


def test_keys_are_kept_as_attention_sees_them(tiny, problems, monkeypatch):
    """Rounded to bf16 once, when stored, instead of at every token: the very same samples."""
    policy, kept = replace(tiny, autocast_dtype=torch.bfloat16), []
    update = prompt_cache.Growing.update

    def spy(layer, *args, **kwargs):
        found = update(layer, *args, **kwargs)
        kept.extend(x.dtype for x in found)
        return found

    monkeypatch.setattr(prompt_cache.Growing, "update", spy)

    def sample():
        torch.manual_seed(3)
        return rollout.sample_groups(policy, problems, [3, 3, 3], max_new_tokens=30)

    once = sample()
    assert set(kept) == {torch.bfloat16}
    monkeypatch.setattr(prompt_cache, "rounded", lambda x: x)
    each_time = sample()
    assert torch.float32 in kept and torch.equal(once.tokens, each_time.tokens)
    assert torch.equal(once.logp, each_time.logp)


def test_samples_ignore_the_models_own_generation_config(tiny):
    """Put such a config in force and the test above fails: top-k 1 alone would always draw the same token."""
    own = GenerationConfig(do_sample=True, top_k=1, temperature=3.0, repetition_penalty=5.0, min_new_tokens=1)
    before, tiny.model.generation_config = tiny.model.generation_config, own
    try:
        assert frequencies_match(tiny, 1.0)
        assert tiny.model.generation_config is own, "sampling must put the model's config back"
    finally:
        tiny.model.generation_config = before


def test_the_vocabulary_is_not_cut_at_fifty():
    """generate's default is a top-k of 50: on a vocabulary of 400 nearly every draw would be missing."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(400)])
    policy = small_gpt2(tokenizer)
    rollouts = rollout.sample_groups(policy, [solve("1+2=", "1")], [500], max_new_tokens=2)
    assert len(set(rollouts.tokens[:, 0].tolist())) > 200


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_recorded_logprobs_and_entropies_are_the_learners(tiny, problems, architecture, temperature):
    policy = tiny if architecture == "llama" else small_gpt2(tiny.tokenizer)
    rollouts = rollout.sample_groups(policy, problems, [4, 4, 4], max_new_tokens=20, temperature=temperature)
    rows = torch.arange(12)
    with torch.no_grad():
        logp, entropy = rollout.token_logprobs(policy, rollouts, rows, temperature, with_entropy=True)
    torch.testing.assert_close(logp, rollouts.logp, atol=2e-5, rtol=0)
    torch.testing.assert_close(entropy.masked_fill(~rollouts.mask, 0), rollouts.entropy, atol=2e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_padded_rows_logprobs_are_those_of_the_row_alone(tiny, architecture):
    policy = tiny if architecture == "llama" else small_gpt2(tiny.tokenizer)
    both = [solve("1+2=", "1"), solve("12+13-14+15=", "3")]
    rollouts = rollout.sample_groups(policy, both, [2, 2], max_new_tokens=20)
    padded, _ = rollout.token_logprobs(policy, rollouts, torch.arange(4))
    for row in range(4):
        prompt = policy.encode_prompt(both[rollouts.group[row]].question)
        completion = rollouts.tokens[row][rollouts.mask[row]].tolist()
        logits = policy.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        torch.testing.assert_close(padded[row, : len(completion)], alone, atol=2e-5, rtol=0)


def plain_logprobs(policy, rollouts, rows, temperature):
    """What token_logprobs must equal: whole rows through the whole model, logits of every position, nothing shared."""
    length = int(rollouts.lengths[rows].max())
    tokens, mask = rollouts.tokens[rows, :length], rollouts.mask[rows, :length]
    ids = torch.cat([rollouts.prompt_ids[rollouts.group[rows]], tokens], dim=1)
    attention = torch.cat([rollouts.prompt_mask[rollouts.group[rows]], mask], dim=1).long()
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = policy.model(ids, attention_mask=attention, position_ids=positions, use_cache=False).logits
    logp = (logits[:, -length - 1 : -1] / temperature).log_softmax(-1)
    chosen = logp.gather(2, tokens[:, :, None]).squeeze(2).masked_fill(~mask, 0.0)
    return chosen, -(logp.exp() * logp).sum(-1).masked_fill(~mask, 0.0)


@pytest.mark.parametrize("logits_at_once, share", [(2**24, True), (100, True), (2**24, False)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradients_equal_the_plain_passes(
    tiny, tmp_path, monkeypatch, architecture, checkpointing, logits_at_once, share
):
    """With every technique on: prompts once, logits of the mask's positions only and in parts, checkpointing."""
    plain = tiny if architecture == "llama" else small_gpt2(tiny.tokenizer)
    save_policy(plain, tmp_path / "model")
    policy = load_policy(str(tmp_path / "model"), checkpointing=checkpointing)
    problems = [solve("1+2=", "1"), solve("12+13-14+15=", "3"), solve("7-5=", "1")]
    rollouts = rollout.sample_groups(policy, problems, [3, 4, 2], max_new_tokens=20)
    rows = torch.tensor([8, 0, 5, 1, 4])
    weights = torch.randn(2, 5, 20)
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", logits_at_once)
    gradients = []
    for which, function in ((plain, plain_logprobs), (policy, rollout.token_logprobs)):
        extra = {"with_entropy": True, "share": share} if function is rollout.token_logprobs else {}
        which.model.zero_grad()
        logp, entropy = function(which, rollouts, rows, 0.7, **extra)
        (torch.stack([logp, entropy]) * weights[:, :, : logp.shape[1]]).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in which.model.parameters()]))
    assert gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_a_models_own_scaling_of_its_logits_is_kept(tiny, problems):
    """Of such a model logits are more than what the output layer makes of hidden states, and that has to be noticed."""
    config = CohereConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, logit_scale=0.5,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    policy = Policy(CohereForCausalLM(config).eval(), tiny.tokenizer)
    assert policy.head is None and tiny.head is not None
    rollouts = rollout.sample_groups(policy, problems, [2, 2, 2], max_new_tokens=10)
    with torch.no_grad():
        expected, _ = plain_logprobs(policy, rollouts, torch.arange(6), 1.0)
        logp, _ = rollout.token_logprobs(policy, rollouts, torch.arange(6))
    torch.testing.assert_close(logp, expected, atol=2e-5, rtol=0)


def test_a_sliding_window_is_kept_with_and_without_checkpointing(tiny, tmp_path):
    """Its layers keep transformers' own cache, which checkpointing would write to twice: then rows run whole."""
    config = MistralConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, sliding_window=6,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = Policy(MistralForCausalLM(config).eval(), tiny.tokenizer)
    save_policy(plain, tmp_path / "model")
    for checkpointing in (False, True):
        policy = load_policy(str(tmp_path / "model"), checkpointing=checkpointing)
        rollouts = rollout.sample_groups(policy, [solve("1+2+13-4=", "1")], [4], max_new_tokens=12)
        expected, _ = plain_logprobs(plain, rollouts, torch.arange(4), 1.0)
        torch.testing.assert_close(rollouts.logp, expected.detach(), atol=2e-5, rtol=0)
        logp, _ = rollout.token_logprobs(policy, rollouts, torch.arange(4))
        torch.testing.assert_close(logp, expected, atol=2e-5, rtol=0)
        logp.sum().backward()
        plain.model.zero_grad()
        expected.sum().backward()
        for mine, theirs in zip(policy.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_checkpointing_does_not_turn_dropout_on(tiny_folder):
    policy = load_policy(str(tiny_folder), checkpointing=True)
    assert not policy.model.training
    assert not any(m.training for m in policy.model.modules() if isinstance(m, torch.nn.Dropout))


def test_rows_that_ended_leave_the_batch_and_change_no_greedy_response(tiny, problems, monkeypatch):
    """Greedy responses of rows together are those of each row alone; and some rows have left before others ended."""
    sizes, generate = [], rollout._generate

    def spy(policy, ids, *rest):
        sizes.append(len(ids))
        return generate(policy, ids, *rest)

    monkeypatch.setattr(rollout, "_generate", spy)
    sampled = rollout.sample_groups(tiny, problems, [8, 8, 8], max_new_tokens=40)
    assert len(sizes) > 2 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 24
    assert (sampled.ended | (sampled.lengths == 40)).all()
    together = rollout.sample_groups(tiny, problems, [1, 1, 1], max_new_tokens=40, greedy=True)
    for b, problem in enumerate(problems):
        alone = rollout.sample_groups(tiny, [problem], [1], max_new_tokens=40, greedy=True)
        assert alone.texts[0] == together.texts[b]


def test_rows_can_be_asked_for_in_any_order_and_number(tiny, problems):
    rollouts = rollout.sample_groups(tiny, problems, [3, 0, 2], max_new_tokens=15)
    assert rollouts.group.tolist() == [0, 0, 0, 2, 2]
    everything, _ = rollout.token_logprobs(tiny, rollouts, torch.arange(5))
    for rows in ([4, 0], [2], [3, 1, 2]):
        some, _ = rollout.token_logprobs(tiny, rollouts, torch.tensor(rows))
        torch.testing.assert_close(some, everything[rows, : some.shape[1]], atol=2e-5, rtol=0)


def test_texts_are_the_tokens_without_what_follows_the_end(tiny, problems):
    rollouts = rollout.sample_groups(tiny, problems, [4, 4, 4], max_new_tokens=25)
    special = set(tiny.tokenizer.all_special_ids)
    for n, text in enumerate(rollouts.texts):
        inside = [t for t in rollouts.tokens[n][rollouts.mask[n]].tolist() if t not in special]
        assert text == "".join(tiny.tokenizer.convert_ids_to_tokens(inside))


def test_concat_keeps_groups_together_and_the_second_part_last(tiny, problems):
    first = rollout.sample_groups(tiny, problems, [2, 1, 2], max_new_tokens=8)
    second = rollout.sample_groups(tiny, problems, [1, 1, 0], max_new_tokens=20)
    both = rollout.concat(first, second, tiny.pad_id)
    assert both.group.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert [both.texts[i] for i in (2, 4)] == second.texts
    assert both.lengths.sum() == first.lengths.sum() + second.lengths.sum()


@given(
    rows=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=40),
    prompt_tokens=st.integers(0, 60),
    budget=st.integers(1, 400),
)
def test_micro_batches_hold_every_row_once_and_stay_in_the_budget(rows, prompt_tokens, budget):
    lengths, group = map(torch.tensor, zip(*rows, strict=True))

    def run(batch):
        return prompt_tokens * len(set(group[batch].tolist())) + len(batch) * int(lengths[batch].max())

    batches = rollout.micro_batches(lengths, budget, group, prompt_tokens)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(rows)))
    assert all(run(batch) <= budget or len(batch) == 1 for batch in batches)


def test_micro_batches_keep_long_prompts_together_and_sort_short_ones_by_length():
    lengths, group = torch.tensor([10, 40, 11, 41, 12, 42]), torch.tensor([0, 0, 1, 1, 2, 2])
    long = rollout.micro_batches(lengths, budget=290, group=group, prompt_tokens=200)
    assert [group[batch].unique().tolist() for batch in long] == [[0], [1], [2]]
    short = rollout.micro_batches(lengths, budget=140, group=group, prompt_tokens=1)
    assert [lengths[batch].tolist() for batch in short] == [[10, 11, 12], [40, 41, 42]]
    # five rows of the first prompt's eight fit beside the second's, which would run the first prompt twice
    whole = rollout.micro_batches(torch.full((16,), 64), budget=1024, group=torch.arange(16) // 8, prompt_tokens=160)
    assert [batch.tolist() for batch in whole] == [list(range(8)), list(range(8, 16))]

"""rollout.py, and what must hold on the fast path too: what is sampled is what is trained, and padding is not seen.

What only fast/ has (caches, packing, logits in parts) is tested in tests/fast.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import both_paths, small_gpt2
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

import rollout
from harness.warm_start import build_tokenizer
from policy import Policy
from tasks import solve

architectures = pytest.mark.parametrize("architecture", ["llama", "gpt2"])


def policy_of(architecture, tiny):
    return tiny if architecture == "llama" else small_gpt2(tiny.tokenizer)


def next_logits(policy, ids):
    """What the model says after these tokens alone: (V,)."""
    with torch.no_grad():
        return policy.model(torch.tensor([ids])).logits[0, -1]


# ---------------------------------------------------------------------------------------- masks and end tokens


def test_mask_ends_with_the_first_end_token_also_where_pad_is_the_end_token():
    tokens = torch.tensor([[5, 6, 2, 2, 2], [5, 6, 7, 8, 9], [2, 2, 2, 2, 2]])
    mask, ended = rollout.completion_mask(tokens, end_ids=[2])
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert ended.tolist() == [True, False, True]


@both_paths
def test_the_end_token_is_trained_where_pad_is_the_end_token(path, tiny, problems):
    shared = Policy(tiny.model, copy.deepcopy(tiny.tokenizer))
    shared.tokenizer.pad_token = shared.tokenizer.eos_token
    assert shared.pad_id == shared.eos_id
    rollouts = path.sample_groups(shared, problems, [8, 8, 8], max_new_tokens=30)
    assert rollouts.ended.any()
    for row in rollouts.ended.nonzero().flatten():
        inside = rollouts.tokens[row][rollouts.mask[row]]
        assert inside[-1] == shared.eos_id and (inside[:-1] != shared.eos_id).all()
    logp, _ = path.token_logprobs(shared, rollouts, torch.arange(24))
    ends = rollouts.mask & (rollouts.tokens == shared.eos_id)
    assert ends.any() and (logp[ends] < 0).all() and not logp[~rollouts.mask].any()


@both_paths
def test_every_row_ends_with_its_end_token_or_at_the_limit(path, tiny, problems):
    rollouts = path.sample_groups(tiny, problems, [8, 8, 8], max_new_tokens=12)
    assert rollouts.ended.any() and not rollouts.ended.all()
    assert torch.equal(rollouts.ended, (rollouts.tokens == tiny.eos_id).any(dim=1))
    assert (rollouts.lengths[~rollouts.ended] == 12).all() and rollouts.lengths.min() >= 1
    outside = ~rollouts.mask
    assert (rollouts.tokens[outside] == tiny.pad_id).all()
    assert not rollouts.logp[outside].any() and not rollouts.entropy[outside].any()


@both_paths
def test_texts_are_the_tokens_without_what_follows_the_end(path, tiny, problems):
    rollouts = path.sample_groups(tiny, problems, [4, 4, 4], max_new_tokens=25)
    special = set(tiny.tokenizer.all_special_ids)
    for n, text in enumerate(rollouts.texts):
        inside = [t for t in rollouts.tokens[n][rollouts.mask[n]].tolist() if t not in special]
        assert text == "".join(tiny.tokenizer.convert_ids_to_tokens(inside))


# ---------------------------------------------------------------------------------------- the distribution


def frequencies_match(path, policy, temperature, draws=4000):
    """Chi-square of sampled pairs of tokens against the softmax that is trained; behind an end token comes a pad."""
    problem = solve("1+2=", "1")
    rollouts = path.sample_groups(policy, [problem], [draws], max_new_tokens=2, temperature=temperature)
    prompt, V = policy.encode_prompt(problem.question), len(policy.tokenizer)
    first = (next_logits(policy, prompt) / temperature).softmax(0)  # (V,)
    with torch.no_grad():
        after = policy.model(torch.tensor([[*prompt, token] for token in range(V)])).logits[:, -1]
    second = (after / temperature).softmax(1)  # (V, V)
    second[policy.eos_id] = torch.eye(V)[policy.pad_id]
    expected = (first[:, None] * second).flatten() * draws
    seen = torch.bincount(rollouts.tokens[:, 0] * V + rollouts.tokens[:, 1], minlength=V * V).float()
    common = expected >= 5
    pairs = list(zip(seen[common], expected[common], strict=True))
    pairs.append((seen[~common].sum(), expected[~common].sum()))  # the rare ones together
    chi_square = sum((s - e) ** 2 / e for s, e in pairs if e > 0).item()
    freedom = len(pairs) - 1
    return chi_square < freedom + 4 * math.sqrt(2 * freedom)  # 4 standard deviations


@both_paths
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_follow_the_trained_distribution(path, tiny, temperature):
    assert frequencies_match(path, tiny, temperature)


@both_paths
def test_samples_of_another_temperature_are_found_out(path, tiny):
    """The test above can fail: drawn at 0.7, tokens do not follow the distribution at 1."""
    sharper = copy.deepcopy(tiny.model)
    sharper.lm_head.weight.data /= 0.7
    drawn = path.sample_groups(replace(tiny, model=sharper), [solve("1+2=", "1")], [4000], max_new_tokens=2)

    class Other:
        sample_groups = staticmethod(lambda *_, **__: drawn)

    assert not frequencies_match(Other, tiny, 1.0)
    assert frequencies_match(Other, tiny, 0.7)


@both_paths
def test_samples_ignore_the_models_own_generation_config(path, tiny):
    """Put such a config in force and the test above fails: top-k 1 alone would always draw the same token."""
    own = GenerationConfig(do_sample=True, top_k=1, temperature=3.0, repetition_penalty=5.0, min_new_tokens=1)
    before, tiny.model.generation_config = tiny.model.generation_config, own
    try:
        assert frequencies_match(path, tiny, 1.0)
        assert tiny.model.generation_config is own, "sampling must put the model's config back"
    finally:
        tiny.model.generation_config = before


@both_paths
def test_the_vocabulary_is_not_cut_at_fifty(path):
    """generate's default is a top-k of 50: on a vocabulary of 400 nearly every draw would be missing."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(400)])
    policy = small_gpt2(tokenizer)
    rollouts = path.sample_groups(policy, [solve("1+2=", "1")], [500], max_new_tokens=2)
    assert len(set(rollouts.tokens[:, 0].tolist())) > 200


@both_paths
@architectures
def test_greedy_is_the_likeliest_token_each_time(path, tiny, architecture):
    """Against the model asked for one token after another, each row alone; prompts of different lengths."""
    policy = policy_of(architecture, tiny)
    problems = [solve("1+2=", "1"), solve("12+13-14+15=", "3"), solve("7-5=", "1")]
    rollouts = path.sample_groups(policy, problems, [1, 2, 1], max_new_tokens=25, temperature=0.5, greedy=True)
    for row, b in enumerate(rollouts.group.tolist()):
        ids, wanted = policy.encode_prompt(problems[b].question), []
        while len(wanted) < 25 and policy.eos_id not in wanted:
            wanted.append(int(next_logits(policy, ids + wanted).argmax()))
        assert rollouts.tokens[row][rollouts.mask[row]].tolist() == wanted


@both_paths
@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_finite_are_an_error(path, tiny, problems, greedy):
    broken = copy.deepcopy(tiny.model)
    broken.lm_head.weight.data[5] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        path.sample_groups(replace(tiny, model=broken), problems, [2, 2, 2], max_new_tokens=5, greedy=greedy)


# ---------------------------------------------------------------------------------------- log-probs


@both_paths
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@architectures
def test_recorded_logprobs_and_entropies_are_the_learners(path, tiny, problems, architecture, temperature):
    policy = policy_of(architecture, tiny)
    rollouts = path.sample_groups(policy, problems, [4, 4, 4], max_new_tokens=20, temperature=temperature)
    with torch.no_grad():
        logp, entropy = path.token_logprobs(policy, rollouts, torch.arange(12), temperature, with_entropy=True)
    torch.testing.assert_close(logp, rollouts.logp, atol=2e-5, rtol=0)
    torch.testing.assert_close(entropy, rollouts.entropy, atol=2e-5, rtol=0)


@both_paths
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@architectures
def test_a_padded_rows_logprobs_are_those_of_the_row_alone(path, tiny, architecture, temperature):
    policy = policy_of(architecture, tiny)
    both = [solve("1+2=", "1"), solve("12+13-14+15=", "3")]
    rollouts = path.sample_groups(policy, both, [2, 2], max_new_tokens=20)
    padded, entropy = path.token_logprobs(policy, rollouts, torch.arange(4), temperature, with_entropy=True)
    for row in range(4):
        prompt = policy.encode_prompt(both[rollouts.group[row]].question)
        completion = rollouts.tokens[row][rollouts.mask[row]].tolist()
        logits = policy.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        alone = (logits / temperature).log_softmax(-1)
        chosen = alone.gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        torch.testing.assert_close(padded[row, : len(completion)], chosen, atol=2e-5, rtol=0)
        whole = torch.distributions.Categorical(logits=alone).entropy()
        torch.testing.assert_close(entropy[row, : len(completion)], whole, atol=2e-5, rtol=0)


@both_paths
def test_rows_can_be_asked_for_in_any_order_and_number(path, tiny, problems):
    rollouts = path.sample_groups(tiny, problems, [3, 0, 2], max_new_tokens=15)
    assert rollouts.group.tolist() == [0, 0, 0, 2, 2]
    everything, none = path.token_logprobs(tiny, rollouts, torch.arange(5))
    assert none is None
    for rows in ([4, 0], [2], [3, 1, 2]):
        some, _ = path.token_logprobs(tiny, rollouts, torch.tensor(rows))
        assert some.shape[1] == rollouts.lengths[rows].max()
        torch.testing.assert_close(some, everything[rows, : some.shape[1]], atol=2e-5, rtol=0)


# ---------------------------------------------------------------------------------------- rows


@both_paths
def test_no_responses_at_all_are_rollouts_too(path, tiny, problems):
    """What sft begins with. The random state stays: nothing is drawn."""
    before = torch.get_rng_state()
    rollouts = path.sample_groups(tiny, problems, [0, 0, 0], max_new_tokens=20)
    assert torch.equal(before, torch.get_rng_state())
    assert rollouts.texts == [] and rollouts.problems == problems and len(rollouts.prompt_ids) == 3
    for name in ("tokens", "mask", "logp", "entropy"):
        assert getattr(rollouts, name).shape == (0, 0)
    for name in ("group", "is_anchor", "ended", "lengths"):
        assert getattr(rollouts, name).shape == (0,)
    assert rollouts.tokens.dtype == rollouts.group.dtype == torch.long and rollouts.mask.dtype == torch.bool


def test_concat_keeps_groups_together_and_the_second_part_last(tiny, problems):
    first = rollout.sample_groups(tiny, problems, [2, 1, 2], max_new_tokens=8)
    second = rollout.sample_groups(tiny, problems, [1, 1, 0], max_new_tokens=20)
    both = rollout.concat(first, second, tiny.pad_id)
    assert both.group.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert [both.texts[i] for i in (2, 4)] == second.texts
    assert both.lengths.sum() == first.lengths.sum() + second.lengths.sum()


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(1, 400))
def test_batches_by_length_hold_every_row_once_and_stay_in_the_budget(lengths, budget):
    batches = rollout.by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(in_order)


@both_paths
def test_micro_batches_hold_each_of_the_rows_asked_for_once(path, tiny, problems):
    """Few rows a batch where the budget is small, all in one where it is not."""
    rollouts = path.sample_groups(tiny, problems, [4, 4, 4], max_new_tokens=20)
    rows = torch.tensor([11, 0, 5, 2, 7, 8])
    for budget, count in ((10**6, 1), (1, 6)):
        batches = path.micro_batches(rollouts, rows, budget)
        assert len(batches) == count and sorted(torch.cat(batches).tolist()) == sorted(rows.tolist())


def test_plain_micro_batches_count_prompts_and_padding(tiny, problems):
    rollouts = rollout.sample_groups(tiny, problems, [4, 4, 4], max_new_tokens=20)
    width = rollouts.prompt_ids.shape[1]
    batches = rollout.micro_batches(rollouts, torch.arange(12), budget=100)
    assert 1 < len(batches) < 12
    for batch in batches:
        assert len(batch) * (width + int(rollouts.lengths[batch].max())) <= 100

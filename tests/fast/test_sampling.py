"""sampling.py: keys as attention sees them, rows that leave the batch, and prompts that run once."""

from dataclasses import replace

import pytest
import torch

from fast import prompt_cache, sampling
from fast.sampling import sample_groups
from rollout import token_logprobs
from tasks import solve


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
        return sample_groups(policy, problems, [3, 3, 3], max_new_tokens=30)

    once = sample()
    assert set(kept) == {torch.bfloat16}
    monkeypatch.setattr(prompt_cache, "rounded", lambda x: x)
    each_time = sample()
    assert torch.float32 in kept and torch.equal(once.tokens, each_time.tokens)
    assert torch.equal(once.logp, each_time.logp)


@pytest.fixture
def sizes(monkeypatch):
    """Rows of each call of `generate`."""
    found, generate = [], sampling._generate

    def spy(policy, ids, *rest):
        found.append(len(ids))
        return generate(policy, ids, *rest)

    monkeypatch.setattr(sampling, "_generate", spy)
    return found


def test_rows_that_ended_leave_the_batch_and_change_no_greedy_response(tiny, problems, sizes):
    """Greedy responses of rows together are those of each row alone; and some rows have left before others ended."""
    sampled = sample_groups(tiny, problems, [8, 8, 8], max_new_tokens=40)
    assert len(sizes) > 2 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 24
    assert (sampled.ended | (sampled.lengths == 40)).all()
    together = sample_groups(tiny, problems, [1, 1, 1], max_new_tokens=40, greedy=True)
    for b, problem in enumerate(problems):
        alone = sample_groups(tiny, [problem], [1], max_new_tokens=40, greedy=True)
        assert alone.texts[0] == together.texts[b]


@torch.no_grad()
def test_logprobs_stay_with_their_rows_when_others_leave(tiny, sizes):
    """Groups of different sizes, one of them empty, prompts of different lengths."""
    problems = [solve("1+2=", "1"), solve("7-5=", "1"), solve("12+13-14+15=", "3"), solve("20-3=", "1")]
    rollouts = sample_groups(tiny, problems, [5, 0, 9, 3], max_new_tokens=40)
    assert len(sizes) > 2 and rollouts.group.tolist() == [0] * 5 + [2] * 9 + [3] * 3
    logp, entropy = token_logprobs(tiny, rollouts, torch.arange(17), with_entropy=True)
    torch.testing.assert_close(rollouts.logp, logp, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollouts.entropy, entropy, atol=2e-5, rtol=0)


@pytest.mark.parametrize("prompts", [["1+2=", "12+13-14+15="], ["1", "2"]])
def test_a_prompt_runs_once_for_its_rows(tiny, monkeypatch, prompts):
    """All but its last token, with which a row's first step begins; of prompts of one token nothing runs beforehand."""
    problems = [replace(solve("1+2=", "1"), question=text) for text in prompts]
    passes, forward = [], tiny.model.forward

    def spy(input_ids, **inputs):
        passes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(tiny.model, "forward", spy)
    sample_groups(tiny, problems, [6, 6], max_new_tokens=4)
    longest = max(map(len, prompts))
    assert [shape for shape in passes if shape[1] > 1] == ([(2, longest - 1)] if longest > 1 else [])
    assert passes[longest > 1] == (12, 1)

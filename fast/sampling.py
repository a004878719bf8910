"""A faster `sample_groups` than rollout.py's: the same distribution and log-probs, other random numbers.

The tricks, and where they are:
    prompt_cache.py    a prompt runs once for its rows; the cache is not copied for every token
    draw.py            one random number per row draws a token; log-prob and entropy are recorded on the way
    here               rows that have ended leave the batch
    cuda_graphs.py     on a GPU a decoding step is recorded once and replayed
    packed.py          on a CPU the weights of a large model are laid out once for all steps

If a model's cache does not allow this, rollout.py samples. A trial with a few tokens decides, once per model.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from fast import cuda_graphs
from fast.draw import ManyEnded, Sampler
from fast.learning import small_rollouts
from fast.packed import packed
from fast.prompt_cache import Growing, empty_cache, make_room, run_prompts
from policy import Policy, transformer
from rollout import Rollouts, as_rollouts, group_index, pad_prompts, token_logprobs, whole_distribution
from rollout import sample_groups as plain_sample_groups
from tasks import Problem

LEAVE_AT = 0.25  # ended rows leave the batch when they are this share of it


@torch.no_grad()
def sample_groups(
    policy: Policy,
    problems: list[Problem],
    counts: list[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    greedy: bool = False,
) -> Rollouts:
    """`counts[b]` responses to problem b, as rollout.sample_groups.

    Whenever LEAVE_AT of the rows have ended, the others go on without them: on the built-in task the longest response
    has three times the tokens of the mean one. With CUDA graphs, which are then recorded anew, half must have ended.
    """
    if not any(counts) or not sampling_works(policy):
        return plain_sample_groups(policy, problems, counts, max_new_tokens, temperature, greedy)
    group = group_index(counts, policy.device)  # (N,)
    prompt_ids, prompt_mask = pad_prompts(policy, problems)  # (B, P)
    tokens = torch.full((len(group), max_new_tokens), policy.pad_id, device=policy.device)  # (N, T)
    logp, entropy = torch.zeros((2, *tokens.shape), device=policy.device)  # (N, T) each
    rows = torch.arange(len(group), device=policy.device)  # (n,) rows that have not ended
    ids, attention, start = prompt_ids[group], prompt_mask[group].long(), 0  # (n, P + start)
    kind, ends = cuda_graphs.cache_kind(policy), torch.tensor(policy.end_ids, device=policy.device)
    share = LEAVE_AT if kind is Growing else 0.5
    cache = run_prompts(policy, prompt_ids, prompt_mask, group, kind) or empty_cache(policy, kind)
    while len(rows) and start < max_new_tokens:
        sampler, length = Sampler(temperature, greedy), make_room(cache, ids.shape[1], max_new_tokens - start)
        ids = _generate(policy, ids, attention, cache, length, sampler, ends, share)
        new = ids[:, attention.shape[1] :]  # (n, t)
        end = start + new.shape[1]
        tokens[rows, start:end] = new
        logp[rows, start:end] = torch.stack(sampler.logp, dim=1)
        entropy[rows, start:end] = torch.stack(sampler.entropy, dim=1)
        going = (~torch.isin(new, ends)).all(dim=1).nonzero().squeeze(1)  # indices of the rows that go on
        cache.reorder_cache(going)
        attention = pad(attention, (0, end - start), value=1)
        rows, ids, attention, start = rows[going], ids[going], attention[going], end
    sampled = tokens[:, :start], logp[:, :start], entropy[:, :start]
    return as_rollouts(policy, problems, prompt_ids, prompt_mask, group, *sampled)


def _generate(
    policy: Policy,
    ids: Tensor,  # (n, P)
    attention: Tensor,  # (n, P)
    cache: Cache,
    length: int,
    sampler: Sampler,
    ends: Tensor,  # token ids
    share: float,
) -> Tensor:
    """`ids` with at most `length` more tokens, until `share` of the rows have ended; `cache` grows with them."""
    with (
        whole_distribution(policy),
        policy.autocast(),
        packed(policy, len(ids), length),
        cuda_graphs.graphed(policy, cache, length),
    ):
        return policy.model.generate(
            input_ids=ids,
            attention_mask=attention,
            cache=cache,
            generation_config=GenerationConfig(
                do_sample=False,  # takes the largest score, which is the sampler's draw
                max_new_tokens=length,
                eos_token_id=ends.tolist() or None,
                pad_token_id=policy.pad_id,
                disable_compile=True,  # cuda_graphs.py does the same without the wait
            ),
            logits_processor=LogitsProcessorList([lambda _, logits: policy.of_tokens(logits), sampler]),
            stopping_criteria=StoppingCriteriaList([ManyEnded(ends, ids.shape[1], share)]),
        )


WORKS: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def sampling_works(policy: Policy) -> bool:
    """Whether this model can be sampled with a cache that is filled beforehand and loses rows: tried once per model."""
    model = transformer(policy.model)
    if model not in WORKS:
        try:
            off = 1e-3 if model.dtype == torch.float32 else 0.2  # bf16 weights round
            found, expected = sample_a_few(replace(policy, autocast_dtype=None))
            WORKS[model] = torch.allclose(found, expected, rtol=0, atol=off)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the model has a special cache, or none
            WORKS[model] = False
        if not WORKS[model]:
            why = "its cache cannot be filled beforehand or lose rows"
            print(f"{model.config.model_type}: sampling takes the slower plain path: {why}", file=sys.stderr)
    return WORKS[model]


def sample_a_few(policy: Policy) -> tuple[Tensor, Tensor]:
    """Log-probs (2, 3) of three greedy tokens, twice: as recorded here, and as rollout.py computes them.

    There are three rows of two prompts; one row leaves after the first token.
    """
    few, nothing = small_rollouts(policy), torch.tensor([], dtype=torch.long, device=policy.device)
    kind, stay = cuda_graphs.cache_kind(policy), torch.tensor([0, 2], device=policy.device)
    first, then = Sampler(1.0, greedy=True), Sampler(1.0, greedy=True)
    ids, attention = few.prompt_ids[few.group], few.prompt_mask[few.group].long()  # (3, P)
    cache = run_prompts(policy, few.prompt_ids, few.prompt_mask, few.group, kind)
    ids = _generate(policy, ids, attention, cache, make_room(cache, ids.shape[1], 1), first, nothing, 1.0)
    cache.reorder_cache(stay)
    ids, attention = ids[stay], pad(attention, (0, 1), value=1)[stay]  # (2, P + 1)
    ids = _generate(policy, ids, attention, cache, make_room(cache, ids.shape[1], 2), then, nothing, 1.0)
    tokens = ids[:, few.prompt_ids.shape[1] :]  # (2, 3)
    rows = replace(few, tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool), group=few.group[stay])
    expected, _ = token_logprobs(policy, rows, torch.arange(2, device=policy.device))
    return torch.stack([first.logp[0][stay], *then.logp], dim=1), expected

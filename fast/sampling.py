"""`sample_groups` as in rollout.py, sooner: the same distribution, the same log-probs, other random numbers.

What is different, each trick in a file of its own:
    prompt_cache.py    a prompt runs once for its rows; a cache that is not copied for every token
    draw.py            one random number a row draws a token; the log-prob and the entropy are noted on the way
    here               rows that have ended leave the batch
    cuda_graphs.py     on a GPU a decoding step is recorded once and replayed
    packed.py          on a CPU the weights of a large model are laid out once for all steps
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from fast import cuda_graphs
from fast.draw import ManyEnded, Sampler
from fast.packed import packed
from fast.prompt_cache import Growing, empty_cache, make_room, run_prompts
from policy import Policy
from rollout import Rollouts, as_rollouts, group_index, pad_prompts, whole_distribution
from tasks import Problem

LEAVE_AT = 0.25  # share of the rows


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
    has three times the tokens of the mean one. Recorded steps are recorded anew then, so that there it is half of them.
    """
    group = group_index(counts, policy.device)  # (N,)
    prompt_ids, prompt_mask = pad_prompts(policy, problems)  # (B, P)
    tokens = torch.full((len(group), max_new_tokens), policy.pad_id, device=policy.device)  # (N, T)
    logp, entropy = torch.zeros((2, *tokens.shape), device=policy.device)  # (N, T) each
    rows = torch.arange(len(group), device=policy.device)  # (n,) that have not ended
    ids, attention, start = prompt_ids[group], prompt_mask[group].long(), 0  # what they have so far, (n, P + start)
    kind = cuda_graphs.cache_kind(policy)
    share = LEAVE_AT if kind is Growing else 0.5
    cache = run_prompts(policy, prompt_ids, prompt_mask, group, kind) or empty_cache(policy, kind)
    while len(rows) and start < max_new_tokens:
        sampler, length = Sampler(temperature, greedy), make_room(cache, ids.shape[1], max_new_tokens - start)
        ids = _generate(policy, ids, attention, cache, length, sampler, share)
        new = ids[:, attention.shape[1] :]  # (n, t)
        end = start + new.shape[1]
        tokens[rows, start:end] = new
        logp[rows, start:end] = torch.stack(sampler.logp, dim=1)
        entropy[rows, start:end] = torch.stack(sampler.entropy, dim=1)
        going = (new != policy.eos_id).all(dim=1).nonzero().squeeze(1)  # (n,) to fewer
        cache.batch_select_indices(going)
        attention = pad(attention, (0, end - start), value=1)
        rows, ids, attention, start = rows[going], ids[going], attention[going], end
    sampled = tokens[:, :start], logp[:, :start], entropy[:, :start]
    return as_rollouts(policy, problems, prompt_ids, prompt_mask, group, *sampled)


def _generate(
    policy: Policy, ids: Tensor, attention: Tensor, cache: Cache, length: int, sampler: Sampler, share: float
) -> Tensor:
    """`ids` (n, P) with at most `length` more tokens, until this share of them has ended; `cache` grows with them."""
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
                do_sample=False,  # takes the largest score: what the sampler has drawn
                max_new_tokens=length,
                eos_token_id=policy.eos_id,
                pad_token_id=policy.pad_id,
                disable_compile=True,  # cuda_graphs.py does it without the wait
            ),
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=StoppingCriteriaList([ManyEnded(policy.eos_id, ids.shape[1], share)]),
        )

"""`token_logprobs` and `micro_batches` as in rollout.py, sooner and in less memory.

prompts run once for the rows of their group that are in a micro-batch (prompt_cache.py)
logits are made where the mask is, in parts that are not kept: the backward pass makes them again
micro-batches keep the rows of a long prompt together
"""

from __future__ import annotations

from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fast.draw import tempered
from fast.prompt_cache import Reading, run_prompts
from policy import Policy, transformer
from rollout import Rollouts, positions_of

LOGITS_AT_ONCE = 2**26  # 256 MB of fp32
A_PASS = 5e12  # weights times tokens, at 6 operations each: 0.11 s of a GPU at the rate of analysis/bench/sizes.py
HEADS: WeakKeyDictionary[torch.nn.Module, torch.nn.Module | None] = WeakKeyDictionary()  # what output_layer found


def token_logprobs(
    policy: Policy, rollouts: Rollouts, rows: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """As rollout.token_logprobs. Each prompt runs once for all of its rows in `rows`, where that is worth a pass."""
    group, mask = rollouts.group[rows], rollouts.mask[rows]  # (n,), (n, T)
    t = int(mask.sum(dim=1).max())
    tokens, mask = rollouts.tokens[rows, :t], mask[:, :t]  # (n, t)
    prompt_ids, prompt_mask = rollouts.prompt_ids[group], rollouts.prompt_mask[group]  # (n, P)
    ids = torch.cat([prompt_ids, tokens], dim=1)[:, :-1]  # (n, P + t - 1): nothing follows the last token
    attention = torch.cat([prompt_mask, mask], dim=1)[:, :-1].long()  # (n, P + t - 1)
    positions, cache = positions_of(attention), None
    if worth_a_pass(policy, group, prompt_ids.shape[1]):
        cache = run_prompts(policy, rollouts.prompt_ids, rollouts.prompt_mask, group, Reading)
    if cache is not None:
        ids, positions = ids[:, -t:], positions[:, -t:]  # (n, t): the prompt's last token, then the response
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "cache": cache}
    hidden = hidden_states(policy, **inputs, use_cache=cache is not None)[:, -t:]  # (n, t, width)
    # the hidden state at a position is for the token after it
    logp, entropy = _logprobs(policy, hidden[mask], tokens[mask], temperature, with_entropy)  # (tokens in the mask,)
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_scatter(mask, logp), zeros.masked_scatter(mask, entropy) if with_entropy else None


def worth_a_pass(policy: Policy, group: Tensor, prompt_tokens: int) -> bool:
    """Whether prompts run once for these rows, (n,) of `group`: first they, then the completions, a pass more.

    On a CPU that always pays. On a GPU Python needs some 0.1 s to start a pass and its backward pass, and the tokens
    that need not run again have to be worth that.
    """
    saved = prompt_tokens * (len(group) - len(group.unique()))
    return policy.device.type != "cuda" or policy.model.num_parameters() * saved > A_PASS


def hidden_states(policy: Policy, **inputs: Any) -> Tensor:
    """What the output layer makes logits of, (n, tokens, width); of a model without a plain one, the logits."""
    with policy.autocast():
        if output_layer(policy) is None:
            return policy.model(**inputs).logits
        return transformer(policy.model).base_model(**inputs).last_hidden_state


def output_layer(policy: Policy) -> torch.nn.Module | None:
    """The output layer, if logits are what it makes of the last hidden states and nothing more.

    Some models scale or bound their logits further. That is tried out with one token, not looked up.
    """
    if policy.model not in HEADS:
        model, ids = transformer(policy.model), torch.tensor([[policy.eos_id]], device=policy.device)
        with torch.no_grad(), policy.autocast():
            head = model.get_output_embeddings()
            same = torch.equal(head(model.base_model(ids).last_hidden_state), model(ids).logits)
        HEADS[policy.model] = head if same else None
    return HEADS[policy.model]


def _logprobs(
    policy: Policy, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (m,) of these tokens, and entropies, from the hidden states (m, width) that they are drawn from.

    A vocabulary is large: fp32 logits of 8,192 tokens and 150,000 words are 5 GB, and their log-probs and gradients as
    much again. So they are made in parts, and a part is not kept: the backward pass computes it again.
    """

    head = output_layer(policy)

    def part(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with policy.autocast():
            logits = hidden if head is None else head(hidden)
        logp = tempered(logits.float(), temperature).log_softmax(dim=-1)  # (m, V)
        entropy = -(logp.exp() * logp).sum(dim=-1) if with_entropy else logp.new_zeros(len(logp))
        return logp.gather(1, tokens[:, None]).squeeze(1), entropy

    vocabulary = transformer(policy.model).get_output_embeddings().weight.shape[0]
    at_once = max(1, LOGITS_AT_ONCE // vocabulary)
    if len(tokens) <= at_once:
        return part(hidden, tokens)
    parts = [
        checkpoint(part, *pair, use_reentrant=False)
        for pair in zip(hidden.split(at_once), tokens.split(at_once), strict=True)
    ]
    logp, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return logp, entropy


def micro_batches(rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
    """As rollout.micro_batches, but a prompt counts once in a batch: that is how it runs."""
    prompt, on_gpu = rollouts.prompt_ids.shape[1], rows.device.type == "cuda"
    lengths, group = rollouts.lengths[rows], rollouts.group[rows]  # (n,)
    found = pack(lengths + prompt, budget, group, 0) if on_gpu else pack(lengths, budget, group, prompt)
    return [rows[batch.to(rows.device)] for batch in found]


def tokens_run(rows: list[int], lengths: list[int], group: list[int], prompt_tokens: int) -> int:
    """The tokens that a pass over these rows runs, padding counted and each prompt once."""
    return prompt_tokens * len({group[row] for row in rows}) + len(rows) * max(lengths[row] for row in rows)


def pack(lengths: Tensor, budget: int, group: Tensor | None = None, prompt_tokens: int = 0) -> list[Tensor]:
    """Row indices in batches that run at most `budget` tokens, padding counted; a row over the budget goes alone.

    `lengths` (n,) of completions, `group` (n,) of the rows' prompts, each of `prompt_tokens` and run once in a batch.
    Rows in order of length waste little on padding, rows of a prompt side by side run it in few batches, and prompts
    that are not split in fewer still: of these three the one that runs fewest tokens is taken.

    >>> pack(torch.tensor([1, 9, 2, 8]), budget=20)
    [tensor([0, 2]), tensor([3, 1])]
    >>> pack(torch.tensor([1, 9, 2, 8]), budget=30, group=torch.tensor([0, 0, 1, 1]), prompt_tokens=12)
    [tensor([0, 1]), tensor([2, 3])]
    """
    tokens, prompts = lengths.tolist(), [0] * len(lengths) if group is None else group.tolist()

    def run(rows: list[int]) -> int:
        return tokens_run(rows, tokens, prompts, prompt_tokens)

    def fill(units: list[list[int]]) -> list[list[int]]:
        """Units of rows in this order; one that is over the budget by itself is taken apart."""
        batches: list[list[int]] = []
        for unit in units:
            if batches and run(batches[-1] + unit) <= budget:
                batches[-1] = batches[-1] + unit
            elif len(unit) == 1 or run(unit) <= budget:
                batches.append(unit)
            else:
                batches += fill([[row] for row in unit])
        return batches

    by_length = sorted(range(len(tokens)), key=tokens.__getitem__)
    by_prompt = sorted(by_length, key=prompts.__getitem__)
    whole = [list(rows) for _, rows in groupby(by_prompt, key=prompts.__getitem__)]
    orders = ([[row] for row in by_length], [[row] for row in by_prompt], whole)
    best = min(map(fill, orders), key=lambda batches: sum(map(run, batches)))
    return [torch.tensor(batch) for batch in best]

"""Faster `token_logprobs` and `micro_batches` than rollout.py's, with less memory: every token runs once.

The tokens of a micro-batch run side by side, without padding, and each prompt once for all of its rows:

    rows of rollout.py      . p p p a a a . .        here      p p p  a a a  b b b b b  |  q q  c c
                            . p p p b b b b b                  prompt and its responses    the next one
                            . . q q c c . . .

Attention is given tables of indices: with them it looks up the keys of each row in the one long row (`side_by_side`,
registered with transformers). Tokens keep the positions of their rows, so log-probs and gradients stay the same.
Logits are computed only inside the mask, in parts that are not kept: the backward pass computes them again.

Other models run padded rows, as in rollout.py: those whose layers do not see all earlier tokens (sliding windows,
linear attention), and those for which this gives other results. A trial with a few tokens decides, once per model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fast.draw import tempered
from fast.prompt_cache import full_attention
from policy import Policy, positions_of, transformer
from rollout import Rollouts

LOGITS_AT_ONCE = 2**26  # 256 MB of fp32
NAME = "side_by_side"


class Part(NamedTuple):
    """Some rows of attention: where their queries and keys are among the M tokens, and what each query sees."""

    queries: Tensor  # (n, t) indices
    keys: Tensor  # (n, s) indices
    seen: Tensor | None  # (n, 1, t, s) bool; None: all tokens up to itself


class SideBySide(NamedTuple):
    """The M tokens of a micro-batch side by side."""

    ids: Tensor  # (1, M)
    positions: Tensor  # (1, M)
    parts: tuple[Part, Part]  # prompts; responses, which see their prompt
    back: Tensor  # (M,) each token's place in the rows of both parts, concatenated
    before: Tensor  # (n, t) for each completion token, the token whose hidden state it is drawn from


def side_by_side(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """Attention for transformers: over rows as usual, or, if `tokens` (a SideBySide) is given, over its parts."""
    tokens = more.pop("tokens", None)
    if tokens is None:
        return sdpa_attention_forward(module, query, key, value, mask, **more)

    def rows(x: Tensor, index: Tensor) -> Tensor:  # (1, heads, M, D) -> (n, heads, t, D)
        return x[0].index_select(1, index.flatten()).unflatten(1, index.shape).transpose(0, 1)

    found = []
    for queries, keys, seen in tokens.parts:
        part = rows(query, queries), rows(key, keys), rows(value, keys)
        found.append(sdpa_attention_forward(module, *part, seen, **more)[0].flatten(0, 1))  # (n * t, heads, D)
    return torch.cat(found).index_select(0, tokens.back)[None], None


AttentionInterface.register(NAME, side_by_side)
AttentionMaskInterface.register(NAME, sdpa_mask)


def lay_out(rollouts: Rollouts, rows: Tensor, t: int) -> SideBySide:
    """The prompts of these rows (n,), each once, and their responses of at most t tokens, without padding."""
    wanted, prompt = rollouts.group[rows].unique(return_inverse=True)  # (b,), (n,) each row's prompt among them
    prompt_mask, mask = rollouts.prompt_mask[wanted], rollouts.mask[rows, :t]  # (b, P), (n, t)
    real = torch.cat([prompt_mask.flatten(), mask.flatten()])  # of the b * P + n * t places, M are real
    place = (real.cumsum(0) - 1).clamp(min=0)  # where each of them is among the M; for padding, arbitrary
    of_prompts = place[: prompt_mask.numel()].view_as(prompt_mask)  # (b, P)
    of_responses = place[prompt_mask.numel() :].view_as(mask)  # (n, t)
    ids = torch.cat([rollouts.prompt_ids[wanted].flatten(), rollouts.tokens[rows, :t].flatten()])
    in_prompts = positions_of(prompt_mask)  # (b, P)
    in_responses = in_prompts[prompt, -1:] + 1 + torch.arange(t, device=ids.device)  # (n, t)
    positions = torch.cat([in_prompts.flatten(), in_responses.flatten()])
    before_and_self = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril().expand(len(rows), 1, t, t)
    whole_prompt = prompt_mask[prompt][:, None, None].expand(-1, -1, t, -1)  # (n, 1, t, P)
    responses = Part(
        of_responses,
        torch.cat([of_prompts[prompt], of_responses], dim=1),  # (n, P + t)
        torch.cat([whole_prompt, before_and_self], dim=3),  # (n, 1, t, P + t)
    )
    return SideBySide(
        ids[real][None],
        positions[real][None],
        (Part(of_prompts, of_prompts, causal(prompt_mask)), responses),
        real.nonzero().squeeze(1),
        torch.cat([of_prompts[prompt, -1:], of_responses[:, :-1]], dim=1),
    )


def causal(mask: Tensor) -> Tensor | None:
    """What tokens of left-padded prompts see, from their mask (b, P): (b, 1, P, P), or None if nothing is padding."""
    if mask.all():
        return None
    before = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # so that padding sees something: no NaN
    return (before & mask[:, None, None]) | itself


# ---------------------------------------------------------------------------------------- log-probs


def token_logprobs(
    policy: Policy, rollouts: Rollouts, rows: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """As rollout.token_logprobs."""
    mask = rollouts.mask[rows]  # (n, T)
    t = int(mask.sum(dim=1).max())
    tokens, mask = rollouts.tokens[rows, :t], mask[:, :t]  # (n, t)
    hidden = (in_one_pass if one_pass_works(policy) else in_rows)(
        policy, rollouts, rows, t
    )  # (tokens in the mask, width)
    logp, entropy = _logprobs(policy, hidden, tokens[mask], temperature, with_entropy)  # (tokens in the mask,)
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_scatter(mask, logp), zeros.masked_scatter(mask, entropy) if with_entropy else None


def in_one_pass(policy: Policy, rollouts: Rollouts, rows: Tensor, t: int) -> Tensor:
    """The hidden states that the completion tokens of these rows are drawn from, (tokens in the mask, width)."""
    tokens = lay_out(rollouts, rows, t)
    unused = torch.zeros(
        1, 1, 1, 1, dtype=torch.bool, device=tokens.ids.device
    )  # a mask of four axes is passed on as it is
    hidden = hidden_states(
        policy,
        input_ids=tokens.ids,
        position_ids=tokens.positions,
        attention_mask=unused,
        use_cache=False,
        tokens=tokens,
    )[0]  # (M, width)
    return hidden.index_select(0, tokens.before[rollouts.mask[rows, :t]])


def in_rows(policy: Policy, rollouts: Rollouts, rows: Tensor, t: int) -> Tensor:
    """The same states from padded rows, each with its prompt."""
    group, mask = rollouts.group[rows], rollouts.mask[rows, :t]  # (n,), (n, t)
    ids = torch.cat([rollouts.prompt_ids[group], rollouts.tokens[rows, :t]], dim=1)  # (n, P + t)
    attention = torch.cat([rollouts.prompt_mask[group], mask], dim=1).long()  # (n, P + t)
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions_of(attention)}
    return hidden_states(policy, **inputs, use_cache=False)[:, -t - 1 : -1][mask]


WORKS: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
HEADS: WeakKeyDictionary[torch.nn.Module, torch.nn.Module | None] = WeakKeyDictionary()


def one_pass_works(policy: Policy) -> bool:
    """Whether a pass over tokens side by side gives the hidden states of padded rows: tried once per model.

    If so, `side_by_side` becomes the model's attention; in all other passes it is transformers' own. It is not switched
    back, because gradient checkpointing runs the layers once more in the backward pass.
    """
    model = transformer(policy.model)
    if model not in WORKS:
        own = model.config._attn_implementation
        try:
            WORKS[model] = own == "sdpa" and full_attention(policy)
        except Exception:  # a model that has no such cache
            WORKS[model] = False
        if WORKS[model]:
            exact = replace(policy, autocast_dtype=None)
            rollouts, rows = small_rollouts(policy), torch.arange(3, device=policy.device)
            model.set_attn_implementation(NAME)
            try:
                with torch.no_grad():
                    once, each = (run(exact, rollouts, rows, 3).float() for run in (in_one_pass, in_rows))
                off = 1e-3 if model.dtype == torch.float32 else 0.05  # bf16 weights round
                WORKS[model] = torch.allclose(once, each, rtol=off, atol=off * each.std())
            except torch.OutOfMemoryError:
                raise
            except Exception:  # the model cannot take these inputs, whatever it raises
                WORKS[model] = False
            if not WORKS[model]:
                model.set_attn_implementation(own)
        if not WORKS[model]:
            why = "its tokens cannot run side by side"
            print(f"{model.config.model_type}: the learner takes the slower plain path: {why}", file=sys.stderr)
    return WORKS[model]


def small_rollouts(policy: Policy) -> Rollouts:
    """Three rows of two prompts, ragged on both sides."""
    size = policy.model.config.get_text_config().vocab_size
    ids = torch.arange(7, 7 + 17, device=policy.device) % size
    prompt_mask = torch.tensor([[True] * 4, [False] * 2 + [True] * 2], device=policy.device)
    mask = torch.tensor([[True] * 3, [True] * 2 + [False], [True] + [False] * 2], device=policy.device)
    group, zeros = torch.tensor([0, 0, 1], device=policy.device), torch.zeros(3, 3, device=policy.device)
    tokens = ids[8:].view(3, 3)
    return Rollouts(
        [], ids[:8].view(2, 4), prompt_mask, tokens, mask, zeros, zeros, group, zeros[0] > 0, zeros[0] > 0, []
    )


def hidden_states(policy: Policy, **inputs: Any) -> Tensor:
    """The states (n, tokens, width) from which the output layer makes logits; the logits if `output_layer` is None."""
    with policy.autocast():
        if output_layer(policy) is None:
            return policy.model(**inputs).logits
        return transformer(policy.model).base_model(**inputs).last_hidden_state


def output_layer(policy: Policy) -> torch.nn.Module | None:
    """The output layer, if logits are just this layer applied to the last hidden states; else None.

    Some models also scale or bound their logits. This is tested with one token, not looked up.
    """
    model = transformer(policy.model)
    if model not in HEADS:
        ids, head = torch.tensor([[policy.eos_id]], device=policy.device), model.get_output_embeddings()
        plain = isinstance(head, torch.nn.Linear) and model.base_model is not model
        with torch.no_grad(), policy.autocast():
            same = plain and torch.equal(head(model.base_model(ids).last_hidden_state), model(ids).logits)
        HEADS[model] = head if same else None
    return HEADS[model]


def _logprobs(
    policy: Policy, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (m,) of these tokens, and entropies, from the hidden states (m, width) that they are drawn from.

    Vocabularies are large: fp32 logits of 8,192 tokens with 150,000 entries each are 5 GB, and their log-probs and
    gradients as much again. So they are made in parts that are not kept: the backward pass computes them again.
    """
    head = output_layer(policy)

    def part(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with policy.autocast():
            logits = policy.of_tokens(hidden if head is None else head(hidden))
        logp = tempered(logits.float(), temperature).log_softmax(dim=-1)  # (m, V)
        # clamped: an id without a token has probability 0, and 0 * -inf is NaN
        entropy = -(logp.exp() * logp.clamp(min=-104)).sum(dim=-1) if with_entropy else logp.new_zeros(len(logp))
        return logp.gather(1, tokens[:, None]).squeeze(1), entropy

    at_once = max(1, LOGITS_AT_ONCE // policy.token_ids[0])
    if len(tokens) <= at_once:
        return part(hidden, tokens)
    parts = [
        checkpoint(part, *pair, use_reentrant=False)
        for pair in zip(hidden.split(at_once), tokens.split(at_once), strict=True)
    ]
    logp, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return logp, entropy


# ---------------------------------------------------------------------------------------- micro-batches


def micro_batches(rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
    """As rollout.micro_batches, but the budget counts each prompt once and no padding."""
    prompts = rollouts.prompt_mask.sum(dim=1).tolist()  # B
    found = pack(rollouts.group[rows].tolist(), rollouts.lengths[rows].tolist(), prompts, budget)
    return [rows[index] for index in found]


def pack(group: Sequence[int], lengths: Sequence[int], prompts: Sequence[int], budget: int) -> list[list[int]]:
    """Row indices in batches of at most `budget` tokens; a prompt's rows stay together where they fit.

    `group` (n,) is each row's prompt, `lengths` (n,) its completion tokens; `prompts` (B,) are the prompts' tokens. A
    row that is over the budget by itself goes alone.

    >>> pack([0, 0, 1, 1], [1, 9, 2, 8], [12, 12], budget=30)
    [[0, 1], [2, 3]]
    """

    def tokens(batch: list[int]) -> int:
        return sum(lengths[i] for i in batch) + sum(prompts[b] for b in {group[i] for i in batch})

    batches: list[list[int]] = [[]]
    for _, rows in groupby(range(len(group)), key=group.__getitem__):  # rows of a prompt are neighbours
        together = list(rows)
        for unit in [together] if tokens(together) <= budget else [[i] for i in together]:
            if batches[-1] and tokens(batches[-1] + unit) > budget:
                batches.append([])
            batches[-1] = batches[-1] + unit
    return [batch for batch in batches if batch]

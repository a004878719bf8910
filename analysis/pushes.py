"""What the page inside a group (viewer.py) shows: pushes, advantages, shared prefixes, and the text of each token.

The ratio is 1, as in the first update on a batch. viewer.py says what else is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

import dagrpo
from dagrpo import Recipe

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer decodes a part of a character to


def anchors_of(recipe: Recipe, record: dict[str, Any]) -> Tensor:
    """Which responses are anchors under the recipe, (G,): in hpt none where a rollout is right."""
    is_anchor = torch.tensor(record["is_anchor"])  # (G,)
    right = (torch.tensor(record["R"]) * ~is_anchor).sum()
    return is_anchor & recipe.anchors & (recipe.gate is None or bool(right <= recipe.gate))


def advantages(recipe: Recipe, record: dict[str, Any]) -> Tensor:
    """A (G,) of this group alone under the recipe, so spreads of the batch become spreads of the group."""
    R = torch.tensor([record["R"]], dtype=torch.float32)  # (1, G)
    apart = None if recipe.mu is None else anchors_of(recipe, record)[None]
    return dagrpo.group_advantages(R, recipe.scale, recipe.baseline, apart)[0]


def unmasked_pushes(recipe: Recipe, record: dict[str, Any], A: Tensor, max_new_tokens: int) -> list[Tensor]:
    """-dloss/dlogp of each token at ratio 1 with every response kept: G tensors of the responses' lengths.

    NaN where it is unknown: LUFFY and CHORD read the probability of an anchor's token, which a run does not record for
    anchors that it had masked.
    """
    logp = [torch.tensor([math.nan if x is None else x for x in row]) for row in record["logp"]]  # G rows
    recorded = pad_sequence(logp, batch_first=True)  # (G, T)
    tokens = pad_sequence([torch.tensor(row) for row in record["tokens"]], batch_first=True)  # (G, T)
    lengths = torch.tensor([len(row) for row in logp])  # (G,)
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]  # (G, T)
    update = dagrpo.build_update(
        recipe,
        A[None],
        torch.ones(1, len(A), dtype=torch.bool),
        tokens,
        mask,
        logp_old=recorded.nan_to_num(),
        entropy_old=torch.zeros_like(recorded),
        is_anchor=anchors_of(recipe, record),
        max_new_tokens=max_new_tokens,
    )
    trained = recorded.nan_to_num().requires_grad_()  # ratio 1: only `shaped` and `phi` read its value
    dagrpo.policy_loss(trained, update, recipe, entropy=torch.zeros_like(recorded)).backward()
    push = -trained.grad
    if recipe.anchors and recipe.anchor_ratio in ("shaped", "phi"):
        unknown = recorded.isnan() & update.is_anchor[:, None] & (A != 0)[:, None]
        push = push.masked_fill(unknown, math.nan)
    return [row[:t] for row, t in zip(push, lengths.tolist(), strict=True)]


def common_prefixes(tokens: list[list[int]]) -> list[list[int]]:
    """For each row i, and each j <= i: how many tokens rows i and j share from the start (i = j: its length).

    >>> common_prefixes([[5, 8, 2], [5, 8, 9, 2], [7]])
    [[3], [2, 4], [0, 0, 1]]
    """

    def shared(a: list[int], b: list[int]) -> int:
        return next((t for t, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    return [[shared(tokens[i], tokens[j]) for j in range(i + 1)] for i in range(len(tokens))]


def runs_of(values: list[float]) -> list[float | None]:
    """Run lengths, in thousandths: count, value, count, value. Most pushes along a response are equal.

    >>> runs_of([0.002, 0.002, -0.001])
    [2, 2.0, 1, -1.0]
    """
    rounded = [None if math.isnan(x) else float(f"{1000 * x:.5g}") + 0.0 for x in values]
    return [x for value, run in groupby(rounded) for x in (len(list(run)), value)]


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Iterator[str]:
    """The text of each token. A character made of several tokens is given to the first one; the others get ''."""
    texts = [tokenizer.decode([i]) for i in ids]
    at = 0
    while at < len(ids):
        end, text = at + 1, texts[at]
        while UNFINISHED in text and end < min(at + 4, len(ids)) and UNFINISHED in texts[end]:  # UTF-8: 4 bytes at most
            end += 1
            text = tokenizer.decode(ids[at:end])
        if UNFINISHED in text:  # these bytes are no character after all
            end, text = at + 1, texts[at]
        spaced = (tokenizer.convert_ids_to_tokens(ids[at]) or "").startswith("\u2581") and not text.startswith(" ")
        yield " " * spaced + text  # SentencePiece drops the space in front of a lone token
        yield from [""] * (end - at - 1)
        at = end

"""Keys and values of prompts, for sampling: computed once, and used by all responses of a group.

The G responses of a group share their prompt, so there is no reason to run it G times. `run_prompts` runs each prompt
once and gives every row its keys and values; the completions then grow on top of it.

transformers grows a cache by copying it for every token. Here a token is stored

    Growing    in room that was left for it
    Static     on a GPU, in room that stays at the same addresses for many tokens (cuda_graphs.py)

This holds for layers of full attention only. Others (sliding windows, linear attention) keep transformers' own cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer

from policy import Policy, positions_of

ROOM, STATIC_ROOM = 64, 512  # tokens


class Growing(DynamicLayer):
    """Holds the rows' tokens so far, (n, heads, tokens, D), as views of tensors that have room for more.

    Keys and values are in autocast's precision. Otherwise attention would round all fp32 keys (those with rotary
    positions are fp32) to bf16 again at every token.
    """

    rooms: tuple[Tensor, Tensor] | None = None  # each (n, heads, tokens and some more, D)

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        before = self.get_seq_length()
        length = before + keys.shape[2]
        if self.rooms is None or self.rooms[0].shape[2] < length:
            old = (self.keys, self.values) if before else (keys[:, :, :0], values[:, :, :0])
            self.rooms = tuple(_with_room(rounded(x), length + ROOM) for x in old)
        for room, new in zip(self.rooms, (keys, values), strict=True):
            room[:, :, before:length] = new
        self.keys, self.values = (room[:, :, :length] for room in self.rooms)
        self.is_initialized = True
        return self.keys, self.values

    begin = update

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.rooms = None


class Static(StaticLayer):
    """Holds the rows' tokens so far in the first part of its tensors, (n, heads, tokens and many more, D).

    Keys and values are in autocast's precision, as in Growing. transformers masks the empty rest, and counts the tokens
    on the GPU, so that a recorded step works at every position.
    """

    def __init__(self) -> None:
        super().__init__(max_cache_len=0)

    def begin(self, keys: Tensor, values: Tensor) -> None:
        self.make_room(keys.shape[2])
        self.update(keys, values)

    def make_room(self, length: int) -> None:
        """Makes room for `length` tokens in all. Filled with zeros: masked values have weight 0, but 0 * NaN is NaN."""
        if self.is_initialized and length > self.max_cache_len:
            more = (0, 0, 0, length - self.max_cache_len)
            self.keys, self.values = pad(self.keys, more), pad(self.values, more)
        self.max_cache_len = length

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return super().update(rounded(keys), rounded(values))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.keys, self.values = self.keys[beam_idx], self.values[beam_idx]


def rounded(x: Tensor) -> Tensor:
    """x in autocast's precision, if autocast is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _with_room(x: Tensor, length: int) -> Tensor:
    """x (n, heads, tokens, D) at the beginning of a new tensor with room for `length` tokens."""
    room = x.new_empty(*x.shape[:2], length, x.shape[3])
    room[:, :, : x.shape[2]] = x
    return room


def empty_cache(policy: Policy, kind: type[CacheLayerMixin]) -> Cache:
    """An empty cache for the model: layers of this kind, except where the model needs a special kind."""
    cache = DynamicCache(config=policy.model.config)
    cache.layers = [kind() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def make_room(cache: Cache, tokens: int, more: int) -> int:
    """Makes room in this cache for up to `more` tokens per row after the first `tokens`. Returns for how many.

    A static cache gets room in parts: room for all would take memory, and time in attention, from the start.
    """
    if not all(isinstance(layer, Static) for layer in cache.layers):
        return more
    more = min(more, STATIC_ROOM)
    for layer in cache.layers:
        layer.make_room(tokens + more)
    return more


def full_attention(policy: Policy) -> bool:
    """Whether every layer of the model has full attention, and so a plain DynamicLayer as its cache."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=policy.model.config).layers)


def run_prompts(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, group: Tensor, kind: type[CacheLayerMixin]
) -> Cache | None:
    """A cache with the keys and values of each prompt except its last token: computed once, repeated for its rows.

    prompt_ids and prompt_mask (B, P), group (n,), `kind` Growing or Static. None if P is 1 or there are no rows.
    """
    if prompt_ids.shape[1] == 1 or not len(group):
        return None
    wanted, place = group.unique(return_inverse=True)  # prompts that have rows, and each row's place among them
    ids, mask = prompt_ids[wanted, :-1], prompt_mask[wanted, :-1].long()
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}
    filled, cache = DynamicCache(config=policy.model.config), empty_cache(policy, kind)
    with policy.autocast():
        policy.model(**inputs, use_cache=True, cache=filled, logits_to_keep=1)
        for i, layer in enumerate(filled.layers):
            if isinstance(cache.layers[i], kind):
                keys, values = (x.index_select(0, place) for x in (layer.keys, layer.values))  # (n, heads, P - 1, D)
                cache.layers[i].begin(keys, values)
            else:
                layer.reorder_cache(place)  # takes any rows, any number of times; all kinds of layers have it
                cache.layers[i] = layer
    return cache

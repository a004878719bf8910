"""Keys and values of the prompts in sampling: computed once, and used by all responses of a group.

The G responses of a group share their prompt, so there is no reason to run it G times. `run_prompts` runs each prompt
once and gives every row its keys and values; the completions then grow on top of it.

transformers grows a cache by copying it for every token. Here a token is stored

    Growing    into room that was left for it
    Static     on a GPU, into room that stays where it is for many tokens (cuda_graphs.py)

Departure: only layers of full attention are treated so. Others (sliding windows, linear attention) keep transformers'
own cache.
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

    In the precision of products: under autocast, attention would round keys in fp32 (those with rotary positions are)
    to bf16 at every token, all of them.
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

    As products see them, like Growing. transformers masks what is behind them, and counts them on the GPU, so that a
    step need not know where it is.
    """

    def __init__(self) -> None:
        super().__init__(max_cache_len=0)

    def begin(self, keys: Tensor, values: Tensor) -> None:
        self.make_room(keys.shape[2])
        self.update(keys, values)

    def make_room(self, length: int) -> None:
        """For `length` tokens in all. Zeros, as what is masked has weight 0, and 0 times NaN is NaN."""
        if self.is_initialized and length > self.max_cache_len:
            more = (0, 0, 0, length - self.max_cache_len)
            self.keys, self.values = pad(self.keys, more), pad(self.values, more)
        self.max_cache_len = length

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return super().update(rounded(keys), rounded(values))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.keys, self.values = self.keys[beam_idx], self.values[beam_idx]


def rounded(x: Tensor) -> Tensor:
    """x as products see it: in autocast's precision, where that is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _with_room(x: Tensor, length: int) -> Tensor:
    """x (n, heads, tokens, D) at the beginning of a tensor with `length` tokens."""
    room = x.new_empty(*x.shape[:2], length, x.shape[3])
    room[:, :, : x.shape[2]] = x
    return room


def empty_cache(policy: Policy, kind: type[CacheLayerMixin]) -> Cache:
    """The model's cache with layers of this kind, but where it has a kind of its own."""
    cache = DynamicCache(config=policy.model.config)
    cache.layers = [kind() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def make_room(cache: Cache, tokens: int, more: int) -> int:
    """How many of `more` tokens, after `tokens` a row, can be sampled into this cache in one go. Makes room for them.

    Of a static cache it is a part at a time: room for all would take memory, and time in attention, from the start.
    """
    if not all(isinstance(layer, Static) for layer in cache.layers):
        return more
    more = min(more, STATIC_ROOM)
    for layer in cache.layers:
        layer.make_room(tokens + more)
    return more


def full_attention(policy: Policy) -> bool:
    """Whether no layer of the model has a kind of its own."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=policy.model.config).layers)


def run_prompts(
    policy: Policy, prompt_ids: Tensor, prompt_mask: Tensor, group: Tensor, kind: type[CacheLayerMixin]
) -> Cache | None:
    """Keys and values of each prompt but for its last token: computed once, repeated for its rows, as `group` has them.

    prompt_ids and prompt_mask (B, P), group (n,), `kind` Growing or Static. None for prompts of one token.
    """
    if prompt_ids.shape[1] == 1 or not len(group):
        return None
    wanted, place = group.unique(return_inverse=True)  # prompts that have a row, and which of them each row's is
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
                layer.reorder_cache(place)  # any rows, any number of times; all kinds of layers have it
                cache.layers[i] = layer
    return cache

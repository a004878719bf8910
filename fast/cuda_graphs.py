"""A decoding step recorded once and replayed: sampling on a GPU.

For every token of a response, the pass through a model of 30 layers starts about a thousand kernels. Python needs some
20 ms to start them, whatever their size, and the GPU waits for Python, unless the model is large or the rows are many.
A CUDA graph records all of these kernels with the addresses that they read and write; one call starts it. So what
changes from step to step must stay at the same addresses: inputs are copied into held tensors, and the cache has room
for many more tokens (prompt_cache.Static).

The graph holds the kernels of the model's second step. It is recorded anew for every batch, when ended rows have left
the batch (with graphs, only after half of them have ended), and when the cache's room is full.

Graphs are not used on a CPU, where starting a kernel costs little compared with running it; nor for models that read
numbers back from the GPU within a step, which a graph cannot do, or have special caches or positions (`recordable`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as once
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from fast import prompt_cache
from policy import Policy, transformer

WORTH_STEPS = 16  # with fewer steps, recording takes longer than it saves


def cache_kind(policy: Policy) -> type[prompt_cache.Static | prompt_cache.Growing]:
    """The kind of cache layer to sample with: Static if steps can be recorded, else Growing."""
    return prompt_cache.Static if policy.device.type == "cuda" and recordable(policy) else prompt_cache.Growing


def recordable(policy: Policy) -> bool:
    """Whether a decoding step runs the same kernels at every length, by transformers' own flag and by our checks."""
    model = transformer(policy.model)
    rope = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") or "default"
    by_length = "dynamic" in rope or rope == "longrope" or getattr(model.config, "alibi", False)
    return model._can_compile_fullgraph and not by_length and prompt_cache.full_attention(policy)


@contextmanager
def graphed(policy: Policy, cache: Cache, steps: int) -> Iterator[None]:
    """In this context, the model's forward pass is recorded at its second call, and replayed from then on.

    The first call is an ordinary one: in it libraries set themselves up and autocast rounds the weights, and neither
    belongs in the graph. All calls, at most `steps`, must be for one token per row, for the same rows, on this cache.
    """
    model = transformer(policy.model)
    static = all(isinstance(layer, prompt_cache.Static) for layer in cache.layers)
    if policy.device.type != "cuda" or not static or steps < WORTH_STEPS:
        yield
        return
    own, forward, calls, replay = vars(model).get("forward"), model.forward, 0, None

    @wraps(forward)
    def step(**inputs: Any) -> Any:
        nonlocal calls, replay
        calls += 1
        if calls == 1:
            return forward(**inputs)
        replay = replay or record(forward, inputs)
        return replay(inputs)

    model.forward = step
    try:
        yield
    finally:
        del model.forward  # the class's own method shows again
        if own:
            model.forward = own


@once
def memory_pool() -> Any:
    """One memory pool for all graphs, one after the other: otherwise PyTorch would reserve more with every graph."""
    return torch.cuda.graph_pool_handle()


def record(forward: Callable[..., Any], inputs: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """A function that does what `forward` does, given inputs of the same names and shapes. Recording runs no step."""
    held = {name: x.clone() for name, x in inputs.items() if isinstance(x, Tensor)}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory_pool()):  # recorded, not run
        out = forward(**inputs | held)

    def replay(inputs: dict[str, Any]) -> Any:
        for name, x in held.items():
            x.copy_(inputs[name])
        graph.replay()
        return out

    return replay

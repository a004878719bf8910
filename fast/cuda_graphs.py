"""A decoding step recorded once and replayed: sampling on a GPU.

For every token of a response, the pass through a model of 30 layers starts about a thousand kernels. Python needs some
20 ms to start them, whatever their size, and a GPU waits for it, until models are large or rows many. A CUDA graph is
all of these kernels recorded with the addresses they read and write, and starting it is one call. So what changes from
step to step has to stand at the same addresses: inputs are copied into held tensors, and the cache has room for many
tokens to come (prompt_cache.Static).

What is replayed are the kernels that the model starts at its second step. A graph is recorded anew for every batch,
when ended rows have left it (here not before half of them have ended), and when the room is full.

Not done: on a CPU, where starting a kernel costs little beside running it; for models that read numbers back from the
GPU on their way, which a graph cannot do, or have a cache or positions of their own kind (`recordable`).
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

WORTH_STEPS = 16  # fewer save less than recording takes


def cache_kind(policy: Policy) -> type[prompt_cache.Static | prompt_cache.Growing]:
    """The layers of a cache for sampling."""
    return prompt_cache.Static if policy.device.type == "cuda" and recordable(policy) else prompt_cache.Growing


def recordable(policy: Policy) -> bool:
    """Whether a decoding step is the same kernels at every length: transformers' own word, and what we know besides."""
    model = transformer(policy.model)
    rope = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type") or "default"
    by_length = "dynamic" in rope or rope == "longrope" or getattr(model.config, "alibi", False)
    return model._can_compile_fullgraph and not by_length and prompt_cache.full_attention(policy)


@contextmanager
def graphed(policy: Policy, cache: Cache, steps: int) -> Iterator[None]:
    """Within it, the model's forward pass is recorded at its second call, and replayed from then on.

    The first call is an ordinary one: libraries set themselves up, and autocast rounds the weights, and neither belongs
    into the graph. All calls, `steps` or fewer, must be of one token a row, for the same rows, on this cache.
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
        del model.forward  # the class's is there again
        if own:
            model.forward = own


@once
def memory_pool() -> Any:
    """The memory of all graphs, one after the other: without it, what PyTorch reserves would grow with each."""
    return torch.cuda.graph_pool_handle()


def record(forward: Callable[..., Any], inputs: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """A function that does what `forward` does, given inputs of the same names and shapes. It takes no step itself."""
    held = {name: x.clone() for name, x in inputs.items() if isinstance(x, Tensor)}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory_pool()):  # nothing is run here
        out = forward(**inputs | held)

    def replay(inputs: dict[str, Any]) -> Any:
        for name, x in held.items():
            x.copy_(inputs[name])
        graph.replay()
        return out

    return replay

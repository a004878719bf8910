"""A decoding step recorded once and replayed: sampling on a GPU.

For every token of a response, the pass through a model of 30 layers starts about a thousand kernels. Python needs some
20 ms to start them, whatever their size, and a GPU waits for it, until models are large or rows many. A CUDA graph is
all of these kernels recorded with the addresses they read and write, and starting it is one call. So what changes from
step to step has to stand at the same addresses: inputs are copied into held tensors, and the cache has room for many
tokens to come (prompt_cache.Static).

What is replayed are the kernels that the model has started at its first step. A graph is recorded anew for every batch,
when ended rows have left it, and when the room is full; that costs about as much as four steps.

Not done: on a CPU, where starting a kernel costs little beside running it; for models that read numbers back from the
GPU on their way, which a graph cannot do, or have a cache or positions of their own kind (`recordable`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """Within it, the model's forward pass is recorded at its first call and replayed at the others, `steps` or fewer.

    All calls must be of one token a row, for the same rows, on this cache.
    """
    model = transformer(policy.model)
    static = all(isinstance(layer, prompt_cache.Static) for layer in cache.layers)
    if policy.device.type != "cuda" or not static or steps < WORTH_STEPS:
        yield
        return
    own, forward, replay = vars(model).get("forward"), model.forward, None

    @wraps(forward)
    def step(**inputs: Any) -> Any:
        nonlocal replay
        replay = replay or record(forward, cache, inputs)
        return replay(inputs)

    model.forward = step
    try:
        yield
    finally:
        del model.forward  # the class's is there again
        if own:
            model.forward = own


def record(forward: Callable[..., Any], cache: Cache, inputs: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """A function that does what `forward` does, given inputs of the same names and shapes. It takes no step itself."""
    held = {name: x.clone() for name, x in inputs.items() if isinstance(x, Tensor)}
    for _ in range(2):  # libraries set themselves up, and autocast rounds the weights: neither belongs into the graph
        forward(**inputs | held)
        cache.crop(-1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # nothing is run here
        out = forward(**inputs | held)

    def replay(inputs: dict[str, Any]) -> Any:
        for name, x in held.items():
            x.copy_(inputs[name])
        graph.replay()
        return out

    return replay

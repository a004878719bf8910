"""Weights laid out once for all steps of a batch: sampling with a large model in fp32 on a CPU.

A decoding step multiplies a few rows, one per response, with every weight of the model. MKL wants weights in blocks
that fit registers and caches, and lays them out in this way in every product. With thousands of rows this costs almost
nothing; with 16 it is a quarter of the product. Weights do not change while a batch is sampled, so here they are laid
out once. That takes as long as it saves in 10 to 30 steps, and memory for a second copy until the batch is done.
Products then add up in another order, so results differ by rounding.

Torch has these operators for frozen models under torch.compile, without a public name. Where they are missing, nothing
is done and only time is lost. Nor is anything done for small models, whose weights stay in the caches anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from policy import Policy

WORTH_LAYER = 2**19  # weights of a layer: MKL reserves 9 MB and twice the weights for it, used or not
WORTH_WEIGHTS = 2**24  # in all these layers: 64 MB
WORTH_STEPS = 16  # with fewer steps, laying out takes longer than it saves


@contextmanager
def packed(policy: Policy, rows: int, steps: int) -> Iterator[None]:
    """In this context linear layers multiply `rows` rows faster. For at most `steps` steps, without gradients."""
    linear = [module for module in policy.model.modules() if type(module) is nn.Linear]
    layers = [layer for layer in linear if layer.weight.numel() >= WORTH_LAYER]
    worth = steps >= WORTH_STEPS and sum(layer.weight.numel() for layer in layers) >= WORTH_WEIGHTS
    try:
        for layer in layers if worth and possible(policy) else []:
            layer.forward = laid_out(layer, rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # the class's own method shows again, also if memory ran out half-way


def possible(policy: Policy) -> bool:
    fp32 = policy.model.dtype == torch.float32 and policy.autocast_dtype is None
    return policy.device.type == "cpu" and fp32 and hasattr(torch.ops.mkl, "_mkl_linear")


def laid_out(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    weight, bias = layer.weight.detach(), layer.bias
    layout = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    # with another number of rows the operator uses `weight` instead of `layout`
    return lambda x: torch.ops.mkl._mkl_linear(x, layout, weight, bias, rows)

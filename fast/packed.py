"""Weights laid out once for all steps of a batch: sampling with a large model in fp32 on a CPU.

A decoding step multiplies a few rows, one a response, with every weight of the model. MKL wants weights in blocks that
fit registers and caches, and lays them out so inside every product. With thousands of rows that costs nothing next to
the product; with 16 it is a quarter of it. Weights stay as they are while a batch is sampled, so here they are laid out
once, which takes about as long as it saves in 10 to 30 steps, and a second copy of them until the batch is done. A
product adds up in another order then: the results differ by rounding.

Torch has the operators for what torch.compile makes of a frozen model, and gives them no public name. Where they are
missing, and for small models, whose weights stay in the caches, nothing is done here, and nothing is lost but time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from policy import Policy

WORTH_LAYER = 2**19  # weights of a layer: MKL reserves 9 MB and twice the weights for it, whatever it fills
WORTH_WEIGHTS = 2**24  # in all these layers: 64 MB
WORTH_STEPS = 16  # fewer save less than laying out takes


@contextmanager
def packed(policy: Policy, rows: int, steps: int) -> Iterator[None]:
    """Within it, without gradients, linear layers multiply `rows` rows faster. For `steps` products or fewer."""
    linear = [module for module in policy.model.modules() if type(module) is nn.Linear]
    layers = [layer for layer in linear if layer.weight.numel() >= WORTH_LAYER]
    worth = steps >= WORTH_STEPS and sum(layer.weight.numel() for layer in layers) >= WORTH_WEIGHTS
    try:
        for layer in layers if worth and possible(policy) else []:
            layer.forward = laid_out(layer, rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # the class's own is there again, also where memory ran out half-way


def possible(policy: Policy) -> bool:
    fp32 = policy.model.dtype == torch.float32 and policy.autocast_dtype is None
    return policy.device.type == "cpu" and fp32 and hasattr(torch.ops.mkl, "_mkl_linear")


def laid_out(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    weight, bias = layer.weight.detach(), layer.bias
    layout = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    # for another number of rows the operator takes `weight`
    return lambda x: torch.ops.mkl._mkl_linear(x, layout, weight, bias, rows)

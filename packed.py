"""Weights laid out once for all steps of a batch: sampling with a large model on a CPU.

A decoding step multiplies a few rows, one a response, with every weight of the model. MKL wants weights in blocks that
fit its registers and caches, and lays them out so inside every product. With thousands of rows that costs nothing
beside the product; with 16 it takes a quarter of it. Weights stay as they are while a batch is sampled, so here they
are laid out once, which takes about as long as it saves in 10 to 30 steps, and a second copy of them until the batch
is done. A product adds up in another order then: the results differ by rounding.

Torch has the two operators for what torch.compile makes of a frozen model, and gives them no public name. Where they
are missing (builds without MKL), on a GPU, in bf16, and for small models, whose weights stay in the caches, nothing is
done here, and nothing is lost but time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from policy import Policy

WORTH_WEIGHTS = 2**24  # in all linear layers: 64 MB
WORTH_STEPS = 16  # fewer save less than laying out takes


@contextmanager
def packed(policy: Policy, rows: int, steps: int) -> Iterator[None]:
    """Within it, without gradients, linear layers multiply `rows` rows faster. For `steps` products or fewer."""
    layers = [module for module in policy.model.modules() if type(module) is nn.Linear]
    if steps < WORTH_STEPS or sum(layer.weight.numel() for layer in layers) < WORTH_WEIGHTS or not possible(policy):
        yield
        return
    try:
        for layer in layers:
            weight = layer.weight.detach()
            layout = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
            # for another number of rows the operator takes `weight`
            layer.forward = partial(_linear, layout=layout, weight=weight, bias=layer.bias, rows=rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # the class's own is there again, also where memory ran out half-way


def possible(policy: Policy) -> bool:
    fp32 = policy.autocast_dtype is None and policy.model.dtype == torch.float32
    return policy.device.type == "cpu" and fp32 and hasattr(torch.ops.mkl, "_mkl_linear")


def _linear(x: Tensor, layout: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    return torch.ops.mkl._mkl_linear(x, layout, weight, bias, rows)

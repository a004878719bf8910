"""Weights laid out once for all steps of a batch: sampling with a large model on a CPU.

A decoding step multiplies a few rows, one a response, with every weight of the model. The libraries that do this (MKL
in fp32, oneDNN in bf16) want weights in blocks that fit registers and caches, and lay them out so inside every product.
With thousands of rows that costs nothing beside the product; with 16 it is a quarter of it in fp32, and more in bf16.
Weights stay as they are while a batch is sampled, so here they are laid out once, which takes about as long as it saves
in 10 to 30 steps, and a second copy of them until the batch is done. In fp32 a product adds up in another order then:
the results differ by rounding.

Torch has the operators for what torch.compile makes of a frozen model, and gives them no public name. Where they are
missing, on a GPU, and for small models, whose weights stay in the caches, nothing is done here, and nothing is lost but
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from policy import Policy

WORTH_LAYER = 2**19  # weights of a layer in fp32: MKL reserves 9 MB and twice the weights for it, whatever it fills
WORTH_WEIGHTS = 2**24  # in all these layers: 64 MB in fp32
WORTH_STEPS = 16  # fewer save less than laying out takes


@contextmanager
def packed(policy: Policy, rows: int, steps: int) -> Iterator[None]:
    """Within it, without gradients, linear layers multiply `rows` rows faster. For `steps` products or fewer."""
    product = product_of(policy)
    least = WORTH_LAYER if product is _fp32 else 0
    linear = [module for module in policy.model.modules() if type(module) is nn.Linear]
    layers = [layer for layer in linear if layer.weight.numel() >= least]
    if product is None or steps < WORTH_STEPS or sum(layer.weight.numel() for layer in layers) < WORTH_WEIGHTS:
        yield
        return
    try:
        for layer in layers:
            layer.forward = product(layer, rows)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # the class's own is there again, also where memory ran out half-way


def product_of(policy: Policy) -> Callable[[nn.Linear, int], Callable[[Tensor], Tensor]] | None:
    """What lays a layer out for this policy's device and precision, if anything does."""
    if policy.device.type != "cpu" or policy.model.dtype != torch.float32:
        return None
    if policy.autocast_dtype is None:
        return _fp32 if hasattr(torch.ops.mkl, "_mkl_linear") else None
    bf16 = policy.autocast_dtype == torch.bfloat16 and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return _bf16 if bf16 and torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


def _fp32(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    weight, bias = layer.weight.detach(), layer.bias
    layout = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    # for another number of rows the operator takes `weight`
    return lambda x: torch.ops.mkl._mkl_linear(x, layout, weight, bias, rows)


def _bf16(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    """What autocast would do: input, weights and bias are rounded to bf16, and so is the sum, which is in fp32."""
    layout = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().bfloat16(), rows)
    bias = None if layer.bias is None else layer.bias.detach().bfloat16()
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.bfloat16(), layout, bias, "none", [], "")

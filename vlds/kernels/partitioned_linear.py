"""Linear layers whose weight ZeRO stage 3 gathers before each use.

Torch's would keep the gathered weight until the backward pass. DeepSpeed's keeps the input of every
layer, which a frozen weight does not need, and rounds in other places than torch's. Here a frozen
layer keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TORCH_LINEAR = torch._C._nn.linear
"""Not `F.linear`, which DeepSpeed may have replaced."""


class PartitionedLinear(torch.autograd.Function):
    """`torch.nn.functional.linear` of inputs (..., i), a weight (o, i) and a bias (o,) or none."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # itself: its numbers are other ones while it is partitioned
        ctx.save_for_backward(inputs if weight.requires_grad else None)
        return TORCH_LINEAR(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (inputs,) = ctx.saved_tensors
        of_inputs = of_weight = of_bias = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            with gathered(ctx.weight):
                of_inputs = gradient @ ctx.weight
        if ctx.needs_input_grad[1]:
            of_weight = flat.mT @ inputs.reshape(-1, inputs.shape[-1])
        if ctx.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_inputs, of_weight, of_bias


@contextmanager
def gathered(weight: Any) -> Iterator[None]:
    """Inside, a weight is whole. It is anyway, except where a module uses another's weight."""
    is_partitioned = weight.ds_status.name == "NOT_AVAILABLE"
    if is_partitioned:
        weight.all_gather()
    try:
        yield
    finally:
        if is_partitioned:
            weight.partition()


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, with `PartitionedLinear` where DeepSpeed gathers the weight."""
    if not hasattr(weight, "ds_status") or not torch.is_grad_enabled():
        return TORCH_LINEAR(inputs, weight, bias)
    output: Tensor = PartitionedLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return output


@contextmanager
def partitioned_linear() -> Iterator[None]:
    """Inside, models use `linear`."""
    F.linear = linear  # type: ignore[assignment]
    try:
        yield
    finally:
        restore_linear()


def restore_linear() -> None:
    """Let models use torch's own, also after DeepSpeed has replaced it for the whole program."""
    F.linear = TORCH_LINEAR

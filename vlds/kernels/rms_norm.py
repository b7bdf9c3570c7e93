"""RMSNorm on a CPU, some rows at a time, so that what is in float32 stays in the cache.

Hugging Face's norms work on whole tensors in float32 and keep two of them for the backward pass.
Here only the input in its own type is kept. The results of the forward pass are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vlds.kernels.chunks import chunks

WIDTH = 8
"""Features of the norm that shows how a class computes."""


class RMSNorm(torch.autograd.Function):
    """Inputs (..., d) over their root mean square, times a weight (d,)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
        flat = inputs.reshape(-1, inputs.shape[-1])
        output = torch.empty_like(flat)
        factors = torch.empty(len(flat), 1)
        for rows in chunks(len(flat), flat.shape[1]):
            precise = flat[rows].float()
            factors[rows] = precise.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            torch.mul(precise.mul_(factors[rows]).to(flat.dtype), weight, out=output[rows])
        ctx.save_for_backward(inputs, weight, factors)
        return output.view(inputs.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        inputs, weight, factors = ctx.saved_tensors
        flat, over = (x.reshape(-1, x.shape[-1]) for x in (inputs, gradient))
        of_inputs = torch.empty_like(flat)
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in chunks(len(flat), flat.shape[1]):
            normed = flat[rows].float().mul_(factors[rows])
            if ctx.needs_input_grad[1]:
                of_weight += (over[rows] * normed).sum(0)
            of_normed = (over[rows] * weight).float()
            shares = (of_normed * normed).mean(-1, keepdim=True)
            of_inputs[rows] = of_normed.addcmul_(normed, shares, value=-1).mul_(factors[rows])
        found = of_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None
        return of_inputs.view(inputs.shape), found, None


def rms_norm(norm: Any, inputs: Tensor) -> Tensor | None:
    """What a norm of Hugging Face gives in training on a CPU; None where its own code must run."""
    suits = (
        torch.is_grad_enabled()
        and inputs.device.type == "cpu"
        and inputs.dtype == norm.weight.dtype
        and inputs.dtype.itemsize == 2
        and (inputs.requires_grad or norm.weight.requires_grad)
    )
    if not suits:
        return None
    output: Tensor = RMSNorm.apply(inputs, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return output


@cache
def is_rms_norm(kind: Any) -> bool:
    """True if norms of this class have a weight and compute what `RMSNorm` does."""
    is_named = kind.__name__.endswith(("RMSNorm", "T5LayerNorm"))
    if not is_named or not kind.__module__.startswith("transformers."):
        return False
    with torch.enable_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            norm: Any = kind(WIDTH)
            names = {name for name, _ in norm.named_parameters()}
            if names != {"weight"} or not hasattr(norm, "variance_epsilon"):
                return False
            norm.bfloat16().weight.data.uniform_(0.5, 1.5)
            inputs = torch.randn(64, WIDTH, dtype=torch.bfloat16, requires_grad=True)
            return torch.equal(norm(inputs), rms_norm(norm, inputs))  # type: ignore[arg-type]
        except (TypeError, RuntimeError):  # its sizes are other ones
            return False


@contextmanager
def fast_norms(model: nn.Module) -> Iterator[None]:
    """Inside, the model's norms train with `RMSNorm` where it computes the same."""
    with ExitStack() as stack:
        # A norm that a method extends is of a class behind Hugging Face's.
        kinds: set[Any] = {kind for m in model.modules() for kind in type(m).__mro__}
        for kind in kinds:
            if is_rms_norm(kind):
                stack.enter_context(replaced(kind))
        yield


@contextmanager
def replaced(kind: Any) -> Iterator[None]:
    """Inside, norms of a class try `rms_norm` first."""
    own: Callable[..., Tensor] = kind.forward

    def forward(norm: Any, inputs: Tensor) -> Tensor:
        output = rms_norm(norm, inputs)
        return own(norm, inputs) if output is None else output

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = own

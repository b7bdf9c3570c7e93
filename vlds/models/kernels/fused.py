"""Computations that work on some rows at a time, so that what is in float32 stays in the cache.

`TokenNLL` is the loss of tokens. `RMSNorm` takes the place of Hugging Face's norms in training on a
CPU: these work on whole tensors in float32 and keep two of them for the backward pass; here only
the input in its own type is kept, and the results of the forward pass are the same bits. `linear`
is for layers whose weights ZeRO stage 3 gathers before each use.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.runtime.folders import scratch_folder

CHUNK = 1 << 18
"""Numbers that one thread computes at a time."""


def chunks(num_rows: int, width: int, most: int | None = None) -> Iterator[slice]:
    """Rows of so many numbers that are computed together: at most `most` numbers, by default what
    the caches of all threads hold."""
    # At least one row, however wide it is.
    most = CHUNK * torch.get_num_threads() if most is None else most
    size = max(1, most // max(1, width))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)


FLAGS = ("-std=c11", "-O3", "-march=native", "-shared", "-fPIC")
LONGEST_S = 60.0
"""Time that the compiler may take."""


@cache
def compiled_functions(source: Path) -> ctypes.CDLL | None:
    """The functions of a C file, compiled for this process in a quarter of a second; None if that
    is impossible here. $CC names another compiler than cc."""
    # For this processor (-march=native) and thus for each process: a cached file could come from
    # another machine. Once loaded, the library needs its file no longer.
    try:
        with scratch_folder() as folder:
            library = folder / "functions.so"
            command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, str(source)]
            subprocess.run(
                [*command, "-o", str(library)], check=True, capture_output=True, timeout=LONGEST_S
            )
            return ctypes.CDLL(str(library))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


CHUNK_ON_GPU = 1 << 25
"""Logits: more would take memory, and fewer would leave the GPU idle."""


class TokenNLL(torch.autograd.Function):
    """Negative log-likelihood: logits (n, w) and labels (n,) -> (n,), in at least float32.

    Logits over the vocabulary are the largest tensor of a step. Torch's cross-entropy keeps them in
    float32, and holds two more of that size in the backward pass. Here they stay in their own type.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        totals = logits.new_empty(len(logits), dtype=precise)
        for rows in pieces(logits):
            totals[rows] = logits[rows].to(precise).logsumexp(-1)
        ctx.save_for_backward(logits, labels)
        return totals - logits.gather(1, labels[:, None])[:, 0].to(precise)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        for rows in pieces(logits):
            # The gradient of logsumexp(x) - x[label] is softmax(x), less 1 at the label.
            of_rows = logits[rows].to(gradient.dtype).softmax(-1)
            ones = torch.ones_like(of_rows[:, :1])
            of_rows.scatter_add_(1, labels[rows, None], -ones)
            of_logits[rows] = of_rows.mul_(gradient[rows, None])
        return of_logits, None


def pieces(logits: Tensor) -> Iterator[slice]:
    """Rows that are computed together."""
    most = None if logits.device.type == "cpu" else CHUNK_ON_GPU
    return chunks(len(logits), logits.shape[1], most)


WIDTH = 8
"""Features of the norm by which `is_rms_norm` tries a class."""


class RMSNorm(torch.autograd.Function):
    """Inputs (..., d) over their root mean square, times a weight (d,)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
        flat = inputs.reshape(-1, inputs.shape[-1])
        output = torch.empty_like(flat)
        factors = torch.empty(len(flat), 1)
        for rows in chunks(len(flat), flat.shape[1]):
            # The same operations, in the same order and types, as Hugging Face's norm.
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
            # y = n * w with n = x / rms(x), and dn/dx = (1 - n n^T / d) / rms(x).
            normed = flat[rows].float().mul_(factors[rows])
            if ctx.needs_input_grad[1]:
                of_weight += (over[rows] * normed).sum(0)
            of_normed = (over[rows] * weight).float()
            shares = (of_normed * normed).mean(-1, keepdim=True)
            of_inputs[rows] = of_normed.addcmul_(normed, shares, value=-1).mul_(factors[rows])
        found = of_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None
        return of_inputs.view(inputs.shape), found, None


def rms_norm(norm: Any, inputs: Tensor) -> Tensor | None:
    """`RMSNorm` with a Hugging Face norm's weight; None where that norm's own code must run."""
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
    # Names alone do not say: some classes add 1 to the weight, or scale after the cast. So a small
    # norm of the class computes one example, which must give the same bits.
    is_named = kind.__name__.endswith(("RMSNorm", "T5LayerNorm"))
    if not is_named or not kind.__module__.startswith("transformers."):
        return False
    with torch.enable_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        try:
            norm: Any = kind(WIDTH)
            names = {name for name, _ in norm.named_parameters()}
            if names != {"weight"} or not hasattr(norm, "variance_epsilon"):
                return False
            # Not the initial weight of ones, which would hide how it is used.
            norm.bfloat16().weight.data.uniform_(0.5, 1.5)
            inputs = torch.randn(64, WIDTH, dtype=torch.bfloat16, requires_grad=True)
            return torch.equal(norm(inputs), rms_norm(norm, inputs))  # type: ignore[arg-type]
        except (TypeError, RuntimeError):  # it is made from other arguments
            return False


@contextmanager
def fast_norms(model: nn.Module) -> Iterator[None]:
    """Inside, the model's norms train with `RMSNorm` where it computes the same."""
    # A norm that a method extends is of a class behind Hugging Face's, so all bases count.
    kinds: set[Any] = {kind for m in model.modules() for kind in type(m).__mro__}
    forwards = {kind: kind.forward for kind in kinds if is_rms_norm(kind)}

    def fast(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(norm: Any, inputs: Tensor) -> Tensor:
            output = rms_norm(norm, inputs)
            return own(norm, inputs) if output is None else output

        return forward

    try:
        for kind, own in forwards.items():
            kind.forward = fast(own)
        yield
    finally:
        for kind, own in forwards.items():
            kind.forward = own


TORCH_LINEAR = torch._C._nn.linear
"""Not `F.linear`, which DeepSpeed may have replaced."""


class PartitionedLinear(torch.autograd.Function):
    """`torch.nn.functional.linear` of inputs (..., i), a weight (o, i) and a bias (o,) or none.

    Torch's would keep the gathered weight until the backward pass. DeepSpeed's keeps the input of
    every layer, which a frozen weight does not need, and rounds in other places than torch's. Here
    a frozen layer keeps nothing.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Not saved for the backward pass: that would keep the gathered numbers. The parameter
        # itself is gathered again.
        ctx.weight = weight
        ctx.save_for_backward(inputs if weight.requires_grad else None)
        return TORCH_LINEAR(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (inputs,) = ctx.saved_tensors
        of_inputs = of_weight = of_bias = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            # The weight is whole already where a module uses another's weight.
            is_partitioned = ctx.weight.ds_status.name == "NOT_AVAILABLE"
            if is_partitioned:
                ctx.weight.all_gather()
            try:
                of_inputs = gradient @ ctx.weight
            finally:
                if is_partitioned:
                    ctx.weight.partition()
        if ctx.needs_input_grad[1]:
            of_weight = flat.mT @ inputs.reshape(-1, inputs.shape[-1])
        if ctx.needs_input_grad[2]:
            of_bias = flat.sum(0)
        return of_inputs, of_weight, of_bias


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

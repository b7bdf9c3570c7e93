"""How long the operations of a rehearsal take on this machine: each different one runs here, once
or a few times, with tensors of its own shapes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry

from vlds.runtime.kept_memory import keep_freed_memory
from vlds.runtime.progress import follow
from vlds.training.gradient_sums import square_sum

aten = torch.ops.aten
FUSED = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        aten._scaled_dot_product_flash_attention_backward
    ),
}
"""Products that torch does not count on a CPU, and the GPU's that are alike."""
COUNTED: dict[Any, Callable[..., int]] = {
    **flop_registry,
    **{function: flop_registry[alike] for function, alike in FUSED.items()},
}
"""The operations of each kind of product, given its arguments and its result."""
ROUNDS = 5
"""Times that an operation is timed, after one that warms up."""
AROUND = 6e-5
"""Seconds of an operation beside its own time: Python, autograd, and the views around it. Measured
with BART-base on a Xeon."""
UPDATED = 1 << 22
"""Weights of which an update is timed."""
LONG = 0.2
"""Seconds after which no further round starts."""
BUDGET = 20.0
"""Seconds after which no further operation is timed."""


class Shape(NamedTuple):
    """A tensor in an operation's arguments."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Shape:
        """What a tensor takes."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def zeros(self) -> Tensor:
        """A tensor of zeros, which are valid indices too."""
        reach = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True)) + 1
        held = torch.zeros(reach if 0 not in self.size else 0, dtype=self.dtype)
        return held.as_strided(self.size, self.stride)


class Operation(NamedTuple):
    """A call, with shapes instead of tensors."""

    function: Callable[..., Any]
    leaves: tuple[Any, ...]
    """Of the arguments' tree."""
    tree: TreeSpec

    @classmethod
    def of(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Operation:
        """A call of a function with these arguments."""
        leaves, tree = tree_flatten((args, kwargs))
        return cls(
            function, tuple(Shape.of(x) if isinstance(x, Tensor) else x for x in leaves), tree
        )

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices."""
        return getattr(self.function, "overloadpacket", None) in COUNTED

    @property
    def size(self) -> int:
        """Elements of its tensors, or operations if it is a product of matrices."""
        shapes = [leaf.size for leaf in self.leaves if isinstance(leaf, Shape)]
        elements = sum(map(math.prod, shapes))
        if not self.is_product or len(shapes) < 2:
            return elements
        return math.prod(shapes[-2]) * shapes[-1][-1]

    def seconds(self) -> float:
        """The median of some rounds, without the first, which may compile. Each has tensors of its
        own, as in a step, where others have filled the caches in between.

        Errors: RuntimeError or IndexError if zeros are not what the function wants.
        """
        times: list[float] = []
        calls = [self.arguments() for _ in range(ROUNDS + 1)]
        for args, kwargs in calls:
            began = time.perf_counter()
            self.function(*args, **kwargs)
            times.append(time.perf_counter() - began)
            if len(times) > 1 and sum(times) > LONG:
                break
        return median(times[1:])

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Of a call, with zeros."""
        leaves = [leaf.zeros() if isinstance(leaf, Shape) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.tree)
        return args, kwargs


def seconds_here(operations: Counter[Operation]) -> tuple[float, float]:
    """Of all products, and of all other operations. What cannot run on zeros counts as nothing.
    After `BUDGET` seconds, what is left takes as long as what was timed, by its size."""
    keep_freed_memory()  # as a run does
    seconds, timed, left = ({True: 0.0, False: 0.0} for _ in range(3))
    largest_first = sorted(operations.items(), key=lambda item: -item[0].size * item[1])
    began = time.perf_counter()
    for operation, times in follow(largest_first, "timing operations", len(largest_first)):
        kind = operation.is_product
        if timed[kind] and time.perf_counter() - began > BUDGET:
            left[kind] += times * operation.size
            continue
        with suppress(RuntimeError, IndexError):
            seconds[kind] += times * operation.seconds()
            timed[kind] += times * operation.size
    whole = {kind: seconds[kind] * (1 + left[kind] / max(1, timed[kind])) for kind in seconds}
    return whole[True], whole[False] + operations.total() * AROUND


def update_seconds(num_weights: int, dtype: torch.dtype) -> float:
    """How long this machine takes to sum the gradients of so many weights in fp32, to clip them, to
    take a step of AdamW and to round the weights."""
    size = min(num_weights, UPDATED)
    gradient, weight = (torch.zeros(size, dtype=dtype) for _ in range(2))
    master, total = torch.nn.Parameter(torch.zeros(size)), torch.zeros(size)
    master.grad = total
    optimizer = torch.optim.AdamW([master], fused=True)

    def update() -> None:
        total.copy_(gradient)
        total.mul_(1 / (1 + square_sum(total)))
        optimizer.step()
        weight.copy_(master.detach())

    return Operation.of(update).seconds() * num_weights / max(1, size)

"""How fast a machine computes, measured in a second or given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vlds.plan.rehearsal import Rehearsed

SIDE = 1024
"""Of the matrices that are multiplied."""
ELEMENTS = 1 << 20
"""Of the tensors that are added: about an activation of a small model."""
ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    """What one rank can do."""

    flops: float
    """Operations of matrix products a second."""
    bandwidth: float
    """Bytes a second that other operations read and write."""
    call: float = 5e-6
    """Seconds that an operation takes at least."""
    link: float = 1e9
    """Bytes a second between ranks."""


@dataclass(frozen=True)
class Seconds:
    """How long work takes at the ceilings."""

    products: float
    others: float

    @classmethod
    def of(cls, work: Rehearsed, ceilings: Ceilings) -> Seconds:
        """Of one micro-batch."""
        others = work.moved / ceilings.bandwidth + work.calls * ceilings.call
        return cls(work.flops / ceilings.flops, others)

    def times(self, number: int) -> Seconds:
        """Of several micro-batches."""
        return Seconds(self.products * number, self.others * number)


def measured(dtype: torch.dtype) -> Ceilings:
    """Those of this process on a CPU, with its number of threads."""
    left, right = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    one, other = (torch.randn(ELEMENTS).to(dtype) for _ in range(2))
    product, sum_ = median_seconds(lambda: left @ right), median_seconds(lambda: one + other)
    return Ceilings(2 * SIDE**3 / product, 3 * ELEMENTS * one.element_size() / sum_)


def median_seconds(work: Callable[[], object]) -> float:
    """The median of some rounds, after one that warms up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[ROUNDS // 2]

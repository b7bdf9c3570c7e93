"""What a rank's machine has and can do: given, or measured here in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vlds.plan.rehearsal import Work

SIDE = (1024, 8192)
"""Of the matrices that are multiplied, on a CPU and on a GPU."""
ELEMENTS = (1 << 20, 1 << 26)
"""Of the tensors that are added: about an activation of a model."""
ROUNDS = 7
CALL = 5e-6
"""Seconds that an operation takes at least."""
BOUNDS = (0.001, 1_000_000)
"""Of the numbers in an option."""
LINK = 1e9
"""Bytes a second between ranks, where none are given."""


@dataclass(frozen=True)
class Machine:
    """What one rank has; None is not known."""

    memory: int | None = None
    """Bytes."""
    flops: float | None = None
    """Operations of products a second."""
    bandwidth: float | None = None
    """Bytes a second that other operations read and write."""
    link: float = LINK
    """Bytes a second between ranks."""

    @classmethod
    def given(
        cls, memory: str | None, tflops: str | None, bandwidth: str | None, link: str | None
    ) -> Machine:
        """From the words of a command: GB, and thousands of GFLOP or GB a second.

        Errors: ValueError if one is no number in `BOUNDS`, or one rate of a GPU that is not here is
        missing.
        """
        in_bytes = above_zero("--memory", memory, 1e9)
        flops = above_zero("--tflops", tflops, 1e12)
        rate = above_zero("--bandwidth", bandwidth, 1e9)
        if (flops is None) != (rate is None) and not torch.cuda.is_available():
            given, missing = ("--tflops", "--bandwidth")[:: 1 if rate is None else -1]
            raise ValueError(
                f"{given} without {missing}: this machine has no GPU whose rate could be measured "
                f"in its place; give {missing} too"
            )
        return cls(
            None if in_bytes is None else int(in_bytes),
            flops,
            rate,
            above_zero("--link", link, 1e9) or LINK,
        )

    @property
    def is_here(self) -> bool:
        """Whether it is this CPU, where a rehearsal's operations can run; rates are a GPU's."""
        return self.flops is None and self.bandwidth is None and not torch.cuda.is_available()

    def measured(self, dtype: torch.dtype) -> Machine:
        """With what was not given measured here, on the GPU or on the CPU with this process's
        threads."""
        on_gpu = torch.cuda.is_available()
        with torch.device("cuda" if on_gpu else "cpu"):
            left, right = (torch.randn(SIDE[on_gpu], SIDE[on_gpu]).to(dtype) for _ in range(2))
            one, other = (torch.randn(ELEMENTS[on_gpu]).to(dtype) for _ in range(2))
        flops = self.flops or 2 * len(left) ** 3 / median_seconds(lambda: left @ right)
        moved = 3 * len(one) * one.element_size()
        bandwidth = self.bandwidth or moved / median_seconds(lambda: one + other)
        return Machine(self.memory, flops, bandwidth, self.link)

    def seconds(self, work: Work) -> tuple[float, float]:
        """Of products, and of all other operations."""
        flops, bandwidth = self.ceilings
        return work.flops / flops, work.moved / bandwidth + work.calls * CALL

    @property
    def ceilings(self) -> tuple[float, float]:
        """Operations of products, and bytes, a second."""
        assert self.flops is not None, "measured() first"
        assert self.bandwidth is not None, "measured() first"
        return self.flops, self.bandwidth


def above_zero(option: str, text: str | None, unit: float) -> float | None:
    """The value of an option in its unit.

    Errors: ValueError if it is no number in `BOUNDS`.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    least, most = BOUNDS
    if not least <= value <= most:
        raise ValueError(f"{option} is {text!r}; give a number from {least} to {most:,}")
    return value * unit


def median_seconds(work: Callable[[], object]) -> float:
    """The median of some rounds, after one that warms up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[ROUNDS // 2]

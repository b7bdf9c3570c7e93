"""The optimiser of VL-Adapter (transformers 4.2.1's AdamW), in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.toys.recorded.case import NamedSlice


class ReferenceAdamW:
    """eps is added outside the bias correction of v; decay acts on the updated weight; weights
    without gradient do not change."""

    def __init__(
        self, slices: Sequence[NamedSlice], weight_decay: float, eps: float = 1e-6
    ) -> None:
        self.slices, self.weight_decay, self.eps = list(slices), weight_decay, eps
        self.state: dict[str, tuple[int, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self, learning_rate: float, task: int) -> None:
        """Update all weights that batches of this task use."""
        for named in self.slices:
            if named.parameter.grad is None or named.task not in (None, task):
                continue
            weight, gradient = named.of(named.parameter.data), named.of(named.parameter.grad)
            zero = torch.zeros_like(weight)
            count, first, second = self.state.get(named.key, (0, zero, zero))
            count, first = count + 1, 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            self.state[named.key] = count, first, second
            size = learning_rate * math.sqrt(1 - 0.999**count) / (1 - 0.9**count)
            weight -= size * first / (second.sqrt() + self.eps)
            if not undecayed(named.key):
                weight -= learning_rate * self.weight_decay * weight


def undecayed(key: str) -> bool:
    """True if the original does not decay a parameter of this name."""
    return "bias" in key or "LayerNorm.weight" in key

"""How a method changes what trains after given steps of a run. The engine is rebuilt around the
changed model and goes on.

Uses: bottlenecks that lose their least important neurons (vlds/methods/shrinking.py); parts of the
backbone that begin to train later; ranks that are cut or grow. What only sets weights to zero, or
writes into a buffer, is a `StepRule`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

Trained: TypeAlias = Mapping[str, Tensor]
"""A weight's "fp32" master and AdamW's moments "exp_avg" and "exp_avg_sq", whole, on the CPU."""


class Revision(ABC):
    """Acts on all ranks alike: nothing in it may differ between them."""

    @abstractmethod
    def steps(self, num_steps: int) -> Sequence[int]:
        """The steps after which it acts, in a run of so many: from 1 to `num_steps` - 1."""

    @abstractmethod
    def revise(
        self, step: int, num_steps: int, state: Mapping[nn.Parameter, Trained]
    ) -> Mapping[nn.Parameter, Trained | None]:
        """Change the modules after a step; what trains from then on, with its state. None: the
        state of a weight that begins to train as it is.

        `state`: what the method has trained so far. All of it goes on, but for parameters that are
        taken out of the model. Under ZeRO's stage 3 weights are elsewhere: their values are here.
        """

    @abstractmethod
    def fit(self, saved: Mapping[nn.Parameter, torch.Size]) -> Collection[nn.Parameter]:
        """Give new modules the shapes that a run's state or artifact holds, values aside; what
        trains then.

        `saved`: the shapes of those of the model's parameters that it holds.
        """

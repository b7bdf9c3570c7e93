"""MetaAdapter (Hou et al. 2021, https://arxiv.org/abs/2105.11905): weights from which a task is
learnt in few steps, by a first-order mixture of MAML and Reptile.

In each outer step, from the weights theta, each task in turn takes a step of Adam on one half of
its examples, remembers where it is, takes a second step on the other half, and goes back to theta:

    theta <- theta + rate * mean over tasks of (theta'' - theta')

The reference is `train_maml_epoch` (jindongwang/transferlearning, code/ASR/Adapter/train.py). As
there, Adam has no first moment, its second moments and step counts are never reset, weight decay
is added to the clipped gradient, and a gradient that is not finite changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

Half = Callable[[], float]
"""Sets the gradients of the loss on half of a task's examples, and returns that loss."""


@dataclass
class MetaSteps:
    """Outer steps over tasks."""

    weights: Sequence[nn.Parameter]
    optimizer: torch.optim.Adam
    clip_norm: float
    """Largest norm of a gradient; 0 switches clipping off."""
    num_skipped: int = 0
    """Steps inside tasks whose loss or gradient was not finite."""

    @torch.no_grad()
    def step(self, tasks: Sequence[tuple[Half, Half]], rate: float) -> list[tuple[float, float]]:
        """One outer step; returns each task's losses on its halves."""
        start = [weight.clone() for weight in self.weights]
        changes = [torch.zeros_like(weight) for weight in self.weights]
        losses = []
        for first, second in tasks:
            before = self.inner(first)
            middle = [weight.clone() for weight in self.weights]
            losses.append((before, self.inner(second)))
            for change, weight, old in zip(changes, self.weights, middle, strict=True):
                change += weight - old
            self.put(start)
        moved = zip(start, changes, strict=True)
        self.put([old + rate * change / len(tasks) for old, change in moved])
        return losses

    def inner(self, half: Half) -> float:
        """A step on half of a task's examples; returns the loss before the step."""
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = half()
        norm = clip_grad_norm_(self.weights, self.clip_norm or inf)
        if isfinite(loss) and norm.isfinite():
            self.optimizer.step()
        else:
            self.num_skipped += 1
        return loss

    def put(self, values: Sequence[Tensor]) -> None:
        """Set the weights."""
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)


def outer_rate(rate: float, step: int, steps: int) -> float:
    """The rate of outer step 0, 1, ...: from `rate` linearly to 0 at `steps`."""
    return rate * (1 - step / steps)

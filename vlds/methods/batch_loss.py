"""What a method adds to the loss of each example.

Uses: the consistency of several passes over one batch, whose modules draw anew in each (AdaMix); a
guide that reads what modules have computed of the batch (SimAdapter); a distance from what the
model says without the method. A loss of weights alone is a step rule's `penalty`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor

from vlds.schema import IGNORED_LABEL


class Predicted(NamedTuple):
    """What one pass over a batch says of the n tokens of its labels."""

    logits: Tensor
    """(n, w), row by row."""
    labels: Tensor
    """(b, t) int64, IGNORED_LABEL where there is none."""

    @property
    def is_label(self) -> Tensor:
        """(b, t) bool, True for n of them."""
        return self.labels != IGNORED_LABEL

    def by_example(self, values: Tensor) -> Tensor:
        """Values of the tokens (n,) -> (b, t), 0 elsewhere."""
        is_label = self.is_label
        return values.new_zeros(is_label.shape).masked_scatter(is_label, values)


class BatchLoss(ABC):
    """A term of each example's loss; progress and metrics name it as the method is named."""

    passes: ClassVar[int] = 1
    """How often the model runs over a batch. The tokens' likelihood is that of the first pass."""

    @abstractmethod
    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        """(b,) in the unit of an example's summed token nll: the example's weight and its share of
        the global batch come on top."""

"""What a method adds to the loss of each example.

Uses: the consistency of several passes over one batch, whose modules draw anew in each (AdaMix); a
guide that reads what modules have computed of the batch (SimAdapter); a distance from what the
model says without the method. A loss of weights alone is a step rule's `penalty`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.schema import IGNORED_LABEL


class ClassesPredicted(NamedTuple):
    """What one pass says of the m examples of a task with a head."""

    logits: Tensor
    """(m, c)."""
    rows: Tensor
    """(m,) int64 of the batch, rising."""
    targets: Tensor
    """(m, c) in 0..1."""
    is_binary: bool
    """True if each class is a question of its own; False if one class of them holds."""

    def losses(self) -> Tensor:
        """(m,) cross-entropy with the targets, over the classes or summed over them, in at least
        float32. An example whose targets are all 0 has no class: a cross-entropy of 0."""
        logits = precise(self.logits)
        targets = self.targets.to(logits)
        if self.is_binary:
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return -(targets * logits.log_softmax(-1)).sum(1)

    def distributions(self) -> Tensor:
        """(m, k, o) logits of k distributions over o outcomes: c of yes and no, or one of c."""
        if self.is_binary:
            return torch.stack([self.logits, torch.zeros_like(self.logits)], -1)
        return self.logits[:, None]


class Predicted(NamedTuple):
    """What one pass over a batch says of its labels: of n tokens, and of classes."""

    logits: Tensor
    """(n, w), row by row."""
    labels: Tensor
    """(b, t) int64, IGNORED_LABEL where there is none."""
    classes: Sequence[ClassesPredicted] = ()
    """Of each task with a head, in the order of the tasks. One label stands for an example's
    classes."""

    @property
    def is_label(self) -> Tensor:
        """(b, t) bool."""
        return self.labels != IGNORED_LABEL

    @property
    def is_token(self) -> Tensor:
        """(b, t) bool, True for n labels: those that do not stand for classes."""
        is_token = self.is_label
        for predicted in self.classes:
            is_token[predicted.rows] = False
        return is_token

    def by_example(self, values: Tensor, of_classes: Sequence[Tensor] = ()) -> Tensor:
        """Values of the tokens (n,) and of each task's examples (m,) -> (b, t), 0 elsewhere."""
        is_token, is_label = self.is_token, self.is_label
        placed = values.new_zeros(is_label.shape).masked_scatter(is_token, values)
        for predicted, own in zip(self.classes, of_classes, strict=True):
            is_mine = torch.zeros_like(is_label)
            is_mine[predicted.rows] = True
            placed = placed.masked_scatter(is_mine & is_label, own.to(values))
        return placed


def precise(values: Tensor) -> Tensor:
    """Values in at least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class BatchLoss(ABC):
    """A term of each example's loss; progress and metrics name it as the method is named."""

    passes: ClassVar[int] = 1
    """How often the model runs over a batch. The tokens' likelihood is that of the first pass."""

    @abstractmethod
    def of_examples(self, passes: Sequence[Predicted]) -> Tensor:
        """(b,) in the unit of an example's summed token nll: the example's weight and its share of
        the global batch come on top."""

"""The heads of a model: which rows of a batch they read, their losses and their answers.

b examples, t labels of an example, m examples of a task, c classes of it, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.heads.base import ClassOutput
from vlds.methods.batch_loss import ClassesPredicted, Predicted
from vlds.schema import IGNORED_LABEL, Batch


class Split(NamedTuple):
    """The labels of a batch: tokens, or one label that stands for an example's classes."""

    is_label: Tensor
    """(b, t) bool."""
    is_token: Tensor
    """(b, t) bool."""
    is_class: Tensor
    """(b, t) bool, one in each row of `rows`."""
    rows: Tensor
    """(m,) int64 of the examples with classes, rising."""


class TaskHeads(nn.ModuleDict):
    """Task -> its head, for tasks that have one."""

    def __init__(
        self,
        outputs: Mapping[str, ClassOutput] | None = None,
        tasks: Sequence[str] = (),
        width: int = 0,
    ) -> None:
        """`outputs`: of the tasks with a head; `tasks`: all, in the order of the recipe; `width`:
        of the states that heads read."""
        outputs = outputs or {}
        super().__init__(
            {name: outputs[name].head.build(width) for name in tasks if name in outputs}
        )
        self.outputs = {name: outputs[name] for name in self}
        self.numbers = {name: tasks.index(name) for name in self}
        """Number of each task with a head."""

    def has_classes(self, batch: Batch) -> Tensor:
        """(b,) bool, on the CPU: True for examples of tasks with a head."""
        numbers = torch.tensor(list(self.numbers.values()), dtype=torch.long)
        return torch.isin(batch.task_index, numbers)

    def name_of(self, batch: Batch) -> str:
        """The task of a batch whose examples all belong to one task with a head."""
        task = int(batch.task_index[0])
        return next(name for name, number in self.numbers.items() if number == task)

    def split(self, batch: Batch, labels: Tensor) -> Split:
        """Tell labels (b, t) that are tokens from those that stand for classes."""
        has_classes = self.has_classes(batch).to(labels.device)[:, None]
        is_label = labels != IGNORED_LABEL
        is_class = is_label & has_classes
        return Split(is_label, is_label & ~has_classes, is_class, is_class.any(1).nonzero()[:, 0])

    def predicted(self, states: Tensor, rows: Tensor, batch: Batch) -> list[ClassesPredicted]:
        """Logits and targets of rows (m,) of a batch with these states (m, d).

        All heads run in the order of the tasks, even over no rows: under ZeRO-3, all ranks must
        gather the same weights.
        """
        tasks = batch.task_index.to(rows.device)[rows]
        found = []
        for name, head in self.items():
            mine = tasks == self.numbers[name]
            logits = head(states[mine])
            targets = targets_of_rows(batch, rows[mine], logits)
            is_binary = self.outputs[name].loss == "binary_cross_entropy"
            found.append(ClassesPredicted(logits, rows[mine], targets, is_binary))
        return found

    def predicted_alone(self, states: Tensor, batch: Batch, labels: Tensor) -> Predicted:
        """The same of all examples with classes, for kinds that write no text. States: (b, d)."""
        rows = self.split(batch, labels).rows
        classes = self.predicted(states[rows], rows, batch)
        return Predicted(states.new_zeros(0, 1), labels, classes)

    def answers(self, states: Tensor, batch: Batch) -> list[tuple[str, float]]:
        """The best class of each example of one task, and its probability: by softmax, or by
        sigmoid if several classes may hold. States: (b, d)."""
        name = self.name_of(batch)
        output, logits = self.outputs[name], self[name](states).float()
        is_binary = output.loss == "binary_cross_entropy"
        best, chosen = (logits.sigmoid() if is_binary else logits.softmax(-1)).max(-1)
        pairs = zip(chosen.tolist(), best.tolist(), strict=True)
        return [(output.head.names[number], confidence) for number, confidence in pairs]


def targets_of_rows(batch: Batch, rows: Tensor, logits: Tensor) -> Tensor:
    """(m, c) float32 targets of rows (m,), as many classes as the logits (m, c) have."""
    if batch.class_targets is None:
        return logits.new_zeros(logits.shape, dtype=torch.float32)
    targets = batch.class_targets[rows, : logits.shape[1]]
    return F.pad(targets, (0, logits.shape[1] - targets.shape[1]))

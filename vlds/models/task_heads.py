"""The heads of a model's tasks: where a batch has their examples, and what they say of them.

Shapes: b examples and t labels of a batch, n tokens, m examples of tasks with heads, c examples of
a task, r rivals, k rivals of an example, d width of the states that heads read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.collate import padded
from vlds.models.loss import targets_of
from vlds.models.methods.context import ClassesPredicted, Places, Predicted, places_of
from vlds.schema import IGNORED_LABEL, Batch
from vlds.tasks.class_output import ClassOutput


class Split(NamedTuple):
    """Where the k labels of a batch are: those of n tokens, and one for each of m examples with
    classes. All tensors are where the model computes."""

    every: Places
    tokens: Places
    classes: Places
    among: tuple[Tensor, Tensor] | None
    """Numbers of the tokens (n,) and of the examples with classes (m,) among the k labels; None if
    all are tokens."""
    of_heads: Mapping[str, Tensor]
    """Task -> numbers of its examples among those with classes."""
    contests: Mapping[str, Tensor]
    """Task that ranks -> (c, 1 + k) numbers of each example and its rivals among those of the task;
    -1 where it has fewer."""


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
        # Among all tasks, as `Batch.task_index` counts them, not among those with heads.
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
        """Tell labels (b, t), on the host, that are tokens from those that stand for classes."""
        device, has_classes = batch.input_ids.device, self.has_classes(batch)
        every = (labels != IGNORED_LABEL).nonzero()
        is_class = has_classes[every[:, 0]]
        tokens, classes = ((is_class == is_true).nonzero()[:, 0] for is_true in (False, True))
        tasks = batch.task_index[every[classes, 0]]
        of_heads = {name: (tasks == n).nonzero()[:, 0] for name, n in self.numbers.items()}
        contests = {
            name: contests_of(every[classes[of_heads[name]], 0].tolist(), batch)
            for name, output in self.outputs.items()
            if output.loss == "ranking"
        }

        def moved(numbers: Tensor) -> Tensor:
            return numbers.to(device, non_blocking=True)

        return Split(
            every=places_of(every, device),
            tokens=places_of(every[tokens], device),
            classes=places_of(every[classes], device),
            among=(moved(tokens), moved(classes)) if self else None,
            of_heads={name: moved(some) for name, some in of_heads.items()},
            contests={name: moved(numbers) for name, numbers in contests.items()},
        )

    def predicted(self, states: Tensor, split: Split, batch: Batch) -> list[ClassesPredicted]:
        """Logits and targets of a batch's examples with classes, which have these states (m, d).

        All heads run in the order of the tasks, even over no rows: under ZeRO-3, all ranks must
        gather the same weights.
        """
        found = []
        for name, head in self.items():
            mine = split.of_heads[name]
            logits, rows = head(states[mine]), split.classes[0][mine]
            if (numbers := split.contests.get(name)) is not None:
                found.append(ranked(logits[:, -1], rows, numbers))
                continue
            # Targets have as many columns as the batch's largest class; the head has all classes.
            targets = logits.new_zeros(logits.shape, dtype=torch.float32)
            if batch.class_targets is not None:
                named = batch.class_targets[rows, : logits.shape[1]]
                targets = F.pad(named, (0, logits.shape[1] - named.shape[1]))
            is_binary = self.outputs[name].loss == "binary_cross_entropy"
            found.append(ClassesPredicted(logits, rows, targets, is_binary))
        return found

    def predicted_alone(self, states: Tensor, batch: Batch) -> Predicted:
        """The same of all examples with classes, for kinds that write no text. States: (b, d)."""
        split = self.split(batch, targets_of(batch.on_host))
        classes = self.predicted(states[split.classes[0]], split, batch)
        none = split.classes[0][:0]
        return Predicted(states.new_zeros(0, 1), targets_of(batch), (none, none), classes)


def contests_of(rows: Sequence[int], batch: Batch) -> Tensor:
    """`Split.contests` of a task with these rows of a batch, rising."""
    of = [] if batch.rival_of is None else batch.rival_of.tolist()
    num_examples, members = len(batch) - len(of), dict[int, list[int]]()
    for number, row in enumerate(rows):
        # Examples come first, and their rivals behind all of them.
        example = row if row < num_examples else of[row - num_examples]
        members.setdefault(example, []).append(number)
    return padded(list(members.values()), -1)


def ranked(scores: Tensor, rows: Tensor, contests: Tensor) -> ClassesPredicted:
    """The classes of a task that ranks are the texts of an example: its own, then its rivals.
    `scores`: (c,) of the task's rows (c,) of the batch; `contests`: as in `Split`."""
    # The lowest number instead of -inf, which times a target of 0 would be NaN.
    lowest = torch.finfo(scores.dtype).min
    logits = scores[contests.clamp(min=0)].masked_fill(contests < 0, lowest)
    targets = torch.zeros_like(logits, dtype=torch.float32)
    targets[:, :1] = 1
    return ClassesPredicted(logits, rows[contests[:, 0]], targets, is_binary=False)

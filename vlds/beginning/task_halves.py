"""The examples of each task in a global batch, in two halves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlds.models.loss import LossTotals, count
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch


@dataclass(frozen=True)
class TaskHalf:
    """Half of a task's examples."""

    task: int
    batches: list[Batch]
    """Those of this rank, by micro-batch; may be none."""
    totals: LossTotals
    """Of all ranks."""


def task_halves(
    global_batches: Sequence[Sequence[Batch]], num_tasks: int, ranks: Ranks
) -> list[tuple[TaskHalf, TaskHalf]]:
    """Both halves of each task that has at least two examples, given this rank's micro-batches of
    one or more global batches. Collective.

    A task's examples are numbered over the ranks, in the order of the global batches, and those
    with odd numbers are its second half: how the batches are cut changes nothing, and each rank has
    a part of both.
    """
    counts = torch.zeros(len(global_batches), ranks.world_size, num_tasks, dtype=torch.float64)
    for number, batches in enumerate(global_batches):
        counts[number, ranks.global_rank] = count(batches, num_tasks)[0]
    flat = ranks.sum(counts).flatten(0, 1)
    before = (flat.cumsum(0) - flat).view_as(counts)[:, ranks.global_rank].long().tolist()
    found: dict[tuple[int, int], list[Batch]] = defaultdict(list)
    for batches, numbers in zip(global_batches, before, strict=True):
        for batch in batches:
            rows: dict[tuple[int, int], list[int]] = defaultdict(list)
            for row, task in enumerate(batch.task_index.tolist()):
                if batch.valid[row]:
                    rows[task, numbers[task] % 2].append(row)
                    numbers[task] += 1
            for half, chosen in rows.items():
                found[half].append(batch.select(torch.tensor(chosen)))
    names = [(task, half) for task in range(num_tasks) for half in range(2)]
    totals = ranks.sum(torch.stack([count(found[name], num_tasks) for name in names]))
    halves = [
        TaskHalf(name[0], found[name], LossTotals(*of_half))
        for name, of_half in zip(names, totals, strict=True)
    ]
    pairs = zip(halves[::2], halves[1::2], strict=True)
    return [(first, second) for first, second in pairs if second.totals.examples.any()]

"""The examples of each task in a global batch, in two halves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlds.models.loss import LossTotals, count
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch


@dataclass(frozen=True)
class TaskHalf:
    """Half of a task's examples."""

    task: int
    batches: list[Batch]
    """Those of this rank, one for each micro-batch. All ranks have equally many, because a loss may
    be collective; one without an example of the half holds a row that is not `valid`."""
    totals: LossTotals
    """Of all ranks."""


def task_halves(
    global_batches: Sequence[Sequence[Batch]], num_tasks: int, ranks: Ranks
) -> list[tuple[TaskHalf, TaskHalf]]:
    """Both halves of each task that has at least two examples, given this rank's micro-batches of
    one or more global batches. Collective.

    A task's examples are numbered over all ranks, in the order of the global batches; odd numbers
    are the second half. So the cut into ranks and micro-batches changes nothing, and each rank has
    a part of both halves.
    """
    numbers = first_numbers(global_batches, num_tasks, ranks)
    rows: dict[tuple[int, int], list[list[int]]] = defaultdict(list)  # of each micro-batch in turn
    micro_batches = [batch for batches in global_batches for batch in batches]
    names = [(task, half) for task in range(num_tasks) for half in range(2)]
    for batches, of_tasks in zip(global_batches, numbers.tolist(), strict=True):
        for batch in batches:
            for name in names:
                rows[name].append([])
            for row, task in enumerate(batch.task_index.tolist()):
                if batch.valid[row]:
                    rows[task, of_tasks[task] % 2][-1].append(row)
                    of_tasks[task] += 1
    found = {
        name: [select(batch, own) for batch, own in zip(micro_batches, rows[name], strict=True)]
        for name in names
    }
    sizes = ranks.sum(torch.tensor([[len(own) for own in rows[name]] for name in names]))
    totals = ranks.sum(torch.stack([count(found[name], num_tasks) for name in names]))
    halves = [
        TaskHalf(
            task=name[0],
            batches=[batch for batch, size in zip(found[name], of_half, strict=True) if size],
            totals=LossTotals(*of_totals),
        )
        for name, of_half, of_totals in zip(names, sizes, totals, strict=True)
    ]
    pairs = zip(halves[::2], halves[1::2], strict=True)
    return [(first, second) for first, second in pairs if second.totals.examples.any()]


def first_numbers(
    global_batches: Sequence[Sequence[Batch]], num_tasks: int, ranks: Ranks
) -> Tensor:
    """(g, k) int64: the numbers of this rank's first examples of each task in each of the global
    batches. Collective."""
    counts = torch.zeros(len(global_batches), ranks.world_size, num_tasks, dtype=torch.float64)
    for number, batches in enumerate(global_batches):
        counts[number, ranks.global_rank] = count(batches, num_tasks)[0]
    flat = ranks.sum(counts).flatten(0, 1)
    return (flat.cumsum(0) - flat).view_as(counts)[:, ranks.global_rank].long()


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch; without any, its first one, which is not valid."""
    chosen = batch.select(torch.tensor(rows or [0]))
    return chosen if rows else replace(chosen, valid=torch.zeros_like(chosen.valid))

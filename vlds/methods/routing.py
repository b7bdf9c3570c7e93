"""Which rows of the running batch belong to which task.

One object per model, shared by all modules with weights per task. The model sets it from the batch;
the modules split their input by task, so that every module runs in the same order on every rank
whatever tasks a rank holds: ZeRO-3 gathers weights module by module and would hang otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_PADDED = 1.25
"""Tasks are padded to one number of rows unless that makes more than so many times the batch's."""


class TaskRouting:
    """The tasks of a batch's rows, grouped once per batch on the CPU."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.tasks: list[int] = []
        """Numbers of the tasks present, in rising order."""
        self._counts: list[int] = []
        self._index = self._given = self._rows = torch.empty(0, dtype=torch.long)
        self._order = torch.empty(0, dtype=torch.long)
        self._inverse = torch.empty(0, dtype=torch.long)
        self._even: tuple[Tensor, Tensor] | None = None
        """Numbers of the rows, n of each task in turn, (tasks * n,), and where each row of the
        batch is among them, (b,). None for one task, and where `MOST_PADDED` forbids it."""

    def set(self, task_index: Tensor, device: torch.device | str = "cpu") -> None:
        """Take the tasks of a new batch: (b,) on the CPU, since they steer Python."""
        assert task_index.device.type == "cpu", "task_index stays on the CPU"
        self._given = task_index
        self._group(task_index, device)

    def fit(self, num_rows: int) -> None:
        """Take `num_rows` rows: those of the batch, or each of them several times, as the beams of
        a search stand beside each other."""
        if num_rows != self.num_rows:
            times, rest = divmod(num_rows, max(1, len(self._given)))
            assert not rest, f"{num_rows} rows, but the batch has {len(self._given)}"
            self._group(self._given.repeat_interleave(times), self._rows.device)

    def _group(self, task_index: Tensor, device: torch.device | str) -> None:
        self._index = task_index
        self.num_rows = len(task_index)
        tasks, counts = torch.unique(task_index, return_counts=True)
        self.tasks, self._counts = tasks.tolist(), counts.tolist()
        self._rows = task_index.to(device, non_blocking=True)
        self._even = None
        if len(self.tasks) > 1:
            order = torch.argsort(task_index, stable=True)
            inverse = torch.argsort(order)
            self._order = order.to(device, non_blocking=True)
            self._inverse = inverse.to(device, non_blocking=True)
            if len(self.tasks) * max(self._counts) <= MOST_PADDED * self.num_rows:
                slots, places = pad(counts)
                self._even = order[slots].to(device), places[inverse].to(device)

    @contextmanager
    def each_task(self) -> Iterator[None]:
        """Inside, there is one row for each task of the batch."""
        index, device = self._index, self._rows.device
        self.set(torch.tensor(self.tasks), device)
        try:
            yield
        finally:
            self.set(index, device)

    def apply(self, function: Callable[[Tensor, int], Tensor], states: Tensor) -> Tensor:
        """Run `function(rows, task)` on each task's rows of `states` (b, ...), and put the rows
        back in order. Some models (OPT) hand their layers all tokens in one line, (b * l, ...)."""
        if states.ndim == 2 and len(states) > self.num_rows > 0:
            flat: Tensor = self.apply(function, self.by_row(states)).flatten(0, 1)
            return flat
        self.fit(len(states))
        if len(self.tasks) == 1:
            return function(states, self.tasks[0])
        groups = states.index_select(0, self._order).split(self._counts)
        parts = [function(rows, task) for rows, task in zip(groups, self.tasks, strict=True)]
        return torch.cat(parts).index_select(0, self._inverse)

    def apply_stacked(
        self, function: Callable[..., Tensor], states: Tensor, *halves: Sequence[Tensor]
    ) -> Tensor:
        """Run `function(rows, *stacks)` on `states` (b, ..., d) with each row's slices of the
        weights (tasks or 1, ...) in `halves`. The function consists of `stacked_linear` and of
        operations on single numbers. Tasks with similar numbers of rows are computed together."""
        stacks = [stack for half in halves for stack in half]
        if max(map(len, stacks)) == 1:
            return function(states, *stacks)
        # Autograd ends with these views, the last one first, whatever is computed from them. So
        # gradients come in one order on all ranks, whose tasks may differ.
        stacks = [stack.view_as(stack) for stack in stacks]
        slices = [stack.split(1) for stack in stacks]

        def of_task(rows: Tensor, task: int) -> Tensor:
            return function(rows, *(own[task if len(own) > 1 else 0] for own in slices))

        if states.ndim > 2:
            self.fit(len(states))
        if states.ndim == 2 or self._even is None:
            return self.apply(of_task, states)
        rows, places = self._even
        groups = states.index_select(0, rows).unflatten(0, (len(self.tasks), -1))
        present = [
            torch.cat([own[task] for task in self.tasks]) if len(own) > len(self.tasks) else stack
            for own, stack in zip(slices, stacks, strict=True)
        ]
        done: Tensor = function(groups, *present).flatten(0, 1).index_select(0, places)
        return done

    def apply_pair(
        self,
        function: Callable[[Tensor, Any, Any], Tensor],
        states: Tensor,
        first: Sequence[Any],
        second: Sequence[Any],
    ) -> Tensor:
        """Run `function(rows, first, second)` on each task's rows with the task's entry of either
        sequence, which holds one entry per task, or one for all."""

        def of_task(rows: Tensor, task: int) -> Tensor:
            pair = (entries[task if len(entries) > 1 else 0] for entries in (first, second))
            return function(rows, *pair)

        shared = len(first) == len(second) == 1
        return of_task(states, 0) if shared else self.apply(of_task, states)

    def by_row(self, states: Tensor) -> Tensor:
        """(b * l, ...) -> (b, l, ...)."""
        assert len(states) % self.num_rows == 0, (
            f"{len(states)} rows, but the batch has {self.num_rows}"
        )
        by_row: Tensor = states.unflatten(0, (self.num_rows, -1))
        return by_row

    def task_of_rows(self) -> Tensor:
        """(b,) the task of each row."""
        return self._rows

    def of_rows(self, stacked: Tensor, num_rows: int | None = None) -> Tensor:
        """Small tensors of the tasks, or one for all, (tasks or 1, ...) -> each row's, (b, ...);
        `num_rows` as in `fit`."""
        if num_rows is not None:
            self.fit(num_rows)
        if len(stacked) == 1:
            return stacked.expand(self.num_rows, *stacked.shape[1:])
        return stacked[self._rows]

    def of_keys(self, stacked: Tensor, num_keys: int) -> Tensor:
        """`of_rows` for an attention over the keys of `num_keys` rows: as many as `fit` takes, or
        fewer, since the beams of an example may share keys."""
        if num_keys > self.num_rows:
            self.fit(num_keys)
        return self.of_rows(stacked)[:: self.num_rows // num_keys]

    def of_present(self, stacked: Tensor, tasks: Sequence[int]) -> Tensor:
        """Tensors of these tasks, as in `each_task`, (k, ...) -> each row's, (b, ...)."""
        present = torch.tensor(tasks, device=stacked.device)
        return stacked[torch.searchsorted(present, self._rows)]


def pad(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Pad rows that are sorted by task, `counts` (k,) of each, to n of each: the row at each place,
    (k * n,), and the place of each row, (b,). A task's last row stands in for those it lacks."""
    size, starts = int(counts.max()), counts.cumsum(0) - counts
    within = torch.arange(size).expand(len(counts), size)
    slots = starts[:, None] + torch.minimum(within, counts[:, None] - 1)
    real = within < counts[:, None]
    return slots.flatten(), real.flatten().nonzero().flatten()


def stacked_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows (k, ..., i) through linear layers (k, o, i) with biases (k, o), or rows (..., i) through
    one (1, o, i)."""
    if len(weight) == 1:
        return F.linear(rows, weight.squeeze(0), None if bias is None else bias.squeeze(0))
    flat, shape = rows.flatten(1, -2), (*rows.shape[:-1], weight.shape[1])
    if bias is None:
        return torch.bmm(flat, weight.mT).view(shape)
    return torch.baddbmm(bias[:, None], flat, weight.mT).view(shape)

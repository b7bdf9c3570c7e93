"""Rows go to their task and come back in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlds.methods.routing import TaskRouting


def mark(rows: Tensor, task: int) -> Tensor:
    return rows * 10 + task


def test_rows_go_to_their_task() -> None:
    routing = TaskRouting()
    routing.set(torch.tensor([2, 0, 2, 1]))
    rows = torch.arange(4.0)[:, None].expand(4, 3)
    assert routing.apply(mark, rows)[:, 0].tolist() == [2, 10, 22, 31]
    assert routing.tasks == [0, 1, 2]


def test_one_task_is_one_call() -> None:
    routing = TaskRouting()
    routing.set(torch.tensor([1, 1, 1]))
    calls: list[Tensor] = []

    def keep(rows: Tensor, task: int) -> Tensor:
        calls.append(rows)
        return rows

    rows = torch.ones(3, 2)
    assert routing.apply(keep, rows) is rows
    assert len(calls) == 1


def test_a_batch_that_was_not_announced_is_refused() -> None:
    routing = TaskRouting()
    routing.set(torch.tensor([0, 1]))
    with pytest.raises(AssertionError, match="3 rows, but the batch has 2"):
        routing.apply(mark, torch.zeros(3, 1))


def test_tokens_in_one_line_go_with_their_row() -> None:
    routing = TaskRouting()
    routing.set(torch.tensor([2, 0]))
    flat = routing.apply(mark, torch.arange(6.0)[:, None])
    assert flat[:, 0].tolist() == [2, 12, 22, 30, 40, 50]

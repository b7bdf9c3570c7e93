"""Rows of all ranks, through which gradients flow back: for losses that compare the examples of a
global batch.

Shapes: b rows of this rank, n of all ranks, d width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class Gathered(NamedTuple):
    """Rows of all ranks in the order of the global batch."""

    rows: Tensor
    """(n, d)."""
    first: int
    """Index of this rank's first row among them."""


class GatherRows(torch.autograd.Function):
    """The rows of all ranks. A row's gradient is the sum of what all ranks send back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.begin, ctx.count = sum(counts[:rank]), counts[rank]
        padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.begin : ctx.begin + ctx.count], None, None


def gather_rows(rows: Tensor) -> Gathered:
    """The rows (b, d) of all ranks, which may have different numbers of rows. Collective; with a
    single rank, the rows themselves."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Gathered(rows, 0)
    rank, counts = dist.get_rank(), torch.zeros(dist.get_world_size(), dtype=torch.int64)
    counts[rank] = len(rows)
    counts = counts.to(rows.device)
    dist.all_reduce(counts)
    numbers: list[int] = counts.tolist()
    whole: Tensor = GatherRows.apply(rows, numbers, rank)  # type: ignore[no-untyped-call]
    return Gathered(whole, sum(numbers[:rank]))

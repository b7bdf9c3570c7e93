"""The negative log-likelihood of tokens, a few rows of the logits at a time.

Logits over the vocabulary are the largest tensor of a step. Torch's cross-entropy keeps them in
float32, and holds two more of that size in the backward pass. Here they stay in their own type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vlds.kernels.chunks import chunks

CHUNK_ON_GPU = 1 << 25
"""Logits: more would take memory, and fewer would leave the GPU idle."""


class TokenNLL(torch.autograd.Function):
    """Logits (n, w) and labels (n,) -> (n,), in at least float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        precise = torch.promote_types(logits.dtype, torch.float32)
        totals = logits.new_empty(len(logits), dtype=precise)
        for rows in pieces(logits):
            totals[rows] = logits[rows].to(precise).logsumexp(-1)
        ctx.save_for_backward(logits, labels)
        return totals - logits.gather(1, labels[:, None])[:, 0].to(precise)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        of_logits = torch.empty_like(logits)
        for rows in pieces(logits):
            of_rows = logits[rows].to(gradient.dtype).softmax(-1)
            ones = torch.ones_like(of_rows[:, :1])
            of_rows.scatter_add_(1, labels[rows, None], -ones)
            of_logits[rows] = of_rows.mul_(gradient[rows, None])
        return of_logits, None


def pieces(logits: Tensor) -> Iterator[slice]:
    """Rows that are computed together."""
    most = None if logits.device.type == "cpu" else CHUNK_ON_GPU
    return chunks(len(logits), logits.shape[1], most)

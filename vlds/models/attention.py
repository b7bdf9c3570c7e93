"""A backward pass of attention that suits a CPU: plain products, a few examples at a time.

In half precision, the backward pass of torch's fused attention is slow for short rows. Here the
scores of a few examples stay in the processor's cache; they are computed again, with scale, mask
and softmax in float32, so that memory still grows with the length only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TORCH_ATTENTION = F.scaled_dot_product_attention
LONGEST = 192
"""Keys up to which the plain products are faster."""
CHUNK = 1 << 18
"""Scores that one thread computes at a time."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` of (b, heads, l, d) queries over
    (b, heads, s, d) keys, with the backward pass of this module where that is faster."""
    if dropout_p > 0 or enable_gqa or not suits(query, key, value, attn_mask):
        return TORCH_ATTENTION(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = ShortAttention.apply(query, key, value, attn_mask, scale)  # type: ignore[no-untyped-call]
    return output


def suits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """True if these tensors train, on a CPU, in half precision, and are short."""
    tensors = (query, key, value)
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and all(tensor.dim() == 4 and tensor.device.type == "cpu" for tensor in tensors)
        and query.dtype.itemsize == 2
        and query.shape[:2] == key.shape[:2]
        and key.shape[2] <= LONGEST
        and (mask is None or not mask.requires_grad)
    )


class ShortAttention(torch.autograd.Function):
    """Torch's fused attention with another backward pass."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        return TORCH_ATTENTION(query, key, value, mask, scale=scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, mask = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
        added = None if mask is None else as_added(mask, query)
        if added is not None:  # the output of a row that sees nothing is zero
            gradient = gradient.masked_fill(added.isneginf().all(-1, keepdim=True), 0.0)
            added = added.clamp(min=torch.finfo(added.dtype).min)
        for rows in chunks(query, key):
            queries, keys, over = query[rows], key[rows], gradient[rows]
            # Scale and mask would lose bits in half precision.
            scores = (queries @ keys.mT).float().mul_(ctx.scale)
            if added is not None:
                scores += added[rows if len(added) > 1 else slice(None)]
            weights = scores.softmax(-1)
            of_value[rows] = weights.to(query.dtype).mT @ over
            of_weights = (over @ value[rows].mT).float()
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, torch.float32)
            of_scores = of_scores.mul_(ctx.scale).to(query.dtype)
            of_query[rows] = of_scores @ keys
            of_key[rows] = of_scores.mT @ queries
        return of_query, of_key, of_value, None, None


def as_added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers that are added to scores, of four dimensions."""
    if mask.dtype == torch.bool:
        mask = like.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    return mask.view(*[1] * (4 - mask.dim()), *mask.shape)


def chunks(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Examples whose scores stay in the cache."""
    scores = query.shape[1] * query.shape[2] * key.shape[2]
    size = max(1, CHUNK * torch.get_num_threads() // max(1, scores))
    for start in range(0, len(query), size):
        yield slice(start, start + size)


@contextmanager
def short_attention() -> Iterator[None]:
    """Inside, models use `attention`."""
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = TORCH_ATTENTION

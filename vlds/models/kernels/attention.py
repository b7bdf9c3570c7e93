"""Attention whose backward pass suits a CPU: plain products, a few examples at a time.

In half precision, the backward pass of torch's fused attention is slow for short rows. Here the
scores of a few examples stay in the processor's cache; they are computed again, with scale, mask
and softmax in float32, so that memory still grows with the length only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.kernels.dropout import Draws, StepDropout, draws_by_example, dropout_by
from vlds.models.kernels.fused import chunks, fast_norms, partitioned_linear

TORCH_ATTENTION = F.scaled_dot_product_attention
LONGEST = 192
"""Keys up to which the plain products are faster."""


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
    (b, groups, s, d) keys, with the backward pass of this module where that is faster."""
    is_plain = all(tensor.dim() == 4 for tensor in (query, key, value)) and len(query) == len(key)
    masks_train = attn_mask is not None and attn_mask.requires_grad
    # First of all: on a GPU, nothing else is done here, least of all a mask on the CPU.
    if not is_plain or masks_train or not trains(query, key, value):
        return TORCH_ATTENTION(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    mask = attn_mask
    if is_causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if dropout_p > 0:
        shape = torch.Size((*query.shape[:3], key.shape[2]))
        draws = draws_by_example(shape, dropout_p)  # None outside a training step
        if draws is not None:
            heads = query.shape[1] // key.shape[1]
            keys, values = (tensor.repeat_interleave(heads, 1) for tensor in (key, value))
            lowest = torch.finfo(query.dtype).min
            added = [] if mask is None else [as_added(mask, query).clamp(min=lowest)]
            dropped = recomputed_attention(query, keys, values, factor, draws, added)
            return dropped.transpose(1, 2)
    # In float32, torch's own backward pass is quick.
    is_short = query.dtype.itemsize == 2 and key.shape[2] <= LONGEST
    if dropout_p == 0 and is_short and (query.shape[1] == key.shape[1] or enable_gqa):
        fused: Tensor = ShortAttention.apply(query, key, value, mask, factor)  # type: ignore[no-untyped-call]
        return fused
    return TORCH_ATTENTION(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def trains(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """True if a backward pass on a CPU will follow."""
    tensors = (query, key, value)
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and all(tensor.device.type == "cpu" for tensor in tensors)
    )


class ShortAttention(torch.autograd.Function):
    """Torch's fused attention with another backward pass."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        grouped = query.shape[1] != key.shape[1]
        return TORCH_ATTENTION(query, key, value, mask, scale=scale, enable_gqa=grouped)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, mask = ctx.saved_tensors
        terms = []
        if mask is not None:
            added = as_added(mask, query)
            # The output of a row that sees nothing is zero, whatever its queries are. With the
            # lowest number for minus infinity, its softmax is not NaN.
            gradient = gradient.masked_fill(added.isneginf().all(-1, keepdim=True), 0.0)
            added = added.clamp(min=torch.finfo(added.dtype).min)
            # (b or 1, heads or 1, l or 1, s) -> a row for each query of the groups below.
            groups, size, length = key.shape[1], query.shape[1] // key.shape[1], query.shape[2]
            heads = 1 if added.shape[1] == 1 else groups
            wide = added.expand(-1, heads * size, length, -1)
            terms = [wide.reshape(len(added), heads, size * length, added.shape[-1])]
        # Heads that read the same key stand beside each other, as more queries of one head.
        queries, over = (x.reshape(*key.shape[:2], -1, x.shape[-1]) for x in (query, gradient))
        of_query, of_key, of_value = gradients(queries, key, value, over, terms, ctx.scale)
        return of_query.view(query.shape), of_key, of_value, None, None


def recomputed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    draws: Draws | None,
    added: Sequence[Tensor],
) -> Tensor:
    """(b, heads, l, d) queries over (b, heads, s, d) keys -> (b, l, heads, d), by plain products
    that keep no scores. `draws`: of the weights' dropout; `added`: to the scores, (b or 1, heads
    or 1, l or 1, s)."""
    output: Tensor = RecomputedAttention.apply(query, key, value, scale, draws, *added)  # type: ignore[no-untyped-call]
    return output


class RecomputedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        draws: Draws | None,
        *added: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, *added)
        ctx.scale, ctx.draws = scale, draws
        output = query.new_empty(len(query), query.shape[2], query.shape[1], value.shape[-1])
        for rows in chunks(len(query), query.shape[1] * query.shape[2] * key.shape[2]):
            queries, keys, values = (stacked(x[rows]) for x in (query, key, value))
            weights = attention_weights(queries, keys, query.shape[1], scale, added, rows)
            kept = weights.to(query.dtype)
            if draws is not None:
                kept = draws.of(rows).dropped(kept)
            output[rows] = (stacked(kept) @ values).view_as(query[rows]).transpose(1, 2)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *added = ctx.saved_tensors
        over = gradient.transpose(1, 2)
        found = gradients(query, key, value, over, added, ctx.scale, ctx.draws)
        return *found, None, None, *(None for _ in added)


def gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gradient: Tensor,
    added: Sequence[Tensor],
    scale: float,
    draws: Draws | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, given that of the output: (b, heads, l or s, d)."""
    of_query, of_key, of_value = (torch.empty_like(x) for x in (query, key, value))
    for rows in chunks(len(query), query.shape[1] * query.shape[2] * key.shape[2]):
        queries, keys, values = (stacked(x[rows]) for x in (query, key, value))
        over = stacked(gradient[rows])
        weights = attention_weights(queries, keys, query.shape[1], scale, added, rows)
        kept, of_weights = weights.to(query.dtype), (over @ values.mT).view_as(weights)
        if draws is not None:
            # 0 or the scale of what was kept, drawn again instead of being stored.
            factors = draws.of(rows).dropped(torch.ones_like(kept))
            kept, of_weights = kept * factors, of_weights.mul_(factors)
        # w * (g - sum(g * w)) in one pass; a private name of torch's, which autograd itself calls.
        of_scores = torch._softmax_backward_data(
            of_weights.to(weights.dtype), weights, -1, weights.dtype
        )
        of_scores = stacked(of_scores.mul_(scale).to(query.dtype))
        of_query[rows] = (of_scores @ keys).view_as(query[rows])
        of_key[rows] = (of_scores.mT @ queries).view_as(key[rows])
        of_value[rows] = (stacked(kept).mT @ over).view_as(value[rows])
    return of_query, of_key, of_value


def stacked(tensor: Tensor) -> Tensor:
    """(b, heads, l, d) -> (b * heads, l, d), which products read as it is."""
    return tensor.reshape(-1, *tensor.shape[2:])


def attention_weights(
    queries: Tensor, keys: Tensor, heads: int, scale: float, added: Sequence[Tensor], rows: slice
) -> Tensor:
    """Stacked queries (b * heads, l, d) and keys (b * heads, s, d) of the examples `rows` ->
    weights (b, heads, l, s), in at least float32. `added`: to the scores of all examples."""
    scores = queries @ keys.mT
    # Scale and mask would lose bits in half precision.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.unflatten(0, (-1, heads))
    if scale != 1.0:  # T5 has none
        scores.mul_(scale)
    for term in added:
        scores += term[rows] if len(term) > 1 else term  # one row may serve all examples
    weights: Tensor = scores.softmax(-1)
    return weights


def as_added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers that are added to scores, of four dimensions."""
    if mask.dtype == torch.bool:
        mask = like.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    return mask.view(*[1] * (4 - mask.dim()), *mask.shape)


@contextmanager
def attention_by(attend: Callable[..., Tensor]) -> Iterator[None]:
    """Inside, this function takes the place of torch's fused attention."""
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = TORCH_ATTENTION


@contextmanager
def step_kernels(model: nn.Module, dropout: StepDropout) -> Iterator[None]:
    """Inside, a micro-batch of the model runs its forward and backward pass with all kernels of
    this room."""
    with attention_by(attention), fast_norms(model), partitioned_linear(), dropout_by(dropout):
        yield

"""What a step adds to the memory that a rank holds between steps, and what it sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlds.models.model import Model
from vlds.plan.held import PERSISTENCE, SUM_BYTES, Held, moves, share

LIVE = 1_000_000_000
"""DeepSpeed's own stage3_max_live_parameters, in elements."""
PREFETCHED = 50_000_000
"""DeepSpeed's own stage3_prefetch_bucket_size, in elements."""


def added_bytes(model: Model, held: Held, zero: Mapping[str, Any], world_size: int) -> int:
    """Sums of gradients, buckets and gathered weights, without what a micro-batch needs."""
    waiting = held.gradients + bucket_bytes(model, zero, world_size)
    if zero["stage"] < 3 or world_size == 1:
        return waiting
    live = int(zero.get("stage3_max_live_parameters", LIVE))
    ahead = int(zero.get("stage3_prefetch_bucket_size", PREFETCHED))
    whole = max(live, max(weight.numel() for weight in model.parameters()))
    partitioned = partitioned_bytes(model, zero)
    gathered = min((whole + ahead) * widest(model), partitioned)
    copied = min(ahead * widest(model), partitioned)  # gloo receives into a copy
    return waiting + gathered + copied


def bucket_bytes(model: Model, zero: Mapping[str, Any], world_size: int) -> int:
    """Gradients that wait for the other ranks, and what is sent of them, which is fp32."""
    if zero["stage"] == 2 and world_size == 1 and not moves(zero, "optimizer"):
        return 0  # `GradientSums` adds them where they come
    size = int(zero["reduce_bucket_size"])
    sent = 0 if world_size == 1 else SUM_BYTES
    if zero["stage"] < 3:
        return size * ((2 if zero.get("overlap_comm") else 1) * widest(model) + sent)
    # Gradients are gathered twice; gloo sends a copy, and is often still busy with another.
    return size * (2 * SUM_BYTES + 2 * sent)


def sent_bytes(model: Model, zero: Mapping[str, Any], world_size: int, micro_batches: int) -> int:
    """Bytes that a rank sends in a step of some micro-batches: gradients, which it sums in fp32, of
    each micro-batch, and trained weights after the step; under stage 3 other weights before each
    pass. Stage 1 sends gradients once."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gradients = trained * SUM_BYTES * (1 if zero["stage"] == 1 else micro_batches)
    whole = gradients + trained_bytes(model)
    if zero["stage"] == 3:
        whole += 2 * micro_batches * partitioned_bytes(model, zero)
        whole -= partitioned_bytes(model, zero, trained=True)
    elif zero.get("use_multi_rank_bucket_allreduce", True):
        whole += gradients  # there and back
    return whole - share(whole, world_size)


def trained_bytes(model: Model) -> int:
    """Bytes of the weights that train, in the run's precision."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def partitioned_bytes(model: Model, zero: Mapping[str, Any], *, trained: bool = False) -> int:
    """Bytes of the weights that stage 3 gathers, or of those among them that train."""
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE)
    weights = (p for p in model.parameters() if p.numel() > threshold)
    return sum(w.numel() * w.element_size() for w in weights if w.requires_grad or not trained)


def widest(model: Model) -> int:
    """Bytes of an element of the model's weights."""
    return max(weight.element_size() for weight in model.parameters())

"""What a step adds to the memory that a rank holds between steps, and what it sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlds.models.model import Model
from vlds.plan.held import PERSISTENCE, SUM_BYTES, Held, share

LIVE = 1_000_000_000
"""DeepSpeed's own stage3_max_live_parameters, in elements."""
PREFETCHED = 50_000_000
"""DeepSpeed's own stage3_prefetch_bucket_size, in elements."""


def step_bytes(model: Model, held: Held, zero: Mapping[str, Any]) -> int:
    """Sums of gradients, buckets and gathered weights, without what a micro-batch needs."""
    bucket = bucket_bytes(model, zero)
    if zero["stage"] < 3:
        return held.gradients + bucket
    live = int(zero.get("stage3_max_live_parameters", LIVE))
    ahead = int(zero.get("stage3_prefetch_bucket_size", PREFETCHED))
    whole = max(live, max(weight.numel() for weight in model.parameters()))
    gathered = min((whole + ahead) * widest(model), partitioned_bytes(model, zero))
    return held.gradients + bucket + gathered


def bucket_bytes(model: Model, zero: Mapping[str, Any]) -> int:
    """Gradients that wait for the other ranks, or for the copy that is sent, which is fp32."""
    size = int(zero["reduce_bucket_size"])
    waiting = (2 if zero.get("overlap_comm") else 1) * size * widest(model)
    return waiting + size * SUM_BYTES


def sent_bytes(model: Model, zero: Mapping[str, Any], world_size: int, micro_batches: int) -> int:
    """Bytes that a rank sends in a step of some micro-batches: gradients, which it sums in fp32;
    trained weights after the step; under stage 3 weights before each pass instead."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gradients = trained * SUM_BYTES
    if zero["stage"] == 3:
        passes = 2 * micro_batches
        whole = micro_batches * gradients + passes * partitioned_bytes(model, zero)
    else:
        whole = gradients + trained_bytes(model)
    return whole - share(whole, world_size)


def trained_bytes(model: Model) -> int:
    """Bytes of the weights that train, in the run's precision."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def partitioned_bytes(model: Model, zero: Mapping[str, Any]) -> int:
    """Bytes of the weights that stage 3 gathers."""
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE)
    weights = (p for p in model.parameters() if p.numel() > threshold)
    return sum(weight.numel() * weight.element_size() for weight in weights)


def widest(model: Model) -> int:
    """Bytes of an element of the model's weights."""
    return max(weight.element_size() for weight in model.parameters())

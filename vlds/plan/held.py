"""The memory that a rank needs between steps, computed without loading anything.

The rules are those of DeepSpeed 0.19; a test shows that they agree with `Engine.bytes_per_rank` to
the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlds.models.loading.quantised import scale_bytes
from vlds.models.model import Model
from vlds.training.step_rules import buffer_bytes

MASTER_BYTES = 12
"""AdamW's two moments and the master of a weight, each fp32."""
SUM_BYTES = 4
"""The sum of a weight's gradients over micro-batches, fp32."""
GROUP_ALIGNMENT = 2
"""Stage 2 pads a group to a multiple of this number of elements on each rank."""
PERSISTENCE = 100_000
"""DeepSpeed's own stage3_param_persistence_threshold, in elements."""
OFFLOADS = {"optimizer": "offload_optimizer", "weights": "offload_param"}


@dataclass(frozen=True)
class Held:
    """Bytes of one rank."""

    frozen: int
    trainable: int
    optimizer: int
    gradients: int
    """Sums of gradients. Their memory may be kept between steps."""
    offloaded: int = 0
    """How many of the above lie in the CPU's memory although the rank has a GPU."""

    @property
    def together(self) -> int:
        """Weights and optimizer state, without gradients."""
        return self.frozen + self.trainable + self.optimizer


def planned(
    model: Model, groups: Sequence[Mapping[str, Any]], zero: Mapping[str, Any], world_size: int
) -> Held:
    """What each of `world_size` ranks will hold of a model, which may lie on the meta device.

    `groups` are the optimizer's; `zero` is DeepSpeed's `zero_optimization`.
    """
    partitioned = zero["stage"] == 3
    splits = partitioned and world_size > 1
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE)
    stored = {"frozen": 0, "trainable": 0}
    whole = 0
    for parameter in model.parameters():
        part = share(parameter.numel(), world_size) if partitioned else parameter.numel()
        kept = parameter.numel() if splits and parameter.numel() <= threshold else 0
        kind = "trainable" if parameter.requires_grad else "frozen"
        stored[kind] += (part + kept) * parameter.element_size()
        whole += kept * parameter.element_size()
    stored["frozen"] += scale_bytes(model)
    elements = sum(group_share(group["params"], partitioned, world_size) for group in groups)
    masters = elements * MASTER_BYTES
    optimizer = masters + buffer_bytes(model.step_rules)
    offloaded = masters if moves(zero, "optimizer") else 0
    if moves(zero, "weights"):
        offloaded += sum(stored.values()) - whole
    return Held(**stored, optimizer=optimizer, gradients=elements * SUM_BYTES, offloaded=offloaded)


def group_share(parameters: Sequence[nn.Parameter], partitioned: bool, world_size: int) -> int:
    """Elements of a group of the optimizer on one rank. Stage 3 cuts each weight, stage 2 the
    group."""
    if partitioned:
        return sum(share(parameter.numel(), world_size) for parameter in parameters)
    size = sum(parameter.numel() for parameter in parameters)
    return GROUP_ALIGNMENT * share(size, GROUP_ALIGNMENT * world_size)


def share(size: int, parts: int) -> int:
    """Elements of the largest part."""
    return -(-size // parts)


def moves(zero: Mapping[str, Any], what: str) -> bool:
    """True if DeepSpeed's file puts the optimizer, or the weights, into the CPU's memory."""
    return bool((zero.get(OFFLOADS[what]) or {}).get("device", "none") != "none")

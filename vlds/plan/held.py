"""`vlds plan`: the memory that a rank needs between steps, computed without loading anything.

The rules are those of DeepSpeed 0.19; a test shows that they agree with `Engine.bytes_per_rank` to
the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.models.build import build_shapes
from vlds.models.model import Model
from vlds.models.quantised import scale_bytes
from vlds.runtime.resources import find
from vlds.training.deepspeed_config import cannot_partition, complete_deepspeed_config, cut_batches
from vlds.training.optim import parameter_groups
from vlds.training.step_rules import buffer_bytes

MASTER_BYTES = 12
"""AdamW's two moments and the master of a weight, each fp32."""
SUM_BYTES = 4
"""The sum of a weight's gradients over micro-batches, fp32."""
GROUP_ALIGNMENT = 2
"""Stage 2 pads a group to a multiple of this number of elements on each rank."""
PERSISTENCE = 100_000
"""DeepSpeed's own stage3_param_persistence_threshold, in elements."""
SHIPPED = [
    f"ds_configs/{name}.json" for name in ("zero2", "zero2_offload", "zero3", "zero3_offload")
]
UNPARTITIONED = [file for file in SHIPPED if "zero3" not in file]
"""Those for recipes that stage 3 cannot run."""
OFFLOADS = {"optimizer": "offload_optimizer", "weights": "offload_param"}


@dataclass(frozen=True)
class Held:
    """Bytes of one rank."""

    frozen: int
    trainable: int
    optimizer: int
    gradients: int
    """Sums of gradients. Stage 3 keeps their memory between steps, stage 2 within a step."""
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
    threshold = zero.get("stage3_param_persistence_threshold", PERSISTENCE)
    stored = {"frozen": 0, "trainable": 0}
    whole = 0
    for parameter in model.parameters():
        part = share(parameter.numel(), world_size) if partitioned else parameter.numel()
        kept = parameter.numel() if partitioned and parameter.numel() <= threshold else 0
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


def plan_recipe(recipe: Recipe, ranks: Sequence[int]) -> dict[int, dict[str, Held]]:
    """What a rank would hold, for each number of ranks and DeepSpeed file: the recipe's file comes
    first, then those that vlds brings.

    Errors: ValueError if nothing trains, a file is wrong, or the ranks cannot share a batch.
    """
    cuts = {world_size: cut_batches(recipe, world_size) for world_size in ranks}
    model = build_shapes(recipe.model_setup, list(recipe.tasks), recipe.training.dtype)
    groups = parameter_groups(model, recipe)
    shipped = SHIPPED if cannot_partition(recipe) is None else UNPARTITIONED
    files = dict.fromkeys([recipe.training.deepspeed, *shipped])

    def held(file: str, cut: BatchCut) -> Held:
        config = complete_deepspeed_config(Path(find(file)), recipe, cut)
        return planned(model, groups, config["zero_optimization"], cut.world_size)

    return {
        world_size: {file: held(file, cut) for file in files} for world_size, cut in cuts.items()
    }


def table(plan: Mapping[str, Held], recipe: Recipe, world_size: int) -> str:
    """The plan for one number of ranks, for people."""
    cut = cut_batches(recipe, world_size)
    micro_batch_size = max(map(cut.largest_piece, recipe.batch_sizes.values()))
    ranks = "1 rank" if world_size == 1 else f"each of {world_size} ranks"
    head = ("MB", "frozen", "trainable", "optimizer", "together", "in CPU")
    lines = [f"What {ranks} holds between steps, in {recipe.training.precision}", row(*head)]
    for file, held in plan.items():
        numbers = (held.frozen, held.trainable, held.optimizer, held.together, held.offloaded)
        lines.append(row(file, *(f"{number / 1e6:,.1f}" for number in numbers)))
    sums = max(held.gradients for held in plan.values())
    lines += [
        "The first file is the recipe's. `in CPU`: in the CPU's memory, beside a GPU.",
        f"Gradients come on top: fp32 sums ({sums / 1e6:,.1f}) and those of a micro-batch (at most",
        "as large as `trainable`); so do DeepSpeed's buckets, and what the backward pass",
        f"needs, which grows with data.micro_batch_size, now {micro_batch_size}.",
    ]
    return "\n".join(lines)


def row(name: str, *cells: str) -> str:
    """One line of the table."""
    return f"{name:<30}" + "".join(f"{cell:>10}" for cell in cells)

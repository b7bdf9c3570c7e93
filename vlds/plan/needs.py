"""What a recipe needs with each number of ranks and each of DeepSpeed's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.models.build import build_shapes
from vlds.plan.held import Held, planned
from vlds.plan.step import added_bytes, sent_bytes
from vlds.runtime.resources import find
from vlds.training.deepspeed_config import (
    cannot_partition,
    complete_deepspeed_config,
    cut_batches,
    fit_sizes,
)
from vlds.training.optim import parameter_groups
from vlds.training.prepare import check_parts

SHIPPED = [
    f"ds_configs/{name}.json" for name in ("zero2", "zero2_offload", "zero3", "zero3_offload")
]
UNPARTITIONED = [file for file in SHIPPED if "zero3" not in file]
"""Those for recipes that stage 3 cannot run."""


@dataclass(frozen=True)
class Needs:
    """What a rank needs with one of DeepSpeed's files."""

    stage: int
    """Of ZeRO."""
    held: Held
    extra: int
    """Bytes that a step adds, without those of the micro-batch."""
    sent: int
    """Bytes that a rank sends in a step."""


@dataclass(frozen=True)
class Plan:
    """What a rank needs, by DeepSpeed's files; the recipe's own is the first."""

    world_size: int
    micro_batch: int
    """Rows of the largest micro-batch."""
    micro_batches: int
    """Micro-batches of a step."""
    files: dict[str, Needs]


def plan_recipe(recipe: Recipe, ranks: Sequence[int]) -> list[Plan]:
    """A plan for each number of ranks.

    Errors: ValueError if nothing trains, a file is wrong, or the ranks cannot share a batch.
    """
    cuts = [cut_batches(recipe, world_size) for world_size in ranks]
    for cut in cuts:
        check_parts(recipe, cut)
    model = build_shapes(recipe.model_setup, list(recipe.tasks), recipe.training.dtype)
    groups = parameter_groups(model, recipe)
    shipped = SHIPPED if cannot_partition(recipe) is None else UNPARTITIONED
    own = recipe.training.deepspeed
    try:
        place = find(own).resolve()
    except ValueError as error:
        raise ValueError(f"training.deepspeed: {error}") from None
    files = [own, *(file for file in shipped if find(file).resolve() != place)]
    sizes = recipe.batch_sizes.values()

    def needs(file: str, cut: BatchCut, micro_batches: int) -> Needs:
        config = complete_deepspeed_config(Path(find(file)), recipe, cut)
        zero = fit_sizes(config, model)["zero_optimization"]
        held = planned(model, groups, zero, cut.world_size)
        sent = sent_bytes(model, zero, cut.world_size, micro_batches)
        return Needs(zero["stage"], held, added_bytes(model, held, zero, cut.world_size), sent)

    plans = []
    for cut in cuts:
        steps = max(map(cut.accumulation_steps, sizes))
        of_files = {file: needs(file, cut, steps) for file in files}
        plans.append(Plan(cut.world_size, max(map(cut.largest_piece, sizes)), steps, of_files))
    return plans

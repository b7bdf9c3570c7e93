"""What each rank needs with each of DeepSpeed's files: the memory that it holds between steps, what
a step adds to it, and what a step sends. Nothing is loaded.

The rules are those of DeepSpeed 0.19; a test shows that they agree with `Engine.bytes_per_rank` to
the byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vlds.data.order.mixed_order import BatchCut
from vlds.models.build import build_shapes
from vlds.models.loading.quantised import scale_bytes
from vlds.models.model import Model
from vlds.models.partitioned import LEAST_GATHERED, layers_of
from vlds.plan.refusals import check_before_building, check_shapes
from vlds.recipe.config import Recipe
from vlds.recipe.paths import check_files
from vlds.runtime.process import find
from vlds.training.deepspeed_config import (
    PERSISTENCE,
    cannot_partition,
    complete_deepspeed_config,
    cut_batches,
    fit_sizes,
)
from vlds.training.engine import buffer_bytes
from vlds.training.optimizer import parameter_groups

MASTER_BYTES = 12
"""AdamW's two moments and the master of a weight, each fp32."""
SUM_BYTES = 4
"""The sum of a weight's gradients over micro-batches, fp32."""
GROUP_ALIGNMENT = 2
"""Stage 2 pads a group to a multiple of this number of elements on each rank."""
OFFLOADS = {"optimizer": "offload_optimizer", "weights": "offload_param"}
"""What lies in the CPU's memory -> DeepSpeed's key for it."""
SHIPPED = [
    f"ds_configs/{name}.json" for name in ("zero2", "zero2_offload", "zero3", "zero3_offload")
]


@dataclass(frozen=True)
class Held:
    """Bytes that one rank holds between steps."""

    frozen: int
    trainable: int
    optimizer: int
    gradients: int
    """Bytes of the sums of gradients. Their memory may be kept between steps."""
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
    # A single rank's part is the whole weight: there is nothing to gather and keep.
    partitioned = zero["stage"] == 3
    splits = partitioned and world_size > 1
    # DeepSpeed gathers small weights once and keeps them whole, besides each rank's own part.
    threshold = zero.get(PERSISTENCE, LEAST_GATHERED)
    stored = {"frozen": 0, "trainable": 0}
    whole = 0
    for parameter in model.parameters():
        part = share(parameter.numel(), world_size) if partitioned else parameter.numel()
        kept = parameter.numel() if splits and parameter.numel() <= threshold else 0
        kind = "trainable" if parameter.requires_grad else "frozen"
        stored[kind] += (part + kept) * parameter.element_size()
        whole += kept * parameter.element_size()
    stored["frozen"] += scale_bytes(model)  # of packed weights; scales are not parameters
    elements = 0
    for group in groups:
        sizes = [parameter.numel() for parameter in group["params"]]
        if partitioned:  # stage 3 cuts each weight
            elements += sum(share(size, world_size) for size in sizes)
        else:  # stage 2 cuts the group as a whole
            elements += GROUP_ALIGNMENT * share(sum(sizes), GROUP_ALIGNMENT * world_size)
    # Methods' rules have a state as well, which no file moves to the CPU.
    masters = elements * MASTER_BYTES
    optimizer = masters + buffer_bytes(model.step_rules)
    offloaded = masters if moves(zero, "optimizer") else 0
    # Weights that are kept whole stay on the GPU.
    if moves(zero, "weights"):
        offloaded += sum(stored.values()) - whole
    return Held(**stored, optimizer=optimizer, gradients=elements * SUM_BYTES, offloaded=offloaded)


def share(size: int, parts: int) -> int:
    """Elements of the largest part."""
    return -(-size // parts)  # rounded up


def moves(zero: Mapping[str, Any], what: str) -> bool:
    """True if DeepSpeed's file puts the optimizer, or the weights, into the CPU's memory."""
    return bool((zero.get(OFFLOADS[what]) or {}).get("device", "none") != "none")


def added_bytes(model: Model, held: Held, zero: Mapping[str, Any], world_size: int) -> int:
    """Bytes that a step adds: sums of gradients, buckets and gathered weights, without what a
    micro-batch needs."""
    partitioned = zero["stage"] == 3
    size = int(zero["reduce_bucket_size"])
    sent = 0 if world_size == 1 else SUM_BYTES
    if zero["stage"] == 2 and world_size == 1 and not moves(zero, "optimizer"):
        bucket = 0  # `GradientSums` adds gradients where they come
    elif partitioned:
        # Gradients are gathered twice; gloo sends a copy, and is often still busy with another.
        bucket = size * (2 * SUM_BYTES + 2 * sent)
    else:
        # Gradients that wait for the other ranks, and what is sent of them, which is fp32.
        bucket = size * ((2 if zero.get("overlap_comm") else 1) * widest(model) + sent)
    waiting = held.gradients + bucket
    if not partitioned or world_size == 1:
        return waiting
    # In elements, with DeepSpeed's own defaults.
    live = int(zero.get("stage3_max_live_parameters", 1_000_000_000))
    ahead = int(zero.get("stage3_prefetch_bucket_size", 50_000_000))
    # One weight is whole at least, however low the limit is.
    largest = max(weight.numel() for weight in model.parameters())
    whole = max(live, largest)
    # Limits are in elements; a small model is gathered whole before they are reached.
    weights = partitioned_bytes(model, zero)
    gathered = min((whole + ahead) * widest(model), weights)
    copied = min(max(ahead, largest) * widest(model), weights)  # gloo receives into a copy
    return waiting + gathered + copied


def sent_bytes(
    model: Model,
    zero: Mapping[str, Any],
    world_size: int,
    micro_batches: int,
    *,
    on_gpu: bool = False,
) -> int:
    """Bytes that a rank sends in a step of some micro-batches: gradients, which it sums in fp32, of
    each micro-batch, and trained weights after the step; under stage 3 other weights before each
    pass. Stage 1 sends gradients once. Not counted are the network's own headers and what vlds says
    of a step, some kilobytes; nor that weights gathered ahead may stay whole."""
    partitioned = zero["stage"] == 3
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() for p in trained) * SUM_BYTES
    gradients *= 1 if zero["stage"] == 1 else micro_batches
    whole = gradients + sum(p.numel() * p.element_size() for p in trained)
    # There and back: a rank gets the sum of all gradients, not only that of its part. Under stage 3
    # so does gloo, which has no other way to sum.
    both_ways = not on_gpu if partitioned else zero.get("use_multi_rank_bucket_allreduce", True)
    if both_ways:
        whole += gradients
    if partitioned:
        weights = partitioned_bytes(model, zero)
        # Gathered before the forward pass, and again before the backward pass unless both are
        # near: for the last weight nothing lies between, for others what follows, twice.
        reuse = int(zero.get("stage3_max_reuse_distance", 1_000_000_000))  # elements
        near = min(weights, reuse // 2 * widest(model))
        whole += micro_batches * (2 * weights - near)
        # After the step, trained weights stay in parts.
        whole -= partitioned_bytes(model, zero, trained=True)
    return whole - share(whole, world_size)  # a rank keeps its own share


def partitioned_bytes(model: Model, zero: Mapping[str, Any], *, trained: bool = False) -> int:
    """Bytes of the weights that stage 3 gathers, or of those among them that train."""
    threshold = zero.get(PERSISTENCE, LEAST_GATHERED)
    weights = (p for p in model.parameters() if p.numel() > threshold)
    return sum(w.numel() * w.element_size() for w in weights if w.requires_grad or not trained)


def evaluation_bytes(
    model: Model, zero: Mapping[str, Any], world_size: int, least: int = LEAST_GATHERED
) -> tuple[int, int]:
    """Bytes that a rank gathers to evaluate, beside what it keeps whole anyway: all weights, or
    those that stay whole in evaluation and the largest layer. `least`: as in `layer_by_layer`."""
    if zero["stage"] < 3 or world_size == 1:
        return 0, 0
    threshold = zero.get(PERSISTENCE, LEAST_GATHERED)

    def size(weights: Iterable[nn.Parameter]) -> int:
        return sum(p.numel() * p.element_size() for p in weights if p.numel() > threshold)

    kept, layers = layers_of(model, least)
    largest = max((size(weights) for _, weights in layers), default=0)
    return partitioned_bytes(model, zero), size(kept) + largest


def loading_bytes(
    model: Model, held: Held, zero: Mapping[str, Any], *, on_gpu: bool = False
) -> int:
    """Bytes of main memory that a rank takes at most while it loads: the weights in the run's type,
    which it moves to a GPU at the end. If the files have that type, it reads their pages, which all
    ranks of a machine share, and takes less."""
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    if zero["stage"] < 3:
        return sum(sizes) + max(sizes)
    parts = 0 if on_gpu and not moves(zero, "weights") else held.frozen + held.trainable
    # A weight is whole for a moment: as read, as sent, and as received.
    return parts + 3 * max(sizes)


def saving_bytes(model: Model) -> int:
    """Bytes of main memory that a run state takes of the first rank until it is on disk."""
    return MASTER_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)


def widest(model: Model) -> int:
    """Bytes of an element of the model's weights."""
    return max(weight.element_size() for weight in model.parameters())


@dataclass(frozen=True)
class Needs:
    """What a rank needs with one of DeepSpeed's files."""

    stage: int
    """ZeRO's stage: 1, 2 or 3."""
    held: Held
    extra: int
    """Bytes that a step adds, without those of the micro-batch."""
    sent: int
    """Bytes that a rank sends in a step."""
    evaluated: tuple[int, int] = (0, 0)
    """Bytes that stage 3 adds in evaluation: of whole weights, and layer by layer."""
    loading: int = 0
    """Bytes of main memory while a rank loads, as `loading_bytes` says."""


@dataclass(frozen=True)
class Plan:
    """What a rank needs, by DeepSpeed's files; the recipe's own is the first."""

    world_size: int
    micro_batch: int
    """Rows of the largest micro-batch."""
    micro_batches: int
    """Micro-batches of a step."""
    saving: int
    """Bytes of main memory that a run state takes, as `saving_bytes` says."""
    files: dict[str, Needs]
    notes: Sequence[str] = ()
    """What a run tells its user at the start."""


def plan_recipe(recipe: Recipe, ranks: Sequence[int], *, on_gpu: bool = False) -> list[Plan]:
    """A plan for each number of ranks.

    Errors: ValueError if training would refuse the recipe (refusals.py).
    """
    # Everything that depends on the ranks is checked before the model is built once for all.
    cuts = [cut_batches(recipe, world_size) for world_size in ranks]
    notes = check_before_building(recipe, cuts)
    model = build_shapes(recipe.model_setup, list(recipe.tasks), recipe.training.dtype)
    groups = parameter_groups(model, recipe)
    notes += check_shapes(recipe, model)
    # Without the files of stage 3 if it cannot run the recipe.
    partitions = cannot_partition(recipe) is None
    shipped = [file for file in SHIPPED if partitions or "zero3" not in file]
    own = recipe.training.deepspeed
    check_files({"training": {"deepspeed": own}}, Recipe)
    place = find(own).resolve()
    files = [own, *(file for file in shipped if find(file).resolve() != place)]
    sizes = recipe.batch_sizes.values()

    def needs(file: str, cut: BatchCut, micro_batches: int) -> Needs:
        config = complete_deepspeed_config(Path(find(file)), recipe, cut)
        zero = fit_sizes(config, model, on_gpu=on_gpu)["zero_optimization"]
        held = planned(model, groups, zero, cut.world_size)
        sent = sent_bytes(model, zero, cut.world_size, micro_batches, on_gpu=on_gpu)
        return Needs(
            zero["stage"],
            held,
            added_bytes(model, held, zero, cut.world_size),
            sent,
            evaluation_bytes(model, zero, cut.world_size),
            loading_bytes(model, held, zero, on_gpu=on_gpu),
        )

    plans = []
    for cut in cuts:
        steps = max(map(cut.accumulation_steps, sizes))
        of_files = {file: needs(file, cut, steps) for file in files}
        rows, saving = max(map(cut.largest_piece, sizes)), saving_bytes(model)
        plans.append(Plan(cut.world_size, rows, steps, saving, of_files, notes))
    return plans

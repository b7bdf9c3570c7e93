"""DeepSpeed's own JSON, completed from the recipe: we fill its "auto" fields and refuse
contradictions."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from torch import nn

from vlds.data.order.mixed_order import BatchCut
from vlds.recipe.config import Recipe
from vlds.runtime.json_files import read_record

LEAST_BUCKET = 1 << 20
"""Elements: layers of which little trains share one message to the other ranks."""
GPU_BUCKET = 1 << 28
"""The same on a GPU, which waits for each message if DeepSpeed overlaps them with the backward pass
(its issue 8364): one for all that trains, up to a gigabyte."""
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")
LIVE_LAYERS = {
    "stage3_prefetch_bucket_size": 1,
    "stage3_max_live_parameters": 2,
    "stage3_max_reuse_distance": 2,
}
"""Layers whose weights stage 3 gathers ahead, and keeps whole, on a GPU."""
SMALL = 1_000_000
"""Weights that a CPU gathers ahead, and keeps whole, in any case: 4 MB in fp32. For a small model,
stage 3 then takes one message a step in place of one for each weight and layer."""
PERSISTENCE = "stage3_param_persistence_threshold"
OWN_SIZES = (PERSISTENCE, "sub_group_size")
"""Sizes that DeepSpeed knows best."""
OVERLAP = "overlap_comm"
SIZES = (*BUCKETS, *LIVE_LAYERS, *OWN_SIZES)


def cut_batches(recipe: Recipe, world_size: int) -> BatchCut:
    """How this number of ranks shares the recipe's global batches; ValueError if it cannot."""
    cut = BatchCut(world_size, recipe.data.micro_batch_size)
    for field, size in recipe.batch_sizes.items():
        cut.check(size, field)
    return cut


def complete_deepspeed_config(path: Path, recipe: Recipe, cut: BatchCut) -> dict[str, Any]:
    """Read DeepSpeed's file and fill in what the recipe decides.

    DeepSpeed wants one batch size for all steps and ranks: it gets the largest, and the engine
    tells it where each step really ends.

    Errors: ValueError if the file is missing, is not JSON, or contradicts the recipe.
    """
    try:
        config = read_record(dict[str, Any], path, "name DeepSpeed's settings")
    except FileNotFoundError:
        raise ValueError(f"training.deepspeed: there is no file {path}") from None
    except ValueError as error:
        raise ValueError(f"training.deepspeed: {error}") from None
    sizes = recipe.batch_sizes.values()
    micro_batch_size = max(map(cut.largest_piece, sizes))
    accumulation_steps = max(map(cut.accumulation_steps, sizes))
    # DeepSpeed asserts that the first is the product of the next two and the ranks.
    decided = {
        "train_batch_size": micro_batch_size * accumulation_steps * cut.world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": recipe.optimizer.clip_norm,
        "bf16.enabled": recipe.training.precision == "bf16",
        "fp16.enabled": recipe.training.precision == "fp16",
        # As always in fp32: a step whose gradient is not finite changes nothing.
        "bf16.check_grad_overflow": True,
        # In half precision, small gradients vanish in the sum of the micro-batches before them.
        "data_types.grad_accum_dtype": "fp32",
    }
    check_zero(config.get("zero_optimization", {}), path)
    check_loss_scale(config.get("fp16", {}), path)
    for key, value in decided.items():
        fill(config, key, value, path)
    # The same holds for the sum over ranks, but a file may choose to halve the traffic.
    if config.get("communication_data_type", "auto") == "auto":
        config["communication_data_type"] = "fp32"
    check_stage(config.get("zero_optimization", {}).get("stage"), recipe, path)
    if "optimizer" in config or "scheduler" in config:
        raise ValueError(
            f"training.deepspeed: {path} holds an optimizer or scheduler; the recipe's "
            "`optimizer` section decides it"
        )
    return config


def fit_sizes(
    config: Mapping[str, Any], model: nn.Module, *, on_gpu: bool = False
) -> dict[str, Any]:
    """DeepSpeed's settings with sizes that fit a model, in elements.

    Buckets hold no more than all gradients together: DeepSpeed takes their memory whole, and a
    frozen backbone has no gradients. What a file leaves to us ("auto") is a bucket of what trains
    in one layer, or on a GPU in all, and of the weights that stage 3 gathers as many layers as
    `LIVE_LAYERS` says, or one less on a CPU, but at least `SMALL`.
    """
    trained = num_weights(model, trained=True)
    # The repeated layers, the largest of which sets the sizes.
    stacks = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    layers = [layer for stack in stacks for layer in stack] or [model]
    of_layers = [num_weights(layer, trained=True) for layer in layers]
    bucket = GPU_BUCKET if on_gpu else max(LEAST_BUCKET, *of_layers)
    # Frozen weights too: stage 3 partitions and gathers them like the others.
    largest = max(map(num_weights, layers))
    zero = dict(config["zero_optimization"])
    for name in BUCKETS:
        given = zero.get(name, "auto")
        size = min(bucket if given == "auto" else int(given), trained)
        zero[name] = size + size % 2  # DeepSpeed refuses to cut gathered weights at odd places
    if zero.get(OVERLAP, "auto") == "auto":
        # A single bucket has no backward pass left to overlap with. In stage 3, the word means also
        # that weights are gathered ahead of the layer that runs.
        zero[OVERLAP] = zero["stage"] == 3 or zero[BUCKETS[0]] < trained
    for name in OWN_SIZES:
        if zero.get(name) == "auto":
            del zero[name]  # DeepSpeed has a default, but takes no such word
    for name, num_layers in LIVE_LAYERS.items():
        if zero.get(name) == "auto":
            # On a CPU, gathering takes the time of the processor that computes.
            zero[name] = num_layers * largest if on_gpu else max(SMALL, (num_layers - 1) * largest)
    return {**config, "zero_optimization": zero}


def num_weights(module: nn.Module, trained: bool = False) -> int:
    """Elements of a module's weights, or of those alone that train."""
    weights = (weight for weight in module.parameters() if weight.requires_grad or not trained)
    # The whole weight, also where stage 3 has partitioned it.
    return sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in weights)


def check_zero(zero: Any, path: Path) -> None:
    """Errors: ValueError for settings of a type that DeepSpeed would refuse once all is loaded."""

    def wrong(key: str, value: Any, cure: str) -> ValueError:
        where = f"zero_optimization{key and f'.{key}'}"
        return ValueError(f"training.deepspeed: {path} has {where} = {value!r}; {cure}")

    if not isinstance(zero, dict):
        raise wrong("", zero, 'give settings, such as {"stage": 2}')
    for key in SIZES:
        value = zero.get(key, "auto")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "auto" and not (is_number and value >= 0 and value == int(value)):
            raise wrong(key, value, 'give a number of elements, or "auto"')
    for key in ("offload_optimizer", "offload_param"):
        value = zero.get(key)
        if value is not None and not isinstance(value, dict):
            raise wrong(key, value, 'give settings, such as {"device": "cpu"}')


def check_loss_scale(fp16: Any, path: Path) -> None:
    """Errors: ValueError for settings that DeepSpeed would refuse once all is loaded, or with which
    the loss scale would not change as it says."""
    if not isinstance(fp16, dict):
        raise ValueError(
            f'training.deepspeed: {path} has fp16 = {fp16!r}; give settings, such as {{"enabled": '
            '"auto"}'
        )
    for key in ("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"):
        value = fp16.get(key, 1)
        # DeepSpeed multiplies by 2^power as a whole number of 64 bits.
        least, most = (0, 62) if key == "initial_scale_power" else (1, 10**9)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(
                f"training.deepspeed: {path} has fp16.{key} = {value!r}; give a whole number from "
                f"{least} to {most:,}"
            )
    first, floor = 2 ** fp16.get("initial_scale_power", 16), fp16.get("min_loss_scale", 1)
    if floor > first:
        raise ValueError(
            f"training.deepspeed: {path} has fp16.min_loss_scale = {floor}, and begins at {first} "
            "(2 ^ fp16.initial_scale_power); give at most that"
        )
    scale = fp16.get("loss_scale", 0)
    if type(scale) not in (int, float) or not 0 <= scale < inf:
        raise ValueError(
            f"training.deepspeed: {path} has fp16.loss_scale = {scale!r}; give the number by which "
            "each loss is multiplied, or 0 to let it change"
        )


def check_stage(stage: Any, recipe: Recipe, path: Path) -> None:
    """Errors: ValueError for a stage that the engine cannot run."""
    if type(stage) is not int or stage not in (1, 2, 3):
        raise ValueError(
            f"training.deepspeed: {path} has zero_optimization.stage = {stage!r}; set 1, 2 or 3"
        )
    if stage == 3 and (problem := cannot_partition(recipe)) is not None:
        raise ValueError(f"training.deepspeed: {path} has zero_optimization.stage = 3, {problem}")
    if stage == 1 and recipe.training.precision != "fp32":
        # DeepSpeed 0.19 then uses another optimizer, which does not partition gradients.
        raise ValueError(
            f"training.deepspeed: {path} has zero_optimization.stage = 1, which does not go with "
            f"training.precision {recipe.training.precision}; set 2, which needs less memory, or 3"
        )


def cannot_partition(recipe: Recipe) -> str | None:
    """Why ZeRO stage 3 cannot run a recipe, and the cure; None if it can."""
    if (bits := recipe.model.packed_bits) is not None:
        return (
            f"which cannot partition the {bits}-bit weights of model.bits; set 2, or bits to null"
        )
    if (model := recipe.model.kept_whole) is not None:
        return f"which cannot partition {model}; set 2"
    for name, method in recipe.methods.items():
        if not method.partitionable:
            return f"under which methods.{name} cannot read whole weights and gradients; set 2"
    return None


def fill(config: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    """Set one field that is absent or "auto"; another value is a contradiction."""
    *groups, key = dotted.split(".")
    for group in groups:
        config = config.setdefault(group, {})
    if config.setdefault(key, "auto") == "auto":
        config[key] = value
    elif config[key] != value:
        raise ValueError(
            f"training.deepspeed: {path} says {dotted} = {config[key]}, the recipe says {value}; "
            'write "auto" there'
        )

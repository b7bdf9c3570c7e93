"""DeepSpeed's own JSON, completed from the recipe: we fill its "auto" fields and refuse
contradictions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.config import Recipe


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: ranks x accumulation steps x micro-batch."""

    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int


def plan_batches(
    global_batch_size: int, micro_batch_size: int | None, world_size: int
) -> BatchPlan:
    """Cut the global batch for this number of ranks.

    Errors: ValueError where it cannot be cut evenly, with the sizes that would work.
    """
    if global_batch_size % world_size:
        near = [size for size in range(1, global_batch_size + 1) if global_batch_size % size == 0]
        raise ValueError(
            f"data.global_batch_size: {global_batch_size} examples cannot be shared by "
            f"{world_size} ranks; "
            f"start one of {near} ranks, or set it to a multiple of {world_size}"
        )
    share = global_batch_size // world_size
    micro = micro_batch_size or share
    if share % micro:
        raise ValueError(
            f"data.micro_batch_size: {micro} does not divide the {share} examples that each of "
            f"{world_size} ranks "
            f"gets of data.global_batch_size {global_batch_size}; choose a divisor of {share}"
        )
    return BatchPlan(global_batch_size, micro, share // micro)


def complete_deepspeed_config(path: Path, recipe: Recipe, plan: BatchPlan) -> dict[str, Any]:
    """Read DeepSpeed's file and fill in what the recipe decides.

    Errors: ValueError where the file is missing, is no JSON, or says something else than the
    recipe.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"training.deepspeed: there is no file {path}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"training.deepspeed: {path} is not JSON: {error}") from None
    decided = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "gradient_clipping": recipe.optimizer.clip_norm,
        "bf16.enabled": recipe.training.precision == "bf16",
        # In fp32 it is always so: a step whose gradient is not finite changes nothing.
        "bf16.check_grad_overflow": True,
        # In bf16, small gradients would vanish beside the sum of the micro-batches before them.
        "data_types.grad_accum_dtype": "fp32",
    }
    for key, value in decided.items():
        fill(config, key, value, path)
    # The same holds for the sum over ranks, but a file may choose half the traffic instead.
    if config.get("communication_data_type", "auto") == "auto":
        config["communication_data_type"] = "fp32"
    check_stage(config.get("zero_optimization", {}).get("stage"), recipe, path)
    if "optimizer" in config or "scheduler" in config:
        raise ValueError(
            f"training.deepspeed: {path} holds an optimizer or scheduler; the recipe's "
            "`optimizer` section decides it"
        )
    return config


def check_stage(stage: Any, recipe: Recipe, path: Path) -> None:
    """Errors: ValueError for a stage that the engine cannot run."""
    if stage not in (1, 2, 3):
        raise ValueError(
            f"training.deepspeed: {path} has zero_optimization.stage = {stage}; set 2 or 3"
        )
    if stage == 1 and recipe.training.precision == "bf16":
        # DeepSpeed 0.19 takes an optimizer of another kind there, without partitioned gradients.
        raise ValueError(
            f"training.deepspeed: {path} has zero_optimization.stage = 1, which does not go with "
            "training.precision bf16; set 2, which needs less memory, or 3"
        )


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

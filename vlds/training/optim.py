"""AdamW's groups and the schedule: which weights decay, which part learns at which rate, and
when."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vlds.config import OptimizerConfig, Recipe
from vlds.models.vl_model import VLModel

NO_DECAY = ("bias", "norm", "image_order")
"""Name parts of weights without decay: biases (stacked ones too), norms, the image order table."""


def parameter_groups(model: VLModel, recipe: Recipe) -> list[dict[str, Any]]:
    """One group for each (peak learning rate, decay or not): its "params", "peak_lr",
    "weight_decay", "lr" 0.

    Errors: ValueError where nothing trains.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = peak_learning_rate(model.part_of(name), recipe)
            decay = 0.0 if is_undecayed(name) else recipe.optimizer.weight_decay
            groups.setdefault((peak, decay), []).append(parameter)
    if not groups:
        raise ValueError(
            "nothing trains: methods is empty, train_norms and train_visual_embedding are off; "
            "name a method"
        )
    return [
        {"params": parameters, "peak_lr": peak, "lr": 0.0, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]


def is_undecayed(name: str) -> bool:
    """Whether weight decay leaves this parameter alone."""
    own = ".".join(name.split(".")[-2:])  # a module and its tensor: "image_order.weight"
    return any(part in own for part in NO_DECAY)


def peak_learning_rate(part: str, recipe: Recipe) -> float:
    """The peak rate of a part: a method's name, visual_embedding or norms."""
    own: dict[str, float | None] = {
        "visual_embedding": recipe.optimizer.visual_embedding_learning_rate,
        "norms": recipe.optimizer.norms_learning_rate,
        **{name: method.learning_rate for name, method in recipe.methods.items()},
    }
    rate = own.get(part)
    return recipe.optimizer.learning_rate if rate is None else rate


def schedule_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the peak rate in step 0, 1, ...: linear warm-up from 0, flat, linear decay to 0 at
    `steps`.

    As in VL-Adapter the first step has rate 0, and by default the decay follows the warm-up at
    once.
    """
    warmup = int(config.warmup_ratio * steps)
    if step < warmup:
        return step / warmup
    start = warmup if config.decay_start is None else max(warmup, int(config.decay_start * steps))
    return 1.0 if step < start else max(0.0, (steps - step) / max(1, steps - start))


def set_learning_rate(groups: Iterable[dict[str, Any]], factor: float) -> None:
    """Write the rate of this step into the optimizer."""
    for group in groups:
        group["lr"] = group["peak_lr"] * factor

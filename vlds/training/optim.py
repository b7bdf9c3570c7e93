"""AdamW's groups and the schedule: which weights decay, which part learns at which rate, and
when."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from vlds.config import OptimizerConfig, Recipe
from vlds.models.model import Model
from vlds.models.optimizer_rules import optimizer_rules
from vlds.schema import OptimizerRule

RATES = {
    "connector_learning_rate": ("connector", "projector", "visual embedding", "fusion"),
    "norms_learning_rate": ("norms",),
    "heads_learning_rate": ("heads",),
}
"""Fields of the optimizer with the rate of a part that trains beside the methods -> what recipes
call it (`trained_text`)."""


def check_rates(recipe: Recipe) -> None:
    """Errors: ValueError if the optimizer has the rate of a part that the model does not train."""
    trained = [name.replace("_", " ") for name in recipe.trained_text]
    for field, parts in RATES.items():
        rate = getattr(recipe.optimizer, field)
        if rate is not None and not set(parts).intersection(trained):
            what = ", ".join([*recipe.methods, *trained]) or "nothing"
            raise ValueError(
                f"optimizer.{field}: got {rate}, but the model trains no {' or '.join(parts)}; "
                f"what trains: {what}; leave it out, or let the model train that part"
            )


def parameter_groups(model: Model, recipe: Recipe) -> list[dict[str, Any]]:
    """One group for each (peak learning rate, weight decay): its "params", "peak_lr",
    "weight_decay", and "lr" 0.

    Errors: ValueError if nothing trains, or a method declares no rule for one of its tensors.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    rules = optimizer_rules(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            peak = peak_learning_rate(model.part_of(name), recipe)
            decay = recipe.optimizer.weight_decay if decays(rules[name], recipe.optimizer) else 0.0
            groups.setdefault((peak * rules[name].rate, decay), []).append(parameter)
    if not groups:
        raise ValueError(
            "nothing trains: methods is empty, and no other part of the model trains; name a "
            "method, or a head of a task"
        )
    return [
        {"params": parameters, "peak_lr": peak, "lr": 0.0, "weight_decay": decay}
        for (peak, decay), parameters in groups.items()
    ]


def decays(rule: OptimizerRule, config: OptimizerConfig) -> bool:
    """True if weight decay acts on a parameter."""
    if config.weight_decay_groups == "vl_adapter" and rule.vl_adapter_decays is not None:
        return rule.vl_adapter_decays
    return rule.decays


def peak_learning_rate(part: str, recipe: Recipe) -> float:
    """The peak rate of a part: a method's name, visual_embedding, connector, norms or heads."""
    rates: dict[str, float | None] = {
        "visual_embedding": recipe.optimizer.connector_learning_rate,
        "connector": recipe.optimizer.connector_learning_rate,
        "fusion": recipe.optimizer.connector_learning_rate,
        "norms": recipe.optimizer.norms_learning_rate,
        "heads": recipe.optimizer.heads_learning_rate,
        **{name: method.learning_rate for name, method in recipe.methods.items()},
    }
    rate = rates.get(part)
    return recipe.optimizer.learning_rate if rate is None else rate


def schedule_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the peak rate in step 0, 1, ...: linear warm-up from 0, flat, decay to 0 at
    `steps`, in a line or as half a cosine.

    As in VL-Adapter the first step has rate 0, and by default the decay follows the warm-up at
    once.
    """
    warmup = int(config.warmup_ratio * steps)
    if step < warmup:
        return step / warmup
    start = warmup if config.decay_start is None else max(warmup, int(config.decay_start * steps))
    if step < start:
        return 1.0
    left = max(0.0, (steps - step) / max(1, steps - start))
    return (1 - math.cos(math.pi * left)) / 2 if config.decay == "cosine" else left


def set_learning_rate(groups: Iterable[dict[str, Any]], factor: float) -> None:
    """Write the rate of this step into the optimizer."""
    for group in groups:
        group["lr"] = group["peak_lr"] * factor

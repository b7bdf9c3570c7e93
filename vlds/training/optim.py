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
    "connector": "connector_learning_rate",
    "projector": "connector_learning_rate",
    "visual_embedding": "connector_learning_rate",
    "fusion": "connector_learning_rate",
    "norms": "norms_learning_rate",
    "heads": "heads_learning_rate",
}
"""Part that trains beside the methods, as `Model.part_of` or a recipe's `trained_text` calls it ->
field of the optimizer with its rate."""


def rate_field(part: str) -> str:
    """Errors: ValueError if no field has the rate of a part that is no method."""
    if part not in RATES:
        raise ValueError(
            f"the model trains a part '{part}', which has no learning rate in the optimizer; a "
            f"kind of model may call its parts {', '.join(RATES)}, and what else trains is a method"
        )
    return RATES[part]


def check_rates(recipe: Recipe) -> None:
    """Errors: ValueError if the optimizer has the rate of a part that the model does not train, or
    none for one that it trains."""
    trained = {rate_field(name.replace(" ", "_")) for name in recipe.trained_text}
    for field in dict.fromkeys(RATES.values()):
        rate = getattr(recipe.optimizer, field)
        if rate is not None and field not in trained:
            parts = [part.replace("_", " ") for part, its in RATES.items() if its == field]
            text = [name.replace("_", " ") for name in recipe.trained_text]
            what = ", ".join([*recipe.methods, *text]) or "nothing"
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
    """The peak rate of a part, which is a method or one of RATES.

    Errors: ValueError if it is neither.
    """
    method = recipe.methods.get(part)
    own = getattr(recipe.optimizer, rate_field(part)) if method is None else method.learning_rate
    return recipe.optimizer.learning_rate if own is None else own


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

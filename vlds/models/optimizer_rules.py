"""How the optimizer treats each weight that trains: what the modules declare, and what the kind of
a library's module says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from vlds.methods.extended import is_own
from vlds.methods.host import pattern_of
from vlds.models.model import Model
from vlds.schema import UNDECAYED, OptimizerRule, OptimizerRules

NORM_WEIGHT = OptimizerRule(decays=False, vl_adapter_decays=True)
"""The original code looks for `LayerNorm.weight`, and its norms are called layer_norm."""


class TaskSlices(NamedTuple):
    """What a parameter holds of the tasks, one after the other."""

    first: int
    """Number of the first task."""
    size: int
    """Elements of each task."""


def optimizer_rules(model: Model) -> dict[str, OptimizerRule]:
    """Name of each parameter that trains -> its rule.

    The nearest declaration holds: of the module that owns the parameter, or of one around it. If
    there is none, the kind of the owner decides. The names that a recipe gives to methods play no
    role. Errors: ValueError if a method's own module declares no rule.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    declared: dict[str, OptimizerRules] = {
        path: getattr(module, "optimizer_rules", {}) for path, module in modules.items()
    }
    for part in model.parts.values():
        declared[part.path] = {**declared[part.path], **part.optimizer_rules}
    rules: dict[str, OptimizerRule] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, tensor = name.rpartition(".")
            rule = declared_rule(name, declared)
            rules[name] = rule_of_kind(name, modules[owner], tensor) if rule is None else rule
    return rules


def task_slices(model: Model, num_tasks: int) -> dict[nn.Parameter, TaskSlices]:
    """What parameters hold of the tasks: those that are stacked over them, and those of heads."""
    slices: dict[nn.Parameter, TaskSlices] = {}
    rules = optimizer_rules(model)
    for task, head in model.heads.items():
        number = model.heads.numbers[task]
        for parameter in head.parameters():
            size = int(getattr(parameter, "ds_numel", parameter.numel()))
            slices[parameter] = TaskSlices(number, size)
    for name, parameter in model.named_parameters():
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)  # whole, under ZeRO-3
        if name in rules and rules[name].per_task and shape[0] > 1:
            assert shape[0] == num_tasks, f"{name}: {tuple(shape)} for {num_tasks} tasks"
            slices[parameter] = TaskSlices(0, shape[1:].numel())
    return slices


def declared_rule(name: str, declared: Mapping[str, OptimizerRules]) -> OptimizerRule | None:
    """What the nearest module around a parameter declares about it."""
    segments = name.split(".")
    for depth in reversed(range(len(segments))):
        inside = ".".join(segments[depth:])
        for pattern, rule in declared[".".join(segments[:depth])].items():
            if pattern_of(pattern).fullmatch(inside):
                return rule
    return None


def rule_of_kind(name: str, module: nn.Module, tensor: str) -> OptimizerRule:
    """The rule of a library's module: norms and biases do not decay, other weights do.

    `tensor` is the parameter's name in the module's own class. Errors: ValueError if the module
    is a method's and not a layer of PyTorch or transformers, so that its kind is
    unknown.
    """
    kind = type(module)
    containers = (nn.ParameterList, nn.ParameterDict)
    is_layer = kind.__module__.startswith(("torch.nn.", "transformers."))
    is_layer = is_layer and not isinstance(module, containers)
    if not (is_own(name) or is_layer):
        raise ValueError(
            f"{kind.__name__} declares no optimizer rule for '{tensor}' ({name}); name it in the "
            "class variable `optimizer_rules`, as docs/add_a_method.md shows"
        )
    if "bias" in tensor:
        return UNDECAYED
    is_norm = "Norm" in kind.__name__  # of torch, transformers or timm alike
    return NORM_WEIGHT if is_norm else OptimizerRule()

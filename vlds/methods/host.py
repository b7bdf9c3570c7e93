"""Where a method is attached: the layers that play its roles, and how its modules get there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from vlds.methods.batch_loss import BatchLoss
from vlds.methods.context import BatchContext
from vlds.methods.extended import (
    InputExtension,
    LinearExtension,
    ModelExtension,
    NoteInput,
    extended,
    fitted,
    is_own,
    is_plain,
    states_type,
)
from vlds.methods.revision import Revision
from vlds.methods.step_rule import StepRule
from vlds.runtime.made_for_batch import MadeForBatch
from vlds.schema import Role, TargetModules

CROSS_ATTENTION: tuple[Role, ...] = (
    "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_out",
)  # fmt: skip
"""Roles that encoders do not have."""
CURE = (
    "Choose another method, or name the role's path in the backbone's or encoder's target_modules"
)


@dataclass(frozen=True)
class Host:
    """A frozen model that a method is attached to."""

    name: str
    """The method's name in the recipe."""
    model: nn.Module
    targets: TargetModules
    tasks: Sequence[str]
    context: BatchContext
    """What modules know of the running batch."""
    takes_prompts: bool = True
    """False if nothing can stand before the text in the model."""
    says_tokens: bool = True
    """False if `context.token_mask` does not say which tokens are real."""
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    """Task -> its head, for tasks that have one."""
    shots: Mapping[str, int] = field(default_factory=dict)
    """Task -> pictures of each class that it trains on, for tasks that train on few."""
    stack: Literal["encoder", "decoder"] | None = None
    """The stack of an encoder-decoder whose layers are meant; None: all."""
    changed: list[nn.Parameter] = field(default_factory=list)
    """Frozen weights that attaching has changed, so that they are no longer those of a file; the
    method adds to it."""
    step_rules: list[StepRule] = field(default_factory=list)
    """At most one: what the method does at every optimizer step; the method adds it."""
    batch_losses: list[BatchLoss] = field(default_factory=list)
    """At most one: what the method adds to each example's loss; the method adds it."""
    revisions: list[Revision] = field(default_factory=list)
    """At most one: how the method changes what trains after given steps; the method adds it."""

    def linears(self, *roles: str, optional: Collection[str] = ()) -> dict[str, nn.Linear]:
        """Path -> linear layer, of those that play the roles, role by role. `optional` roles may
        be missing from the model.

        Errors: ValueError if a role is unknown or matches no layer, or something that methods
        cannot extend.
        """
        return {
            path: checked_linear(path, module, role)
            for role in dict.fromkeys(roles)
            if role not in optional or role in self.targets.paths
            for path, module in self.modules_of(role).items()
        }

    def modules_of(self, role: str) -> dict[str, nn.Module]:
        """Path -> module that plays a role, in the host's stack.

        Errors: ValueError if a role is unknown or matches no layer.
        """
        modules = find_modules(self.model, self.targets, role)
        if self.stack is None:
            return modules
        return {path: module for path, module in modules.items() if self.stack in path.split(".")}

    def note_input(self, module: nn.Module) -> MadeForBatch:
        """Let a module keep its input for one that runs behind it."""
        note = NoteInput()
        extended(module).input_extensions[self.name] = note
        return note.noted

    def extend_linear(self, linear: nn.Linear, extension: LinearExtension) -> None:
        """Put an extension behind a linear layer, under all the paths that the layer has."""
        extended(linear).extensions[self.name] = fitted(extension, linear, self.model)

    def extend_input(self, linear: nn.Linear, extension: InputExtension) -> None:
        """Put an extension before a linear layer, under all the paths that the layer has."""
        extended(linear).input_extensions[self.name] = fitted(extension, linear, self.model)

    def extend_norm(self, norm: nn.Module, extension: LinearExtension) -> None:
        """Put an extension behind a norm of any class."""
        extended(norm).extensions[self.name] = extension

    def check_prompts(self) -> None:
        """Errors: ValueError if nothing can stand before the text in the model."""
        if not self.takes_prompts:
            raise ValueError(
                f"{type(self.model).__name__} takes no prompts, because Hugging Face's own forward "
                "pass runs it; choose a method that extends layers, such as LoRA"
            )

    def extend_model(self, extension: ModelExtension) -> None:
        """Put an extension beside the model.

        Errors: ValueError for prompts if the model takes none.
        """
        if extension.gives_prompts:
            self.check_prompts()
        extensions = module_dict(self.model, "extensions")
        extensions[self.name] = extension.to(states_type(self.model))

    def extend_attention(self, key_path: str, extension: nn.Module) -> None:
        """Let `extension`(keys, values) -> (keys, values), all (b, heads, s, d), act in the
        attention whose key projection is at a path."""
        attention = self.model.get_submodule(key_path.rpartition(".")[0])
        module_dict(attention, "key_value_extensions")[self.name] = extension


def find_modules(model: nn.Module, targets: TargetModules, role: str) -> dict[str, nn.Module]:
    """Path -> module, of those that play a role; a shared module has all its paths.

    Errors: ValueError that lists the known roles if none does.
    """
    patterns = [pattern_of(path) for path in targets.paths.get(role, ())]
    modules = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if any(pattern.fullmatch(path) for pattern in patterns)
    }
    if not modules:
        known = ", ".join(sorted(targets.paths)) or "none"
        raise ValueError(
            f"no layer of {type(model).__name__} plays the role '{role}'; its roles: {known}. "
            f"{targets.cures.get(role, CURE)}"
        )
    return modules


def checked_linear(path: str, module: nn.Module, role: str) -> nn.Linear:
    """The module, if methods can extend it.

    Errors: ValueError if it is not an nn.Linear, or its forward is not its class's.
    """
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"{path} plays the role '{role}' and is a {type(module).__name__}; methods extend "
            "nn.Linear and its subclasses only, so choose a model or a method without it"
        )
    if "forward" in vars(module):
        raise ValueError(
            f"{path} plays the role '{role}', and its forward was replaced on the object itself, "
            "so that a method's modules would never run; attach methods before whatever does that"
        )
    return module


def pattern_of(path: str) -> re.Pattern[str]:
    """A path pattern as a regular expression; `*` stands for one segment."""
    return re.compile(re.escape(path).replace(r"\*", r"[^.]+"))


def bias_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The model's own biases: those of linear layers and norms, and T5's relative position
    biases."""
    return [p for name, p in model.named_parameters() if "bias" in name and is_own(name)]


def weight_options(layer: nn.Linear | nn.Embedding) -> dict[str, Any]:
    """Device and type for new weights beside a layer: those of its own weight.

    The type of a quantised weight says how it is packed. New weights are float32 there, until
    `fitted` gives them the type of the model's states.
    """
    weight = layer.weight
    return {"device": weight.device, "dtype": weight.dtype if is_plain(weight) else torch.float32}


def module_dict(module: nn.Module, child: str) -> nn.ModuleDict:
    """A module's child that holds methods' modules."""
    if not hasattr(module, child):
        module.add_module(child, nn.ModuleDict())
    modules = module.get_submodule(child)
    assert isinstance(modules, nn.ModuleDict)
    return modules

"""What a method is: it attaches to roles of a frozen model and says which weights train.

Several methods may extend one layer; they act in the order in which the recipe names them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.methods.cases import Case
from vlds.methods.extended import extended, fitted, is_own, is_plain, states_type
from vlds.methods.layouts import LIBRARY_NAMES, Layout, Library
from vlds.methods.routing import TaskRouting
from vlds.schema import Role, TargetModules

CROSS_ATTENTION: tuple[Role, ...] = (
    "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_out",
)  # fmt: skip
"""Roles that encoders do not have."""
CURE = (
    "Choose another method, or name the role's path in the backbone's or encoder's target_modules"
)
Sharing = Literal["single", "multiple", "half_shared_up", "half_shared_down"]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way of tuning a few of a model's weights. All facts about a method are here: the class
    variables and hooks serve merging, conversion and the contract tests."""

    recomputable: ClassVar[bool] = True
    """True if layers compute the same again in the backward pass (activation checkpointing)."""
    merges_to_itself: ClassVar[bool] = False
    """True if `merge` keeps the method and only drops what training needed."""
    libraries: ClassVar[frozenset[Library]] = frozenset()
    """Libraries whose files can hold the method; `layout` describes them."""
    reasons: ClassVar[Mapping[Library, str]] = {}
    """Why others cannot, if there is more to say than that they lack it."""

    part: Literal["backbone", "vision"] = "backbone"
    """Which part of the model is tuned."""
    learning_rate: float | None = None
    """Peak learning rate of this method's weights; default: the optimizer's."""

    @abstractmethod
    def attach(
        self,
        name: str,
        model: nn.Module,
        targets: TargetModules,
        tasks: Sequence[str],
        routing: TaskRouting,
    ) -> list[nn.Parameter]:
        """Put the method, called `name` in the recipe, into a frozen model; the parameters that
        train.

        Errors: ValueError if nothing in the model plays the roles that the method needs.
        """

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Method | None:
        """Fold what was attached as `name` into the model's own weights, or make it plainer; the
        method that stays beside them, None if nothing does.

        Errors: ValueError if neither can be done.
        """
        raise ValueError(
            f"{type(self).__name__} computes what no plain layer computes; use `vlds convert hf`, "
            "which keeps it beside the backbone"
        )

    def refusal(self, library: Library, model: Any) -> str | None:
        """Why a library's files cannot hold the method in a Hugging Face backbone; None if they
        can."""
        if library in self.libraries:
            return None
        lacks = f"{LIBRARY_NAMES[library]} has no {type(self).__name__}"
        return self.reasons.get(library, lacks)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The files of one of its `libraries`, for what was attached as `name` to a backbone."""
        raise NotImplementedError

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        """Word -> small instance, for the contract tests."""
        return {"": Case(cls())}


class LinearExtension(nn.Module):
    """What a method adds behind a linear layer."""

    behind_zeros: Collection[str] = ()
    """Tensors of the module behind a matrix that begins as zeros: they have no gradient at
    first."""

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The layer's new output, from its input and what it gave so far."""
        raise NotImplementedError


class InputExtension(nn.Module):
    """What a method adds before a linear layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's new input."""
        raise NotImplementedError


class ModelExtension(nn.Module):
    """What a method adds to a backbone as a whole. Runs once before each pass of the encoder."""

    runs_layers: ClassVar[bool] = False
    """True if it runs layers of the model, and so comes after what those layers need."""

    def forward(self) -> Tensor | None:
        """(b, p, d) what stands before the text in the encoder's input, or None."""
        raise NotImplementedError


def check_sharing(part: str, sharing: str) -> None:
    """Errors: ValueError if tasks would have separate weights in the vision encoder."""
    if part == "vision" and sharing != "single":
        raise ValueError(
            f"sharing: got {sharing} for the vision encoder, where tasks share pictures; use single"
        )


def bias_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The model's own biases: those of linear layers and norms, and T5's relative position
    biases."""
    return [p for name, p in model.named_parameters() if "bias" in name and is_own(name)]


def find_linears(
    model: nn.Module, targets: TargetModules, *roles: str, optional: Collection[str] = ()
) -> dict[str, nn.Linear]:
    """Path -> linear layer, of those that play the roles, role by role. Models without a role that
    is `optional` are passed over.

    Errors: ValueError if a role is unknown or matches no layer, or something that methods cannot
    extend.
    """
    return {
        path: checked_linear(path, module, role)
        for role in roles
        if role not in optional or role in targets.paths
        for path, module in find_modules(model, targets, role).items()
    }


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


def weight_options(linear: nn.Linear) -> dict[str, Any]:
    """Device and type for new weights beside a layer: those of its own weight.

    The type of a quantised weight says how it is packed. New weights are float32 there, until
    `fitted` gives them the type of the model's states.
    """
    weight = linear.weight
    return {"device": weight.device, "dtype": weight.dtype if is_plain(weight) else torch.float32}


def extend_linear(model: nn.Module, path: str, name: str, extension: LinearExtension) -> None:
    """Put an extension behind the linear layer at a path, wherever else the model holds the same
    layer."""
    linear = model.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    extended(linear).extensions[name] = fitted(extension, linear, model)


def extend_input(model: nn.Module, path: str, name: str, extension: InputExtension) -> None:
    """Put an extension before the linear layer at a path, wherever else the model holds the same
    layer."""
    linear = model.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    extended(linear).input_extensions[name] = fitted(extension, linear, model)


def extend_norm(norm: nn.Module, name: str, extension: LinearExtension) -> None:
    """Put an extension behind a norm of any class."""
    extended(norm).extensions[name] = extension


def extend_model(model: nn.Module, name: str, extension: ModelExtension) -> None:
    """Put an extension beside the model."""
    module_dict(model, "extensions")[name] = extension.to(states_type(model))


def extend_attention(model: nn.Module, path: str, name: str, extension: nn.Module) -> None:
    """Let `extension`(keys, values) -> (keys, values), all (b, heads, s, d), act in the attention
    whose key projection is at a path."""
    attention = model.get_submodule(path.rpartition(".")[0])
    module_dict(attention, "key_value_extensions")[name] = extension


def module_dict(module: nn.Module, child: str) -> nn.ModuleDict:
    """A module's child that holds methods' modules."""
    if not hasattr(module, child):
        module.add_module(child, nn.ModuleDict())
    modules = module.get_submodule(child)
    assert isinstance(modules, nn.ModuleDict)
    return modules

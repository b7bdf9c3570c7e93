"""What a method is: it attaches to roles of a frozen model and says which weights train.

Attaching replaces a linear layer by an `ExtendedLinear` that owns the SAME parameters, so
pretrained names stay as they are, plus child modules that change its output. No hooks and no
closures: deepcopy, ZeRO-3 and a debugger see ordinary modules. Several methods may extend one
layer; they act in the order in which the recipe names them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from vlds.methods.routing import TaskRouting
from vlds.schema import TargetModules

ADDED = frozenset({"extensions", "input_extensions", "key_value_extensions"})
"""What methods call their modules' places in a model."""
Sharing = Literal["single", "multiple", "half_shared_up", "half_shared_down"]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way of tuning a few of a model's weights."""

    recomputable: ClassVar[bool] = True
    """Whether layers compute the same again in the backward pass (activation checkpointing)."""

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

        Errors: ValueError where nothing in the model plays the roles that the method needs.
        """

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Method | None:
        """Fold what was attached as `name` into the model's own weights, or make it plainer; the
        method that stays beside them, None where nothing does.

        Errors: ValueError where neither can be done.
        """
        raise ValueError(
            f"{type(self).__name__} computes what no plain layer computes; use `vlds convert hf`, "
            "which keeps it beside the backbone"
        )


class LinearExtension(nn.Module):
    """What a method adds behind a linear layer."""

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
    """Whether it runs layers of the model, and so comes after those that the layers need."""

    def forward(self) -> Tensor | None:
        """(b, p, d) what stands before the text in the encoder's input, or None."""
        raise NotImplementedError


class MadeForBatch:
    """What a module has made for the running batch. It is no part of the model's state: a copy of
    the model starts without it."""

    def __init__(self) -> None:
        self.value: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> MadeForBatch:
        return MadeForBatch()


class ExtendedLinear(nn.Linear):
    """A linear layer with methods' modules before and behind it; its parameters are those of the
    layer it replaces."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.input_extensions = nn.ModuleDict()
        self.extensions = nn.ModuleDict()
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """The extensions of the input, the linear layer, the extensions of the output, each in the
        order of attaching."""
        for extension in self.input_extensions.values():
            input = extension(input)
        outputs: Tensor = super().forward(input)
        for extension in self.extensions.values():
            outputs = extension(input, outputs)
        return outputs


def is_own(name: str) -> bool:
    """Whether a tensor is the model's own; the others have been added by methods."""
    return not ADDED.intersection(name.split("."))


def check_sharing(part: str, sharing: str) -> None:
    """Errors: ValueError where tasks would have weights of their own in the vision encoder."""
    if part == "vision" and sharing != "single":
        raise ValueError(
            f"sharing: got {sharing} for the vision encoder, where tasks share pictures; use single"
        )


def bias_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The model's own biases: those of linear layers and norms, and T5's relative position
    biases."""
    return [p for name, p in model.named_parameters() if "bias" in name and is_own(name)]


def find_linears(model: nn.Module, targets: TargetModules, *roles: str) -> dict[str, nn.Linear]:
    """Path -> linear layer, of those that play the roles, role by role.

    Errors: ValueError that lists the known roles where one is unknown or matches no linear layer.
    """
    found: dict[str, nn.Linear] = {}
    for role in roles:
        patterns = [pattern_of(path) for path in targets.paths.get(role, ())]
        playing = {
            path: module
            for path, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, nn.Linear) and any(p.fullmatch(path) for p in patterns)
        }
        if not playing:
            known = ", ".join(sorted(targets.paths)) or "none"
            raise ValueError(
                f"no linear layer of {type(model).__name__} plays the role '{role}'; its roles: "
                f"{known}. Choose another method, or name the role's path in the backbone's or "
                "encoder's target_modules"
            )
        found |= playing
    return found


def find_modules(model: nn.Module, targets: TargetModules, role: str) -> list[nn.Module]:
    """The modules that play a role.

    Errors: ValueError where none does.
    """
    patterns = [pattern_of(path) for path in targets.paths.get(role, ())]
    found = [m for path, m in model.named_modules() if any(p.fullmatch(path) for p in patterns)]
    if not found:
        raise ValueError(
            f"no module of {type(model).__name__} plays the role '{role}'; choose another method"
        )
    return found


def pattern_of(path: str) -> re.Pattern[str]:
    """A path pattern as a regular expression; `*` stands for one segment."""
    return re.compile(re.escape(path).replace(r"\*", r"[^.]+"))


def extend_linear(model: nn.Module, path: str, name: str, extension: LinearExtension) -> None:
    """Put an extension behind the linear layer at a path, wherever else the model holds the same
    layer."""
    linear = extended(model, path)
    assert name not in linear.extensions
    linear.extensions[name] = extension


def extend_input(model: nn.Module, path: str, name: str, extension: InputExtension) -> None:
    """Put an extension before the linear layer at a path, wherever else the model holds the same
    layer."""
    linear = extended(model, path)
    assert name not in linear.input_extensions
    linear.input_extensions[name] = extension


def extended_linears(model: nn.Module, name: str) -> Iterator[ExtendedLinear]:
    """The linear layers that a method, called `name`, has extended."""
    for module in model.modules():
        if isinstance(module, ExtendedLinear) and (
            name in module.extensions or name in module.input_extensions
        ):
            yield module


def take_first(linear: ExtendedLinear, name: str) -> nn.Module:
    """Take out the first extension behind a layer, to fold it into the layer's weights.

    Errors: ValueError where another one stands before it.
    """
    first = next(iter(linear.extensions))
    if first != name:
        raise ValueError(
            f"{first} stands between {name} and the layer's weights; fold that one first, which "
            "means: name it earlier in the recipe"
        )
    return linear.extensions.pop(name)


def extend_model(model: nn.Module, name: str, extension: ModelExtension) -> None:
    """Put an extension beside the model."""
    if not hasattr(model, "extensions"):
        model.add_module("extensions", nn.ModuleDict())
    extensions = model.get_submodule("extensions")
    assert isinstance(extensions, nn.ModuleDict)
    extensions[name] = extension


def extend_attention(model: nn.Module, path: str, name: str, extension: nn.Module) -> None:
    """Let `extension`(keys, values) -> (keys, values), all (b, heads, s, d), act in the attention
    whose key projection is at a path."""
    attention = model.get_submodule(path.rpartition(".")[0])
    if not hasattr(attention, "key_value_extensions"):
        attention.add_module("key_value_extensions", nn.ModuleDict())
    extensions = attention.get_submodule("key_value_extensions")
    assert isinstance(extensions, nn.ModuleDict)
    extensions[name] = extension


def extended(model: nn.Module, path: str) -> ExtendedLinear:
    """The linear layer at a path, made one that takes extensions."""
    linear = model.get_submodule(path)
    if isinstance(linear, ExtendedLinear):
        return linear
    assert isinstance(linear, nn.Linear)
    replacement = ExtendedLinear(linear)
    places = [p for p, m in model.named_modules(remove_duplicate=False) if m is linear]
    for place in places:
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement)
    return replacement

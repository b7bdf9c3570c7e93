"""What a method is: it attaches to roles of a frozen model and says which weights train.

Attaching makes a linear layer an `ExtendedLinear`: the same object with the same parameters, so
pretrained names stay as they are, and with child modules that change its input and output. Its
class becomes a subclass of what it was, so a quantised layer still computes as one. No hooks and no
closures: deepcopy, pickle, ZeRO-3 and a debugger see ordinary modules. Several methods may extend
one layer; they act in the order in which the recipe names them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.methods.routing import TaskRouting
from vlds.schema import Role, TargetModules

ADDED = frozenset({"extensions", "input_extensions", "key_value_extensions"})
"""What methods call their modules' places in a model."""
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
    """A linear layer with methods' modules before and behind it; `extended` makes one of a layer.

    This class extends plain layers; `extended_class` derives those that extend other kinds.
    """

    kind: ClassVar[type[nn.Linear]] = nn.Linear
    """Class that the layer had before."""
    input_extensions: nn.ModuleDict
    extensions: nn.ModuleDict

    def forward(self, input: Tensor) -> Tensor:
        """The extensions of the input, the layer's own forward pass, the extensions of the output,
        each in the order of attaching."""
        for extension in self.input_extensions.values():
            input = extension(input)
        outputs: Tensor = super().forward(input)
        for extension in self.extensions.values():
            outputs = extension(input, outputs)
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle finds no derived class by its name.
        return blank_extended, (self.kind,), self.__getstate__()  # type: ignore[no-untyped-call]


EXTENDED: dict[type[nn.Linear], type[ExtendedLinear]] = {nn.Linear: ExtendedLinear}
"""Class of linear layers -> the class that they have once they are extended."""


def extended_class(kind: type[nn.Linear]) -> type[ExtendedLinear]:
    """The class of extended layers that were of a class, whose forward pass they keep."""
    if kind not in EXTENDED:
        EXTENDED[kind] = type(f"Extended{kind.__name__}", (ExtendedLinear, kind), {"kind": kind})
    return EXTENDED[kind]


def blank_extended(kind: type[nn.Linear]) -> ExtendedLinear:
    """An extended layer without any state, for pickle and deepcopy to fill."""
    made = extended_class(kind)
    return made.__new__(made)


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


def find_linears(
    model: nn.Module, targets: TargetModules, *roles: str, optional: Collection[str] = ()
) -> dict[str, nn.Linear]:
    """Path -> linear layer, of those that play the roles, role by role. Models without a role that
    is `optional` are passed over.

    Errors: ValueError that lists the known roles where one is unknown or matches no layer, and
    where it matches something that methods cannot extend.
    """
    found: dict[str, nn.Linear] = {}
    for role in roles:
        if role in optional and role not in targets.paths:
            continue
        patterns = [pattern_of(path) for path in targets.paths.get(role, ())]
        playing = {
            path: checked_linear(path, module, role)
            for path, module in model.named_modules(remove_duplicate=False)
            if any(p.fullmatch(path) for p in patterns)
        }
        if not playing:
            known = ", ".join(sorted(targets.paths)) or "none"
            raise ValueError(
                f"no linear layer of {type(model).__name__} plays the role '{role}'; its roles: "
                f"{known}. {targets.cures.get(role, CURE)}"
            )
        found |= playing
    return found


def checked_linear(path: str, module: nn.Module, role: str) -> nn.Linear:
    """The module, if methods can extend it.

    Errors: ValueError where it is no nn.Linear, or calls something else than its class's forward.
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


def weight_options(linear: nn.Linear) -> dict[str, Any]:
    """Device and type for new weights beside a layer: those of its own weight.

    The type of a quantised weight says how it is packed. New weights are float32 there, until
    `fitted` gives them the type of the model's states.
    """
    weight = linear.weight
    return {"device": weight.device, "dtype": weight.dtype if is_plain(weight) else torch.float32}


def is_plain(weight: Tensor) -> bool:
    """True for matrices of floats; False for what is packed, or computed from something else."""
    return type(weight) is nn.Parameter and weight.is_floating_point()


def fitted(extension: nn.Module, linear: nn.Linear, model: nn.Module) -> nn.Module:
    """What a method adds beside a layer, in the type of the model's states if the layer's own
    weight does not tell it."""
    return extension if is_plain(linear.weight) else extension.to(states_type(model))


def states_type(model: nn.Module) -> torch.dtype:
    """Type of a model's states: that of its first weight that is not packed."""
    return next((p.dtype for p in model.parameters() if is_plain(p)), torch.float32)


def extend_linear(model: nn.Module, path: str, name: str, extension: LinearExtension) -> None:
    """Put an extension behind the linear layer at a path, wherever else the model holds the same
    layer."""
    linear = extended(model, path)
    assert name not in linear.extensions
    linear.extensions[name] = fitted(extension, linear, model)


def extend_input(model: nn.Module, path: str, name: str, extension: InputExtension) -> None:
    """Put an extension before the linear layer at a path, wherever else the model holds the same
    layer."""
    linear = extended(model, path)
    assert name not in linear.input_extensions
    linear.input_extensions[name] = fitted(extension, linear, model)


def extended_linears(model: nn.Module, name: str) -> Iterator[ExtendedLinear]:
    """The linear layers that a method, called `name`, has extended."""
    for module in model.modules():
        if isinstance(module, ExtendedLinear) and (
            name in module.extensions or name in module.input_extensions
        ):
            yield module


def foldable_weight(linear: ExtendedLinear) -> Tensor:
    """A layer's weight, for changes that change the layer's output as a plain product would.

    Errors: ValueError where the layer is quantised or computes something else.
    """
    if not is_plain(linear.weight) or linear.kind.forward is not nn.Linear.forward:
        raise ValueError(
            f"{linear.kind.__name__} does not compute a plain product with a matrix of floats, so "
            "nothing can be folded into it; fold into the backbone that is not quantised, or use "
            "`vlds convert hf`, which keeps the method beside the backbone"
        )
    return linear.weight


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
    extensions[name] = extension.to(states_type(model))


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
    """The linear layer at a path, made one that takes extensions. It stays the same object."""
    linear = model.get_submodule(path)
    if isinstance(linear, ExtendedLinear):
        return linear
    assert isinstance(linear, nn.Linear)
    linear.__class__ = extended_class(type(linear))
    assert isinstance(linear, ExtendedLinear)
    linear.input_extensions, linear.extensions = nn.ModuleDict(), nn.ModuleDict()
    return linear

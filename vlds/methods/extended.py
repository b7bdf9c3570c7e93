"""Modules with methods' modules before and behind them.

Extending keeps the object, its parameters and their names. Only its class changes, to a subclass
that runs the extensions around the module's own forward pass, so a quantised layer still computes
as one. No hooks and no closures: deepcopy, pickle, ZeRO-3 and a debugger see ordinary modules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vlds.runtime.made_for_batch import MadeForBatch

ADDED = ("extensions", "input_extensions", "key_value_extensions")
"""Names of the children that hold methods' modules."""


class AddedTensor(NamedTuple):
    """A tensor that a method has added to a model."""

    name: str
    """Its path in the model."""
    layer: str
    """Path of the module that it extends; empty for the model itself."""
    place: str
    """Which of `ADDED` holds it."""
    leaf: str
    """Its path in the method's module."""


def added_tensors(model: nn.Module, method: str) -> list[AddedTensor]:
    """The tensors that a method, by its name in the recipe, has added to a model; tensors of the
    model that its modules use too are not among them."""
    pattern = re.compile(rf"(?:(.+?)\.)?({'|'.join(ADDED)})\.{method}\.(.+)")
    state = model.state_dict(keep_vars=True)
    own = {id(tensor) for name, tensor in state.items() if is_own(name)}
    matches = (pattern.fullmatch(name) for name, tensor in state.items() if id(tensor) not in own)
    return [AddedTensor(m[0], m[1] or "", m[2], m[3]) for m in matches if m]


def is_own(name: str) -> bool:
    """True if a tensor or module is the model's own, False if a method has added it."""
    return not set(ADDED).intersection(name.split("."))


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


class NoteInput(InputExtension):
    """Keeps the input of a module for another that runs later."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = MadeForBatch()

    def forward(self, inputs: Tensor) -> Tensor:
        self.noted.value = inputs
        return inputs


class NoteOutput(LinearExtension):
    """Keeps the states that a whole layer gives for a module that runs later."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = MadeForBatch()

    def forward(self, inputs: Tensor, outputs: Any) -> Any:
        # Some of Hugging Face's layers give a tuple.
        self.noted.value = outputs[0] if isinstance(outputs, tuple) else outputs
        return outputs


class ModelExtension(nn.Module):
    """What a method adds to a backbone as a whole. Runs once before each pass of the encoder."""

    runs_layers: ClassVar[bool] = False
    """True if it runs layers of the model, and so comes after what those layers need."""
    gives_prompts: bool = False
    """True if something stands before the text in the input, which only a model that gets its
    input from vlds can take."""

    def forward(self) -> Tensor | None:
        """(b, p, d) what stands before the text in the encoder's input, or None."""
        raise NotImplementedError


def run_beside(model: nn.Module) -> Tensor | None:
    """Run what methods have put beside a model: (b, p, d) what precedes the text, if anything."""
    extensions = list(getattr(model, "extensions", {}).values())
    extensions.sort(key=lambda extension: extension.runs_layers)
    outputs = [extension() for extension in extensions]
    prompts = [prompt for prompt in outputs if prompt is not None]
    return torch.cat(prompts, dim=1) if prompts else None


class Extended(nn.Module):
    """What the class of an extended module adds to the module's own class."""

    kind: ClassVar[type[nn.Module]]
    """Class that the module had before."""
    input_extensions: nn.ModuleDict
    extensions: nn.ModuleDict

    def forward(self, input: Tensor, *others: Any, **named: Any) -> Any:
        """The extensions of the input, the module's own forward pass, the extensions of the output,
        each in the order of attaching. `others`, `named`: what a whole layer takes beside its
        input."""
        for extension in self.input_extensions.values():
            input = extension(input)
        outputs = super().forward(input, *others, **named)
        for extension in self.extensions.values():
            outputs = extension(input, outputs)
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle finds no derived class by its name.
        return blank_extended, (self.kind,), self.__getstate__()  # type: ignore[no-untyped-call]


class ExtendedLinear(Extended, nn.Linear):
    """An extended linear layer; other kinds of linear layers have subclasses of this class."""

    kind = nn.Linear


EXTENDED: dict[type[nn.Module], type[Extended]] = {nn.Linear: ExtendedLinear}
"""Class of modules -> the class that they have once they are extended."""


def extended_class(kind: type[nn.Module]) -> type[Extended]:
    """The class of extended modules that were of a class, whose forward pass they keep."""
    if kind not in EXTENDED:
        base = ExtendedLinear if issubclass(kind, nn.Linear) else Extended
        EXTENDED[kind] = type(f"Extended{kind.__name__}", (base, kind), {"kind": kind})
    return EXTENDED[kind]


def blank_extended(kind: type[nn.Module]) -> Extended:
    """An extended module without any state, for pickle and deepcopy to fill."""
    extended_kind = extended_class(kind)
    return extended_kind.__new__(extended_kind)


def extended(module: nn.Module) -> Extended:
    """The module, made one that takes extensions. It stays the same object."""
    if not isinstance(module, Extended):
        module.__class__ = extended_class(type(module))
        assert isinstance(module, Extended)
        module.input_extensions, module.extensions = nn.ModuleDict(), nn.ModuleDict()
    return module


def extended_linears(model: nn.Module, name: str) -> Iterator[ExtendedLinear]:
    """The linear layers behind which a method, called `name`, has put a module."""
    for module in model.modules():
        if isinstance(module, ExtendedLinear) and name in module.extensions:
            yield module


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


def foldable_weight(linear: ExtendedLinear) -> Tensor:
    """A layer's weight, for changes that change the layer's output as a plain product would.

    Errors: ValueError if the layer is quantised or computes something else.
    """
    if not is_plain(linear.weight) or linear.kind.forward is not nn.Linear.forward:
        raise ValueError(
            f"{linear.kind.__name__} does not compute a plain product with a matrix of floats, so "
            "nothing can be folded into it; fold into the backbone that is not quantised, or use "
            "`vlds convert hf`, which keeps the method beside the backbone"
        )
    return linear.weight


def take_first(linear: Extended, name: str) -> nn.Module:
    """Take out the first extension behind a layer, to fold it into the layer's weights.

    Errors: ValueError if another one stands before it.
    """
    first = next(iter(linear.extensions))
    if first != name:
        raise ValueError(
            f"{first} stands between {name} and the layer's weights; fold {first} first, which "
            "means: name it earlier in the recipe"
        )
    return linear.extensions.pop(name)


def zero_at_first(model: nn.Module) -> set[str]:
    """Names of the tensors whose gradient is zero in the first step, since they lie behind a matrix
    that begins as zeros."""
    return {
        f"{path}.{tensor}"
        for path, module in model.named_modules()
        for tensor in getattr(module, "behind_zeros", ())
    }

"""A norm with methods' modules behind it, as `ExtendedLinear` is a linear layer with some.

Backbones have norms of many classes: torch's own, T5's, one for each newer family. So a norm is not
replaced. It gets a subclass of its own class, which runs what the norm computes and then the
extensions. Its parameters, their names and all references to it stay.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from vlds.methods.base import LinearExtension

EXTENDED: dict[type[nn.Module], type[nn.Module]] = {}
"""A norm's class -> its subclass with extensions."""


class ExtendedNorm(nn.Module):
    """What the class of an extended norm adds to the norm's own class."""

    kind: ClassVar[type[nn.Module]]
    """Class that the norm had before."""
    extensions: nn.ModuleDict

    def forward(self, input: Tensor) -> Tensor:
        """The norm, then its extensions in the order of attaching."""
        outputs: Tensor = super().forward(input)
        for extension in self.extensions.values():
            outputs = extension(input, outputs)
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle finds no derived class by its name.
        return blank_extended, (self.kind,), self.__getstate__()  # type: ignore[no-untyped-call]


def extend_norm(norm: nn.Module, name: str, extension: LinearExtension) -> None:
    """Put the extension of a method, called `name`, behind a norm."""
    if not isinstance(norm, ExtendedNorm):
        norm.__class__ = extended_class(type(norm))
        norm.add_module("extensions", nn.ModuleDict())
    extensions = norm.get_submodule("extensions")
    assert isinstance(extensions, nn.ModuleDict)
    assert name not in extensions
    extensions[name] = extension


def extended_class(norm_class: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a norm's class that runs extensions."""
    if norm_class not in EXTENDED:
        bases = (ExtendedNorm, norm_class)
        name = f"Extended{norm_class.__name__}"
        EXTENDED[norm_class] = type(name, bases, {"kind": norm_class})
    return EXTENDED[norm_class]


def blank_extended(norm_class: type[nn.Module]) -> nn.Module:
    """An extended norm without any state, for pickle and deepcopy to fill."""
    made = extended_class(norm_class)
    return made.__new__(made)

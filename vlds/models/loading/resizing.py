"""Tensors that a module takes from files where they have another size: tables of positions for
other pictures, or of pictures that an example did not have.

A module says so in its class variable `resizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

Resize: TypeAlias = Callable[[Tensor, torch.Size], Tensor]
"""A stored tensor and the wanted size -> the tensor in that size, or as it is where that cannot
be."""
Resizes: TypeAlias = Mapping[str, Resize]
"""Name of a tensor inside a module -> how it is resized."""


def resizes_of(module: nn.Module) -> dict[str, Resize]:
    """How the tensors of a module and of those inside it are resized, by their names."""
    found: dict[str, Resize] = {}
    for path, part in module.named_modules():
        declared: Resizes = getattr(type(part), "resizes", {})
        found |= {f"{path}.{name}" if path else name: how for name, how in declared.items()}
    return found


def resized(name: str, stored: Tensor, size: torch.Size, resizes: Resizes) -> Tensor:
    """A stored tensor in the size of the module's, if that is known; else as it is."""
    if stored.shape == size or name not in resizes:
        return stored
    return resizes[name](stored, size)

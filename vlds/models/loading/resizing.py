"""Tensors that a module takes from files where they have another size: tables of positions for
other pictures, or of pictures that an example did not have.

A module says so in its class variable `resizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
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
    """A stored tensor in the size of the module's, if it can be; else as it is."""
    # Rows may be more or fewer, their width never differs.
    if stored.shape == size or name not in resizes or stored.shape[1:] != size[1:]:
        return stored
    return resizes[name](stored, size)


def for_pictures_of(table: Tensor, size: torch.Size) -> Tensor:
    """A table of positions in the size of another one, whose pictures have other sizes; both are
    squares behind a class token."""
    old, new = (round((rows - 1) ** 0.5) for rows in (len(table), size[0]))
    if len(table) != 1 + old * old or size[0] != 1 + new * new:
        return table
    return resized_positions(table, new)


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """(1 + g * g, d) -> (1 + grid * grid, d): the class token's row as it is, the others resized as
    a picture, bicubically."""
    old = round((len(table) - 1) ** 0.5)
    if old == grid:
        return table
    # Row-major cells: (g * g, d) -> a picture (1, d, g, g).
    cells = table[1:].T.reshape(1, -1, old, old)
    # Aligned by the edges of the cells, not by their centres: a cell's place in the picture stays.
    cells = F.interpolate(cells, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], cells.flatten(2)[0].T])

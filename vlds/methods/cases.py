"""What the contract tests know of a method: small instances of it, and what to expect of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlds.methods.base import Method

WIDTH, HIDDEN, LAYERS, NUM_TASKS = 16, 24, 2, 3
"""Of the tests' backbone and recipe, for formulas of parameter counts: width of the states, width
of the feed-forward layers, layers of each stack, tasks."""


@dataclass(frozen=True)
class Case:
    """A small instance of a method."""

    method: Method
    num_trained: int | None = None
    """Weights that it trains; None: not checked."""
    decayed: str | None = None
    """Tensors that it adds and weight decay acts on, by their names inside the method's module;
    None: not checked."""
    undecayed: str = ""
    """The other tensors that it adds."""
    starts_frozen: bool = False
    """True if the model computes at first what it computes without the method."""
    merged: type[Method] | None = None
    """Class of the method that is left after merging."""
    refused: dict[str, str] = field(default_factory=dict)
    """`merge` or a library, with a backbone's name before it if only that one refuses -> pattern of
    the reason."""
    families: tuple[str, ...] = ("T5", "Bart")
    """Backbones that can have it."""

"""What a method says about other libraries' files: the names and shapes of its tensors, and its
settings. vlds.convert reads and writes the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Library = Literal["peft", "adapters", "reference"]
"""Hugging Face's peft, AdapterHub's adapters, the original code of VL-T5 and VL-Adapter."""
LIBRARY_NAMES: dict[Library, str] = {
    "peft": "peft",
    "adapters": "adapters",
    "reference": "the original code",
}
"""How messages call them."""
PEFT_MODEL = "base_model.model."
"""What peft's names of layers begin with."""


@dataclass(frozen=True)
class Stored:
    """Where a library stores a tensor, or one task's slice of it."""

    keys: tuple[str, ...]
    """Its names there, more than one for aliases. `{task}` stands for a task's name."""
    shape: tuple[int, ...] | None = None
    """Shape of the slice there, if it differs from ours."""
    stacked: bool = True
    """False if our tensor has no first dimension (tasks or 1)."""
    num_parts: int = 1
    """In how many tensors the rows of a slice are there; `{part}` stands for a part's number."""


@dataclass(frozen=True)
class Layout:
    """A method in the files of a library."""

    tensors: Mapping[str, Stored]
    """Path of a tensor in our backbone, aliases included -> where it is stored."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings beside the weights, where the library has any."""


def is_t5(model: Any) -> bool:
    """True for backbones of Hugging Face's T5 classes, which FLAN-T5 belongs to."""
    return bool(model.config.model_type == "t5")

"""Checks of numbers from users and files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, get_args

LARGEST = 1 << 63
"""Bound of whole numbers in files: larger ones do not fit NumPy, and some not even a float."""


@dataclass(frozen=True, repr=False)
class Limits:
    """Bounds of a number in a recipe. They stand in its type, next to its name, where a new field
    gets one too."""

    least: float
    most: float = math.inf
    above_least: bool = False
    """The least itself is out."""
    below_most: bool = False
    """The most itself is out."""

    def hold(self, value: float) -> bool:
        """True for a number within the bounds; NaN and infinities never are."""
        low = value > self.least if self.above_least else value >= self.least
        high = value < self.most if self.below_most else value <= self.most
        return low and high and math.isfinite(value)

    def __repr__(self) -> str:
        low = f"more than {self.least:,}" if self.above_least else f"{self.least:,} or more"
        if self.most == math.inf:
            return f"a number above {self.least:,}" if self.above_least else low
        if self.above_least or self.below_most:
            return f"{low}, and {'less than' if self.below_most else 'at most'} {self.most:,}"
        return f"a number from {self.least:,} to {self.most:,}"


Count: TypeAlias = Annotated[int, Limits(1)]
Natural: TypeAlias = Annotated[int, Limits(0)]
NotNegative: TypeAlias = Annotated[float, Limits(0)]
Positive: TypeAlias = Annotated[float, Limits(0, above_least=True)]
Share: TypeAlias = Annotated[float, Limits(0, 1)]
PositiveShare: TypeAlias = Annotated[float, Limits(0, 1, above_least=True)]
ShareBelow1: TypeAlias = Annotated[float, Limits(0, 1, below_most=True)]


def number_faults(value: Any, hint: Any) -> Iterator[str]:
    """What is wrong with the numbers of a value whose type is `hint`, also inside lists and
    mappings: outside of the type's limits, not finite, or larger than files can hold."""
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from number_faults(entry, hint)
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from number_faults(entry, hint)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        limits = limits_of(hint)
        if value != value or abs(value) == math.inf:
            finite = ", and finite" if limits is not None and limits.most == math.inf else ""
            yield f"got {value}; give {limits or 'a finite number'}{finite}"
        elif limits is not None and not limits.hold(value):
            yield f"got {value}; give {limits}"
        elif limits is not None and limits.most == math.inf and not is_number(value):
            yield f"got {value}; give a smaller number"


def limits_of(hint: Any) -> Limits | None:
    """The limits in a type, at any depth."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        limits = part if isinstance(part, Limits) else limits_of(part)
        if limits is not None:
            return limits
    return None


def check_path_or_config(config: Any) -> None:
    """Errors: ValueError unless one of the fields `path` and `config` is set, and not both."""
    if (config.path is None) == (config.config is None):
        raise ValueError(
            f"path: {config.path}, config: {config.config}; give exactly one of them: `path` for "
            "pretrained weights, `config` for random ones"
        )


def is_number(value: object) -> bool:
    """True for any float, NaN included, and for a whole number that fits 64 bits."""
    return isinstance(value, float) or (type(value) is int and abs(value) < LARGEST)


def are_numbers(tree: object) -> bool:
    """True for a JSON object whose values are all numbers."""
    return isinstance(tree, dict) and all(map(is_number, tree.values()))


def leaves(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of each number, text, ... in a tree of settings."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}".strip("."))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{key}[{number}]")
    else:
        yield key, tree


def not_finite(tree: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Dotted key and value of each number in a tree of settings that is NaN or infinite."""
    for name, value in leaves(tree, key):
        if isinstance(value, float) and not math.isfinite(value):
            yield name, value

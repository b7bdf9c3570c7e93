"""Checks of numbers from users and files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

LARGEST = 1 << 63
"""Bound of whole numbers in files: larger ones do not fit NumPy, and some not even a float."""


def at_least(config: Any, minimum: int, *names: str) -> None:
    """Check that fields of a config are finite numbers of at least `minimum`.

    Errors: ValueError that names the field.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or not minimum <= value < float("inf"):
            raise ValueError(f"{name}: got {value}; give {minimum} or more")


def at_least_if_set(config: Any, minimum: int, *names: str) -> None:
    """As `at_least`, for fields that may be None.

    Errors: ValueError that names the field.
    """
    at_least(config, minimum, *(name for name in names if getattr(config, name) is not None))


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

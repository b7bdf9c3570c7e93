"""Checks of numbers from users and files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

LARGEST = 1 << 63
"""Bound of whole numbers in files: larger ones do not fit NumPy, and some not even a float."""

MOST_BITS = 64
LARGEST_SETTING = 10**15
"""Bound of a recipe's numbers: steps times examples must fit 64 bits too."""


def at_least(config: Any, minimum: int, *names: str, most: int = LARGEST_SETTING) -> None:
    """Check that fields of a config are finite numbers of at least `minimum`.

    Errors: ValueError that names the field.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or not minimum <= value <= most:
            too_much = value is not None and value > most
            bound = f"at most {most:,}" if too_much else f"{minimum} or more"
            raise ValueError(f"{name}: got {value}; give {bound}")


def at_least_if_set(config: Any, minimum: int, *names: str, most: int = LARGEST_SETTING) -> None:
    """As `at_least`, for fields that may be None.

    Errors: ValueError that names the field.
    """
    set_names = (name for name in names if getattr(config, name) is not None)
    at_least(config, minimum, *set_names, most=most)


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


def check_leaves(tree: object) -> None:
    """Errors: ValueError for values of a recipe's tree that no field takes, and that no message can
    show: whole numbers of thousands of digits, and texts with a NUL."""
    for name, value in leaves(tree):
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise ValueError(
                f"{name}: got a number of {value.bit_length():,} bits; give a small one"
            )
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{name}: got {value!r:.100}, which holds a NUL; leave it out")

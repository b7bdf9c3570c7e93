"""Checks of numbers that users give, or that files hold."""

from __future__ import annotations

from typing import Any

LARGEST = 1 << 63
"""Of a whole number in a file. Larger ones do not fit NumPy, and some not even a float."""


def at_least(config: Any, minimum: int, *names: str) -> None:
    """Check numbers of a config.

    Errors: ValueError that names the field.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or not minimum <= value < float("inf"):
            raise ValueError(f"{name}: got {value}; give {minimum} or more")


def is_number(value: object) -> bool:
    """True for a float, finite or not, and for a whole number that fits 64 bits."""
    return isinstance(value, float) or (type(value) is int and abs(value) < LARGEST)


def are_numbers(tree: object) -> bool:
    """True for an object of JSON whose values are all numbers."""
    return isinstance(tree, dict) and all(map(is_number, tree.values()))

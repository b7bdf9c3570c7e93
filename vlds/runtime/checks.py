"""Checks of numbers that users give."""

from __future__ import annotations

from typing import Any


def at_least(config: Any, minimum: int, *names: str) -> None:
    """Check numbers of a config.

    Errors: ValueError that names the field.
    """
    for name in names:
        value = getattr(config, name)
        if value is None or value < minimum:
            raise ValueError(f"{name}: got {value}; give {minimum} or more")

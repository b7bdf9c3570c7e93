"""How sure a model was: of its whole answer, or, where that is a free text, of a token of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlds.runtime.checks import is_number


@dataclass(frozen=True)
class PerToken:
    """That of a text whose whole probability says little, being a product of many."""

    per_token: float


Confidence = float | PerToken
"""Probability of the whole answer, or the geometric mean over its tokens; 0..1."""


def confidence_of(line: Mapping[str, Any]) -> Confidence | None:
    """That of a line of predictions; None where it has none."""
    if (mean := line.get("token_confidence")) is not None:
        return PerToken(mean)
    whole: float | None = line.get("confidence")
    return whole


def checked_confidence(value: Any) -> Confidence | None:
    """As JSON has it -> as it was.

    Errors: TypeError for anything else.
    """
    if value is None or is_number(value):
        found: float | None = value
        return found
    if isinstance(value, dict) and value.keys() == {"per_token"} and is_number(value["per_token"]):
        return PerToken(value["per_token"])
    raise TypeError(f"confidence: {value!r}")


def how_sure(confidence: Confidence) -> str:
    """In words."""
    if isinstance(confidence, PerToken):
        return f"{100 * confidence.per_token:.0f} % sure per token"
    return f"{100 * confidence:.0f} % sure"

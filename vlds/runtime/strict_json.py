"""JSON as its standard has it: no NaN, no Infinity, no number beyond a double. Python reads them
all, and would store them as the texts "nan" and "inf"."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from vlds.runtime.json_file import check_depth

SPOTS = re.compile(r'"(?:\\.|[^"\\])*"|-?Infinity|NaN|-?\d[\d.eE+-]*')
"""Texts, which may hold anything, and what may be no finite number."""


class NotFinite(ValueError):
    """A number that is none."""


def strict_json(
    text: str,
    place: str,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a text, which stands at `place`.

    Errors: JSONDecodeError; ValueError where it is nested too deep; NotFinite that names the
    place, of several lines the line, and the number.
    """
    check_depth(text)
    try:
        return json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=object_pairs_hook,
        )
    except NotFinite as error:
        raise NotFinite(f"{place}{_line_of(text)}: {error}") from None


def _refuse(word: str) -> Any:
    raise NotFinite(f"{word} is not a number; give a finite one, text or null")


def _finite(word: str) -> float:
    number = float(word)
    return number if math.isfinite(number) else _refuse(word)


def _line_of(text: str) -> str:
    """Where the first number stands that is not finite; "" where there is but one line."""
    if "\n" not in text.strip():
        return ""
    for spot in SPOTS.finditer(text):
        if spot[0][0] != '"' and not math.isfinite(float(spot[0])):
            return f", line {text.count(chr(10), 0, spot.start()) + 1}"
    return ""

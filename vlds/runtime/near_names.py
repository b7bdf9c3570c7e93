"""Guesses which known name a misspelt one means."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def guess(name: str, known: Iterable[str], prefix: str = "") -> str:
    """'did you mean ...? ' if a known name is close, else ''."""
    close = closest(name, known)
    return "" if close is None else f"did you mean '{prefix}{close}'? "


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that equals `name` but for case, has its letters as initials (lr), begins with
    it or the reverse (r, step), or differs in a few letters; None if there is none."""
    names = list(known)
    word = name.lower()
    rules: list[Callable[[str], bool]] = [
        lambda other: other.lower() == word,
        lambda other: "".join(part[:1] for part in other.lower().split("_")) == word,
        lambda other: other.lower().startswith(word) or word.startswith(other.lower()),
    ]
    alike = [other for rule in rules for other in names if word and rule(other)]
    close = alike or difflib.get_close_matches(name, names, 1)
    return close[0] if close else None

"""What a model answers."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """A model's answer, and how sure it is."""

    text: str
    confidence: float
    """The model's probability of the whole answer; with `choices`, its share among them."""
    token_confidence: float | None
    """The geometric mean over the tokens of a free text, </s> included. None for a text of one
    token, where `confidence` says as much, and for restricted answers."""
    prompt_cut: bool = False
    """True if the prompt had more tokens than the task reads."""

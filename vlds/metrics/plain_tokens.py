"""Plain words of a caption, for scores that need no official tokenizer."""

from __future__ import annotations

import re

WORD = re.compile(r"\w+(?:'\w+)*")


def plain_tokens(text: str) -> list[str]:
    """Lower-cased words without punctuation; an apostrophe inside a word stays."""
    return WORD.findall(text.lower())

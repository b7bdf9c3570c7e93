"""Bag-of-words F1 of captions: how many words are right, whatever their order.

A small score for small worlds (the demo), where CIDEr's document frequencies say little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlds.metrics.exact_match import mean
from vlds.metrics.plain_tokens import plain_tokens


def word_f1(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over captions of the F1 against the best of their references."""
    return mean(word_f1_values(captions, references))


def word_f1_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The F1 of each caption against the best of its references."""
    pairs = zip(captions, references, strict=True)
    return [max(f1(caption, reference) for reference in given) for caption, given in pairs]


def f1(caption: str, reference: str) -> float:
    """2 * common words / all words of both, repeats counted; two empty texts are equal."""
    ours, theirs = Counter(plain_tokens(caption)), Counter(plain_tokens(reference))
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0

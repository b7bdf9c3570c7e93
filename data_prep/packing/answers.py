"""Ten people's answers -> the soft label of a VQA question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_prep.packing.source import clean

NUM_ANNOTATORS = 10
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""By how many of the ten gave the answer: the mean of the official leave-one-out accuracy."""


def soft_label(answers: Sequence[str]) -> dict[str, float]:
    """Answer -> score. Answers of fewer than ten people cannot be weighed: each counts in full."""
    counts = Counter(text for answer in answers if (text := clean(answer).lower()))
    if len(answers) < NUM_ANNOTATORS:
        return dict.fromkeys(counts, 1.0)
    return {text: SOFT_SCORES[min(count, 4)] for text, count in counts.most_common()}

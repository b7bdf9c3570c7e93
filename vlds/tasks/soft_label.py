"""Which of a question's answers the model learns, and which one counts as the best."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np


def draw_answer(label: Mapping[str, float], rng: np.random.Generator) -> tuple[str, float]:
    """An answer drawn by its soft score, and the score; "" and 0 if no score is above 0."""
    ends = list(accumulate(label.values()))
    if not ends or ends[-1] <= 0:
        return "", 0.0
    chosen = bisect_right(ends, rng.random() * ends[-1], hi=len(ends) - 1)
    answer = list(label)[chosen]
    return answer, float(label[answer])


def best_answer(annotation: Mapping[str, Any]) -> str | None:
    """The answer with the highest soft score, or else the most frequent raw answer; None without
    labels."""
    label: Mapping[str, float] = annotation.get("label") or {}
    if label and max(label.values()) > 0:
        return max(label, key=lambda answer: label[answer])
    answers = annotation.get("answers")
    return Counter(answers).most_common(1)[0][0] if answers else None

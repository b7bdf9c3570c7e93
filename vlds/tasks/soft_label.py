"""Which of a question's answers is learnt, and which is shown as the best one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np


def draw_answer(label: Mapping[str, float], rng: np.random.Generator) -> tuple[str, float]:
    """An answer drawn by its soft score, and the score; "" and 0 where none has any."""
    answers, scores = list(label), np.array(list(label.values()), dtype=np.float64)
    if (total := scores.sum()) <= 0:
        return "", 0.0
    chosen = int(rng.choice(len(answers), p=scores / total))
    return answers[chosen], float(scores[chosen])


def best_answer(annotation: Mapping[str, Any]) -> str | None:
    """The answer of the highest soft score, else the most frequent raw one; None without labels."""
    label: Mapping[str, float] = annotation.get("label") or {}
    if label and max(label.values()) > 0:
        return max(label, key=lambda answer: label[answer])
    answers = annotation.get("answers")
    return Counter(answers).most_common(1)[0][0] if answers else None

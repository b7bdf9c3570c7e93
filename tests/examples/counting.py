"""An example task: "How many?", scored by equality and by a difference of at most one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

import numpy as np

from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, labelled, require_label

TOLERANCES = {"exact": 0, "within_one": 1}


@dataclass(frozen=True, kw_only=True)
class Counting(Task):
    """Answer with a number; the scores are shares of answers that are exact or off by one."""

    kinds: ClassVar[tuple[str, ...]] = ("vqa",)

    prompt: str = "count: "
    max_prompt_tokens: int = 30
    max_target_tokens: int = 6
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=5))

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """The question, and the first of its answers."""
        assert annotation is not None
        fields = sample.annotations[annotation]
        answers = fields.get("answers") if rng is None else require_label(fields, "answers", sample)
        answer = answers[0] if answers else None
        question = self.prompt + fields["question"]
        return Example(fields["id"], name, question, answer, reference=answer)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Shares of the questions; the first score stands for the task in tables."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        return {name: sum(values(name, texts, known)) / len(known) for name in TOLERANCES}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float]:
        """The value of each question, from which the report computes intervals."""
        return values(name, *labelled(predictions, references))

    def answer_of(self, reference: Any) -> str | None:
        """The number."""
        return str(reference)


def values(name: str, texts: Sequence[str], numbers: Sequence[str]) -> list[float]:
    """1.0 for a text that is off by no more than the score allows, else 0.0."""
    pairs = zip(texts, numbers, strict=True)
    off = [abs(int(text) - int(number)) if text.isdecimal() else inf for text, number in pairs]
    return [float(distance <= TOLERANCES[name]) for distance in off]

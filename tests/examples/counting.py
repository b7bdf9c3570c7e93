"""A task of one's own: "how many?", and how often the number is off by at most one."""

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
    """Answer with a number; scored by equality, and by equality give or take one."""

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
        given = sample.annotations[annotation]
        found = given.get("answers") if rng is None else require_label(given, "answers", sample)
        answer = found[0] if found else None
        question = self.prompt + given["question"]
        return Example(given["id"], name, question, answer, reference=answer)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Shares of the questions; the first score stands for the task."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        return {name: sum(values(name, texts, known)) / len(known) for name in TOLERANCES}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float]:
        """What each question adds to a score: the report makes its intervals of it."""
        return values(name, *labelled(predictions, references))

    def answer_of(self, reference: Any) -> str | None:
        """The number."""
        return str(reference)


def values(name: str, texts: Sequence[str], numbers: Sequence[str]) -> list[float]:
    """1.0 where a text is off by no more than the score allows, else 0.0."""
    pairs = zip(texts, numbers, strict=True)
    off = [abs(int(text) - int(number)) if text.isdecimal() else inf for text, number in pairs]
    return [float(distance <= TOLERANCES[name]) for distance in off]

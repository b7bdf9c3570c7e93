"""GQA: questions that need several steps of reasoning about a picture, each with one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.gqa_scores import (
    CHOICES,
    Question,
    counted,
    gqa_scores,
    gqa_values,
    reasoning_steps,
)
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, as_text, labelled, optional_text, optional_texts, require_label
from vlds.tasks.gqa_choices import missing_choices, read_choices


@dataclass(frozen=True, kw_only=True)
class GQA(Task):
    """Answer a compositional question; scored by equality on the balanced questions.

    Besides `accuracy` with its tables and `distribution` there are `consistency`, where what the
    questions entail is evaluated too (the *_all files), and with `choices` `validity` and
    `plausibility`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("gqa",)
    lower_is_better: ClassVar[tuple[str, ...]] = ("distribution",)

    prompt: str = "gqa: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: int = 20
    """Longest prompt and question in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: int = 512
    """Longest answer to learn in tokens, special tokens included; the paper does not cut them."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes an answer; greedy, 20 tokens with the start token."""
    choices: str | None = None
    """GQA's own file of valid and plausible answers (val_choices.json), or the folder of its parts;
    default: no validity and plausibility."""

    def example(
        self,
        name: str,
        sample: Sample,
        annotation: int | None,
        rng: np.random.Generator | None,
    ) -> Example:
        """The question and its one answer."""
        assert annotation is not None
        given = sample.annotations[annotation]
        question = self.prompt + given["question"]
        if rng is not None:
            return Example(given["id"], name, question, require_label(given, "answer", sample))
        answer = given.get("answer")
        reference = None if answer is None else reference_of(given)
        return Example(given["id"], name, question, answer, reference=reference)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """The official scores, accuracy first, over the balanced questions."""
        asked = counted(predictions, references)
        _, known = labelled(predictions, asked)
        if not known:
            return {}
        questions = {key: Question(**given) for key, given in asked.items() if given}
        balanced = [key for key, question in questions.items() if question.balanced]
        if not balanced:
            raise ValueError(
                f"balanced: none of the {len(known)} questions is; GQA counts balanced questions "
                'only: prepare a "balanced" file, or keep some in your subset'
            )
        choices = None if self.choices is None else read_choices(self.choices, balanced)
        return gqa_scores(predictions, questions, choices)

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """Only validity and plausibility read the choices, a large file."""
        questions = {key: Question(**given) for key, given in references.items() if given}
        balanced = [key for key, question in questions.items() if question.balanced]
        place = self.choices if name in CHOICES else None
        choices = None if place is None else read_choices(place, balanced)
        return gqa_values(name, predictions, questions, choices)

    def notes(self, predictions: Mapping[str, str], references: Mapping[str, Any]) -> list[str]:
        """Questions without a prediction that do not count."""
        out = len(references) - len(counted(predictions, references))
        note = f"{out:,} questions have no prediction: not balanced, left out; no consistency"
        return [note] if out else []

    def missing_for_scores(self) -> str | None:
        """The file of choices, or what is wrong in it."""
        return None if self.choices is None else missing_choices(self.choices)

    def answer_of(self, reference: Any) -> str | None:
        """The one answer."""
        return as_text(reference["answer"])


def reference_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Question` that an annotation has."""
    types = given.get("types") or {}
    program = given.get("source", {}).get("semantic") or None
    return {
        "answer": given["answer"],
        "balanced": given.get("balanced", True),
        **{name: optional_text(types, name) for name in ("structural", "semantic", "detailed")},
        "group": optional_text(given.get("groups") or {}, "global"),
        "entailed": optional_texts(given, "entailed"),
        "words": len(given["question"].split()),
        "steps": None if program is None else reasoning_steps(program),
    }

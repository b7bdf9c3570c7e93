"""Visual entailment: does a picture prove a sentence, refute it, or neither (SNLI-VE)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.exact_match import matches, mean, mean_by_group
from vlds.metrics.tables import score_values, table
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, as_text, labelled, require_label

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, kw_only=True)
class Entailment(Task):
    """Say how a sentence stands to a picture; scored by accuracy, whole and by label.

    The model learns to write the label; to answer, the logits of the labels' first tokens are
    compared.
    """

    kinds: ClassVar[tuple[str, ...]] = ("entailment",)
    input_field: ClassVar[str | None] = "hypothesis"

    prompt: str = "entailment: "
    """Text before the sentence, trailing space included; "" for none."""
    max_prompt_tokens: int = 100
    """Longest prompt and sentence in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: int = 20
    """Longest target in tokens; the labels are never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19, choices=LABELS))
    """How the model's output becomes a label; the best of three words."""

    def example(
        self,
        name: str,
        sample: Sample,
        annotation: int | None,
        rng: np.random.Generator | None,
    ) -> Example:
        """The sentence and its label."""
        assert annotation is not None
        given = sample.annotations[annotation]
        label = given.get("label") if rng is None else require_label(given, "label", sample)
        sentence = self.prompt + given["hypothesis"]
        return Example(given["id"], name, sentence, label, reference=label)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Share of the sentences that are judged rightly."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        right = matches(texts, known)
        by_label = table("accuracy", "label", mean_by_group(right, known))
        return {"accuracy": mean(right)} | by_label

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """Accuracy and its table are means over sentences."""
        texts, known = labelled(predictions, references)
        return score_values(name, {"accuracy": matches(texts, known)}, lambda by: known)

    def answer_of(self, reference: Any) -> str | None:
        """The label."""
        return as_text(reference)

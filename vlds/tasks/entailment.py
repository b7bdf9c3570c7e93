"""Visual entailment: does a picture prove a sentence, refute it, or neither (SNLI-VE)?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlds.runtime.checks import Count
from vlds.schema import Decoding
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, kw_only=True)
class Entailment(AnswerTask):
    """Say whether a picture entails or contradicts a sentence; scored by accuracy, in all and by
    label.

    The model learns to write the label; to answer, it compares the logits of the labels' first
    tokens.
    """

    kinds: ClassVar[tuple[str, ...]] = ("entailment",)
    input_field: ClassVar[str | None] = "hypothesis"
    tables: ClassVar[tuple[str, ...]] = ("label",)
    labels: ClassVar[tuple[str, ...]] = LABELS

    prompt: str = "entailment: "
    """Text before the sentence, trailing space included; "" for none."""
    max_prompt_tokens: Count = 100
    """Longest prompt and sentence in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 20
    """Longest target in tokens; the labels are never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19, choices=LABELS))
    """How the model's output becomes a label; the best of three words."""

    def groups(self, known: list[Any], by: str) -> list[Any]:
        """The labels, which are the references."""
        return known

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

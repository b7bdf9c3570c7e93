"""NLVR2: is a sentence true of a pair of pictures?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlds.metrics.exact_match import consistency
from vlds.metrics.nlvr2_groups import sentence_group
from vlds.schema import Decoding
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, labelled

WORDS = {True: "true", False: "false"}


@dataclass(frozen=True, kw_only=True)
class NLVR2(AnswerTask):
    """Say whether a sentence is true of two pictures; scored by accuracy and consistency.

    `consistency` is the share of sentences that are judged correctly on all their pairs. It tells
    sentences apart by their ids, as the official script does; `consistency_by_text` by their words.
    The model learns to write "true" or "false"; to answer, it compares the two words' logits.
    """

    kinds: ClassVar[tuple[str, ...]] = ("nlvr2",)
    input_field: ClassVar[str | None] = "sentence"
    num_pictures: ClassVar[int | None] = 2

    prompt: str = "nlvr: "
    """Text before the sentence, trailing space included; "" for none."""
    max_prompt_tokens: int = 512
    """Longest prompt and sentence in tokens, special tokens included; the paper does not cut."""
    max_target_tokens: int = 512
    """Longest target in tokens; "true" and "false" are never cut."""
    decoding: Decoding = field(
        default_factory=lambda: Decoding(max_new_tokens=19, choices=("true", "false"))
    )
    """How the model's output becomes an answer; the better of two words."""

    def answer_text(self, label: Any) -> str:
        """ "true" or "false"."""
        return WORDS[label]

    def reference(self, given: Mapping[str, Any], answer: str) -> Any:
        """The answer, and the sentence for `consistency_by_text`."""
        return {"answer": answer, "sentence": given["sentence"]}

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Share of examples that are judged correctly, then of sentences."""
        scores = super().score(predictions, references)
        if not scores:
            return scores
        texts, known = labelled(predictions, references)
        right = self.example_values(texts, known)["accuracy"]
        groups = [sentence_group(key) for key, given in references.items() if given is not None]
        if None not in groups:
            scores["consistency"] = consistency(right, groups)
        scores["consistency_by_text"] = consistency(right, self.groups(known, "sentence"))
        return scores

    def answer_of(self, reference: Any) -> str | None:
        """The word of the label."""
        return as_text(reference["answer"])

"""GQA: questions that need several steps of reasoning about a picture, each with one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.exact_match import matches, mean, mean_by_group
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, labelled, parts, require_label


@dataclass(frozen=True, kw_only=True)
class GQA(Task):
    """Answer a compositional question; scored by equality on the balanced questions."""

    kinds: ClassVar[tuple[str, ...]] = ("gqa",)

    prompt: str = "gqa: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: int = 20
    """Longest prompt and question in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: int = 512
    """Longest answer to learn in tokens, special tokens included; the paper does not cut them."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes an answer; greedy, 20 tokens with the start token."""

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
        reference = None if answer is None else {
            "answer": answer,
            "balanced": given.get("balanced", True),
            "types": given.get("types") or {},
        }  # fmt: skip
        return Example(given["id"], name, question, answer, reference=reference)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Accuracy over the balanced questions, whole and by type of question."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        pairs = [pair for pair in zip(texts, known, strict=True) if pair[1]["balanced"]]
        if not pairs:
            raise ValueError(
                f"balanced: none of the {len(known)} questions is; GQA counts balanced questions "
                'only: prepare a "balanced" file, or keep some in your subset'
            )
        right = matches([text for text, _ in pairs], [known["answer"] for _, known in pairs])
        scores = {"accuracy": mean(right)}
        types: list[Mapping[str, str]] = [reference["types"] for _, reference in pairs]
        structural = [given.get("structural") for given in types]
        # GQA's own halves: questions for a word, and yes-or-no or this-or-that ones.
        halves = [kind and ("open" if kind == "query" else "binary") for kind in structural]
        semantic = [given.get("semantic") for given in types]
        scores |= parts("accuracy", mean_by_group(right, halves))
        scores |= parts("accuracy/structural", mean_by_group(right, structural))
        scores |= parts("accuracy/semantic", mean_by_group(right, semantic))
        return scores

    def answer_of(self, reference: Any) -> str | None:
        """The one answer."""
        return str(reference["answer"])

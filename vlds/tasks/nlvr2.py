"""NLVR2: is a sentence true of a pair of pictures?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.exact_match import consistency, matches, mean
from vlds.metrics.nlvr2_groups import sentence_group
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, as_text, labelled, require_label

WORDS = {True: "true", False: "false"}


@dataclass(frozen=True, kw_only=True)
class NLVR2(Task):
    """Say whether a sentence is true of two pictures; scored by accuracy and consistency.

    `consistency` is the share of the sentences that are judged rightly on all their pairs, told
    apart by their ids as the official script does; `consistency_by_text` goes by their words. The
    model learns to write "true" or "false"; to answer, the two words' logits are compared.
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

    def example(
        self,
        name: str,
        sample: Sample,
        annotation: int | None,
        rng: np.random.Generator | None,
    ) -> Example:
        """The sentence, and "true" or "false"."""
        assert annotation is not None
        given = sample.annotations[annotation]
        label = given.get("label") if rng is None else require_label(given, "label", sample)
        answer = None if label is None else WORDS[label]
        reference = None if answer is None else {"answer": answer, "sentence": given["sentence"]}
        sentence = self.prompt + given["sentence"]
        return Example(given["id"], name, sentence, answer, reference=reference)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Share of the examples that are judged rightly, then of the sentences."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        right = matches(texts, [given["answer"] for given in known])
        groups = [sentence_group(key) for key, given in references.items() if given is not None]
        scores = {"accuracy": mean(right)}
        if None not in groups:
            scores["consistency"] = consistency(right, groups)
        by_text = consistency(right, [given["sentence"] for given in known])
        return scores | {"consistency_by_text": by_text}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """Accuracy alone is a mean over examples; consistency is one over sentences."""
        texts, known = labelled(predictions, references)
        right = matches(texts, [given["answer"] for given in known])
        return right if name == "accuracy" else None

    def answer_of(self, reference: Any) -> str | None:
        """The word of the label."""
        return as_text(reference["answer"])

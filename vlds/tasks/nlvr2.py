"""Sentences to judge: true of a pair of pictures (NLVR2), or entailed by a picture (SNLI-VE)?

A sentence of NLVR2 was written about several pairs of pictures; consistency is the share of
sentences that are judged correctly on every pair. The official script
(https://github.com/lil-lab/nlvr, nlvr2/eval/metrics.py) tells sentences apart by their ids, the
paper (https://arxiv.org/abs/1811.00491) speaks of unique sentences. The two differ where two people
wrote the same text: the balanced dev set has 1,116 ids and 1,111 texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlds.runtime.checks import Count
from vlds.schema import Decoding
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, labelled
from vlds.tasks.metrics.plain_scores import consistency, lower_line

WORDS = {True: "true", False: "false"}
NUM_ID_FIELDS, PAIR = 4, 2
"""Number of fields in ids "split-set-pair-sentence", and index of the pair."""


@dataclass(frozen=True, kw_only=True)
class NLVR2(AnswerTask):
    """Say whether a sentence is true of two pictures; scored by accuracy and consistency.

    `consistency` tells sentences apart by their ids, `consistency_by_text` by their words. The
    model learns to write "true" or "false"; to answer, it compares the two words' logits.
    """

    kinds: ClassVar[tuple[str, ...]] = ("nlvr2",)
    input_field: ClassVar[str | None] = "sentence"
    num_pictures: ClassVar[int | None] = 2
    labels: ClassVar[tuple[str, ...]] = tuple(WORDS.values())

    prompt: str = "nlvr: "
    """Text before the sentence, trailing space included; "" for none."""
    max_prompt_tokens: Count = 512
    """Longest prompt and sentence in tokens, special tokens included; the paper does not cut."""
    max_target_tokens: Count = 512
    """Longest target in tokens; "true" and "false" are never cut."""
    decoding: Decoding = field(
        default_factory=lambda: Decoding(max_new_tokens=19, choices=("true", "false"))
    )
    """How the model's output becomes an answer; the better of two words."""

    def answer_text(self, label: Any) -> str:
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
        # `known` and these groups leave out the same examples, those without a label.
        right = self.example_values(texts, known)["accuracy"]
        groups = [sentence_group(key) for key, given in references.items() if given is not None]
        # Ids of another form do not tell which pairs share a sentence.
        if None not in groups:
            scores["consistency"] = consistency(right, groups)
        scores["consistency_by_text"] = consistency(right, self.groups(known, "sentence"))
        return scores

    def answer_of(self, reference: Any) -> str | None:
        return lower_line(as_text(reference["answer"]))

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return super().correct(lower_line(prediction), reference)


def sentence_group(identifier: str) -> str | None:
    """The official group of "split-set-pair-sentence": all but the pair; None for other ids."""
    fields = identifier.split("-")
    if len(fields) != NUM_ID_FIELDS:
        return None
    # dev-12-0-3 and dev-12-1-3 are one sentence about two pairs: both become dev-12--3.
    fields[PAIR] = ""
    return "-".join(fields)


LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, kw_only=True)
class Entailment(AnswerTask):
    """Say whether a picture proves a sentence, refutes it, or neither (SNLI-VE); scored by
    accuracy, in all and by label.

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

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

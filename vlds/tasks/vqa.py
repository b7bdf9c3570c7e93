"""Open questions about a picture, with soft-scored answers: VQA v2 and its kin, or your own.

Training draws one answer with probability proportional to its soft score and weighs the loss by
that score; the model writes the answer freely, no vocabulary holds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.exact_match import fold, matches, mean, mean_by_group
from vlds.metrics.vqa_accuracy import question_accuracy, vqa_accuracy
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, labelled, parts, require_label

NUM_ANNOTATORS = 10
"""The official accuracy is defined on the answers of ten people."""


@dataclass(frozen=True, kw_only=True)
class VQA(Task):
    """Answer a question about a picture; scored by VQA accuracy and exact match.

    `vqa_accuracy` is the official one and is there where every question has the answers of ten
    people; `exact_match` compares with the best answer, case and white space aside.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vqa",)

    prompt: str = "vqa: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: int = 20
    """Longest prompt and question in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: int = 10
    """Longest answer to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes an answer; greedy, 20 tokens with the start token."""

    def example(
        self,
        name: str,
        sample: Sample,
        annotation: int | None,
        rng: np.random.Generator | None,
    ) -> Example:
        """Draw an answer in training; the best answer and a reference in evaluation."""
        assert annotation is not None
        given = sample.annotations[annotation]
        question = self.prompt + given["question"]
        if rng is not None:
            answer, score = draw_answer(require_label(given, "label", sample), rng)
            return Example(given["id"], name, question, answer, weight=score)
        best = best_answer(given)
        reference = None if best is None else {
            "answer": best,
            "answers": list(given.get("answers") or ()),
            "answer_type": given.get("answer_type"),
            "question_type": given.get("question_type"),
        }  # fmt: skip
        return Example(given["id"], name, question, best, reference=reference)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """VQA accuracy where it is defined, then exact match, each with its parts per type."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        kinds = ("answer_type", "question_type")
        types = {kind: [reference[kind] for reference in known] for kind in kinds}
        scores: dict[str, float] = {}
        if all(len(reference["answers"]) == NUM_ANNOTATORS for reference in known):
            # Where all ten agree the official script does not normalise, so case would count.
            accuracy = vqa_accuracy(
                [text.lower() for text in texts],
                [reference["answers"] for reference in known],
                *types.values(),
            )
            scores["vqa_accuracy"] = accuracy.overall
            scores |= parts("vqa_accuracy/answer_type", accuracy.by_answer_type)
            scores |= parts("vqa_accuracy/question_type", accuracy.by_question_type)
        right = matches(map(fold, texts), [fold(reference["answer"]) for reference in known])
        scores["exact_match"] = mean(right)
        for kind, groups in types.items():
            scores |= parts(f"exact_match/{kind}", mean_by_group(right, groups))
        return scores

    def answer_of(self, reference: Any) -> str | None:
        """The answer of the highest soft score."""
        return str(reference["answer"])

    def correct(self, prediction: str, reference: Any) -> bool | None:
        """At least two of ten people agree; with fewer answers, an exact match."""
        if len(reference["answers"]) == NUM_ANNOTATORS:
            return question_accuracy(prediction.lower(), reference["answers"]) >= 0.5
        return fold(prediction) == fold(reference["answer"])


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

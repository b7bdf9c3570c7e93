"""Open questions about a picture, with soft-scored answers: VQA v2 and its kin, or your own.

Training draws one answer with probability proportional to its soft score and weighs the loss by
that score; the model writes the answer freely, no vocabulary holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.exact_match import fold, matches, mean, mean_by_group, worth
from vlds.metrics.tables import score_values, table
from vlds.metrics.vqa_accuracy import NUM_ANNOTATORS, Rules, question_accuracy
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, as_text, labelled, optional_text, optional_texts, require_label
from vlds.tasks.soft_label import best_answer, draw_answer

ENOUGH = 0.5
"""Score from which an answer is shown as right."""


@dataclass(frozen=True, kw_only=True)
class VQA(Task):
    """Answer a question about a picture; scored by VQA accuracy or soft score, and exact match.

    `vqa_accuracy`, the official one, is there where every question has ten answers. Where some have
    not, and several are right, `soft_score` takes the prediction for what it is worth as an answer
    to learn. `exact_match` compares with the best answer. These two put case and white space aside.
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
    accuracy: Rules = "official"
    """Rules of VQA accuracy: the official script's, or legacy, those of its version before 2021,
    which VL-T5 and VL-Adapter use; the score is then called vqa_accuracy_legacy."""

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
            "answers": optional_texts(given, "answers"),
            "label": dict(given.get("label") or dict.fromkeys(given["answers"], 1.0)),
            "answer_type": optional_text(given, "answer_type"),
            "question_type": optional_text(given, "question_type"),
        }  # fmt: skip
        return Example(given["id"], name, question, best, reference=reference)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """The best score that the answers allow, with its tables, then exact match."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        found = self.values_of(texts, known)
        scores = {name: mean(values) for name, values in found.items()}
        name, values = next(iter(found.items()))
        for kind in ("answer_type", "question_type"):
            scores |= table(name, kind, mean_by_group(values, [given[kind] for given in known]))
        return scores

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """All scores are means over questions."""
        texts, known = labelled(predictions, references)
        values = self.values_of(texts, known)
        return score_values(name, values, lambda by: [given[by] for given in known])

    def values_of(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        """Score -> its value for each question, the best score that the answers allow first."""
        exact = matches(map(fold, texts), [fold(reference["answer"]) for reference in known])
        found = {}
        if all(len(reference["answers"]) == NUM_ANNOTATORS for reference in known):
            name = "vqa_accuracy" if self.accuracy == "official" else "vqa_accuracy_legacy"
            pairs = zip(texts, (given["answers"] for given in known), strict=True)
            found[name] = [question_accuracy(*pair, self.accuracy) for pair in pairs]
        elif any(len(reference["label"]) > 1 for reference in known):
            found["soft_score"] = list(map(worth, texts, [given["label"] for given in known]))
        return found | {"exact_match": exact}

    def answer_from(self, text: str) -> str:
        """In lower case, as answers are learnt (and officially compared); a list has its own."""
        return text if self.decoding.answers is not None else text.lower()

    def answer_of(self, reference: Any) -> str | None:
        """The answer of the highest soft score."""
        return as_text(reference["answer"])

    def correct(self, prediction: str, reference: Any) -> bool | None:
        """At least two of ten people agree; else, any answer that is worth as much to learn."""
        if len(reference["answers"]) == NUM_ANNOTATORS:
            return question_accuracy(prediction, reference["answers"], self.accuracy) >= ENOUGH
        return worth(prediction, reference["label"]) >= ENOUGH

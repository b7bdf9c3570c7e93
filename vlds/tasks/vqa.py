"""Open questions about a picture with soft-scored answers: VQA v2 and the like, or your own.

Training draws one answer with probability proportional to its soft score and weighs the loss by
that score. The model writes answers freely, without an answer vocabulary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from vlds.runtime.checks import Count, Natural
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, optional_text, optional_texts, require_label
from vlds.tasks.class_output import ClassLoss
from vlds.tasks.metrics.plain_scores import fold, matches, worth
from vlds.tasks.metrics.vqa_accuracy import NUM_ANNOTATORS, Rules, accuracy_name, question_accuracy

ENOUGH = 0.5
"""Reports show an answer as correct from this score on."""


@dataclass(frozen=True, kw_only=True)
class VQA(AnswerTask):
    """Answer a question about a picture, in lower case; scored by VQA accuracy or soft score, and
    exact match. `Chat` learns texts as they were written.

    `vqa_accuracy`, the official score, needs ten answers for every question. Otherwise, if some
    question has several answers, `soft_score` is the prediction's soft score. `exact_match`
    compares with the best answer. The last two ignore case and white space.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vqa",)
    tables: ClassVar[tuple[str, ...]] = ("answer_type", "question_type")
    class_loss: ClassVar[ClassLoss | None] = "binary_cross_entropy"

    prompt: str = "vqa: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: Count = 20
    """Longest prompt and question in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 10
    """Longest answer to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes an answer; greedy, 20 tokens with the start token."""
    accuracy: Rules = "official"
    """Rules of VQA accuracy: official, those of the official script; legacy, those of its version
    before 2021, as in VL-T5 and VL-Adapter; or textvqa or direct, those of TextVQA and A-OKVQA."""
    weigh_by_score: bool = True
    """Weigh an example's loss by its answer's soft score; VL-T5's pre-training does not."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """Draw an answer in training, or take all with a head; the best one in evaluation."""
        assert annotation is not None
        given = sample.annotations[annotation]
        question = self.question(sample, given)
        if rng is not None:
            label = lowered(require_label(given, "label", sample))
            # A head learns all answers with their scores; text is one answer at a time.
            answer, score = ("", 1.0) if self.head is not None else draw_answer(label, rng)
            weight = score if self.weigh_by_score else float(score > 0)
            return self.with_classes(Example(given["id"], name, question, answer, weight), label)
        best = best_answer(given)
        # Soft scores alone, none above 0: no answer is right. LXMERT's files say so where people
        # gave answers that are not in its list; it counts such a question as wrong.
        is_scored = isinstance(given.get("label"), Mapping) and given.get("answers") is None
        if best is None and not is_scored:
            return Example(given["id"], name, question, None)
        best = None if best is None else fold(best)
        answers = optional_texts(given, "answers")
        # Without soft scores, each answer counts fully.
        scores = lowered(given.get("label") or dict.fromkeys(answers, 1.0))
        groups = {group: optional_text(given, group) for group in self.tables}
        reference = {"answer": best, "answers": answers, "label": scores}
        example = Example(given["id"], name, question, best, reference=reference | groups)
        return self.with_classes(example, scores)

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        """The best score that the answers allow, then exact match."""
        exact = matches(map(fold, texts), [self.answer_of(reference) for reference in known])
        # For all questions or none: a mean over those with ten answers is another number. The
        # first value stands for the task.
        values = {}
        if all(len(reference["answers"]) == NUM_ANNOTATORS for reference in known):
            name = accuracy_name(self.accuracy)
            pairs = zip(texts, (given["answers"] for given in known), strict=True)
            values[name] = [question_accuracy(*pair, self.accuracy) for pair in pairs]
        elif any(len(reference["label"]) > 1 for reference in known):
            values["soft_score"] = list(map(worth, texts, [given["label"] for given in known]))
        return values | {"exact_match": exact}

    def answer_from(self, text: str) -> str:
        """In lower case, as the model learns answers; answers from a list keep their case."""
        listed = self.head is not None or self.decoding.answers is not None
        # A list may hold "Paris"; answers that the model makes up are learned in lower case.
        return text if listed else text.lower()

    def correct(self, prediction: str, reference: Any) -> bool | None:
        """At least two of ten people agree; without ten answers, the soft score is high enough."""
        if len(reference["answers"]) == NUM_ANNOTATORS:
            return question_accuracy(prediction, reference["answers"], self.accuracy) >= ENOUGH
        return worth(prediction, reference["label"]) >= ENOUGH

    def answer_of(self, reference: Any) -> str | None:
        """None for a question of which no answer is right."""
        return None if reference["answer"] is None else fold(as_text(reference["answer"]))


def lowered(label: Mapping[str, float]) -> dict[str, float]:
    """Answers in lower case and one line with their scores; of equal ones, the best."""
    scores: dict[str, float] = {}
    for answer, score in label.items():
        scores[fold(answer)] = max(score, scores.get(fold(answer), 0.0))
    return scores


def draw_answer(label: Mapping[str, float], rng: np.random.Generator) -> tuple[str, float]:
    """An answer drawn by its soft score, and the score; "" and 0 if no score is above 0."""
    # Answer n takes the stretch of [0, total) that ends at ends[n]; rounding may draw the total.
    ends = list(accumulate(label.values()))
    if not ends or ends[-1] <= 0:
        return "", 0.0
    answer = list(label)[bisect_right(ends, rng.random() * ends[-1], hi=len(ends) - 1)]
    return answer, float(label[answer])


def best_answer(annotation: Mapping[str, Any]) -> str | None:
    """The answer with the highest soft score, or else the most frequent raw answer; None without
    labels."""
    # Of equals the first one wins, in both ways: `max` and `most_common` keep the data's order.
    label: Mapping[str, float] = annotation.get("label") or {}
    if label and max(label.values()) > 0:
        return max(label, key=lambda answer: label[answer])
    answers = annotation.get("answers")
    return Counter(answers).most_common(1)[0][0] if answers else None


@dataclass(frozen=True, kw_only=True)
class TextVQA(VQA):
    """Answer a question about the text in a picture; scored by TextVQA's accuracy.

    The input is `textvqa: QUESTION words: WORD WORD ...`, with the words that an optical reader
    found (`ocr_tokens` of the sample), in its order.
    """

    prompt: str = "textvqa: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: Count = 200
    """Longest input in tokens, special tokens included; longer ones lose their last words."""
    max_target_tokens: Count = 20
    """Longest answer to learn in tokens, special tokens included; longer ones are cut."""
    accuracy: Rules = "textvqa"
    """Rules of VQA accuracy: textvqa, those of M4C and of TextVQA's challenge."""
    max_words: Natural = 50
    """Words of the picture in the input, at most; 50 as in M4C, 0 for none."""

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """The prompt, the question, and the picture's words if there are any."""
        text = super().question(sample, given)
        words = optional_texts(sample.extra, "ocr_tokens")[: self.max_words]
        return f"{text} words: {' '.join(words)}" if words else text


@dataclass(frozen=True, kw_only=True)
class DirectAnswer(VQA):
    """Answer a question of A-OKVQA in free words, without its choices; scored as its evaluation
    script does.

    Questions that are marked as difficult to answer without their choices train and do not count:
    the script leaves them out.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiple_choice",)

    max_prompt_tokens: Count = 40
    """Longest prompt and question in tokens, special tokens included; longer ones are cut."""
    accuracy: Rules = "direct"
    """Rules of VQA accuracy: direct, those of A-OKVQA's script."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """As in VQA; in evaluation, a difficult question has no reference."""
        example = super().example(name, sample, annotation, rng)
        assert annotation is not None
        is_difficult = sample.annotations[annotation].get("difficult") is True
        return replace(example, reference=None) if rng is None and is_difficult else example

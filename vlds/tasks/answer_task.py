"""What tasks with one right answer per annotation share: VQA, GQA, NLVR2, ImageClass, ..."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from vlds.heads.base import ClassLoss
from vlds.metrics.exact_match import matches, mean, mean_by_group
from vlds.metrics.tables import score_values, table
from vlds.schema import Example, Sample
from vlds.tasks.base import Task, labelled, require_label


@dataclass(frozen=True, kw_only=True)
class AnswerTask(Task, ABC):
    """A task that asks for one answer per annotation. All its scores are means over annotations,
    and the first score may have tables."""

    class_loss: ClassVar[ClassLoss | None] = "cross_entropy"
    label_field: ClassVar[str] = "label"
    """The annotation's field with the answer; splits without labels lack it."""
    tables: ClassVar[tuple[str, ...]] = ()
    """What the first score is tabulated by; see `groups`."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """The question and its answer; in evaluation also the reference."""
        assert annotation is not None
        given = sample.annotations[annotation]
        if rng is not None:
            require_label(given, self.label_field, sample)
        example = Example(given["id"], name, self.question(sample, given), None)
        has_label = given.get(self.label_field) is not None
        return self.answered(example, sample, given, rng) if has_label else example

    def answered(
        self,
        example: Example,
        sample: Sample,
        given: Mapping[str, Any],
        rng: np.random.Generator | None,
    ) -> Example:
        """The example with the answer of its annotation; in evaluation also the reference."""
        answer = self.answer_text(given[self.label_field])
        reference = None if rng is not None else self.reference(given, answer)
        example = replace(example, target=answer, reference=reference)
        return self.with_classes(example, {answer: 1.0})

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """The model's input for an annotation."""
        assert self.input_field is not None
        text: str = self.prompt + given[self.input_field]
        return text

    def answer_text(self, label: Any) -> str:
        """The text that the model learns to write for a label."""
        text: str = label
        return text

    def reference(self, given: Mapping[str, Any], answer: str) -> Any:
        """What predictions are compared with; a JSON value."""
        return answer

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """The mean of each score, then the tables of the first."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        values = self.example_values(texts, known)
        first = next(iter(values))
        scores = {name: mean(of_examples) for name, of_examples in values.items()}
        for by in self.tables_of(known):
            scores |= table(first, by, mean_by_group(values[first], self.groups(known, by)))
        return scores

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """What each labelled example adds to a score or to a cell of its tables."""
        texts, known = labelled(predictions, references)
        values = self.example_values(texts, known)
        return score_values(name, values, lambda by: self.groups(known, by))

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        """Score -> its value for each example; the first score stands for the task."""
        return {"accuracy": matches(texts, [self.answer_of(reference) for reference in known])}

    def tables_of(self, known: list[Any]) -> Sequence[str]:
        """What the first score of these references is tabulated by."""
        return self.tables

    def groups(self, known: list[Any], by: str) -> list[Any]:
        """Each example's group in the table `by`; None leaves an example out."""
        return [reference[by] for reference in known]

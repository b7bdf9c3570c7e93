"""What tasks with one right answer per annotation share (VQA, GQA, NLVR2, ImageClass, ...), and the
plainest of them, MultipleChoice.

A subclass says what it asks (`question`), what the model learns to write (`answer_text`), what an
answer is compared with (`reference`, `answer_of`) and when it is right (`correct`); all else
follows from these.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from vlds.runtime.checks import Count
from vlds.schema import CHOICE_LETTERS as LETTERS
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, as_text, labelled, optional_text, require_label
from vlds.tasks.class_output import ClassLoss
from vlds.tasks.metrics.plain_scores import mean, mean_by_group, score_values, table


@dataclass(frozen=True, kw_only=True)
class AnswerTask(Task, ABC):
    """A task that asks for one answer per annotation. All its scores are means over annotations,
    and the first score may have tables."""

    class_loss: ClassVar[ClassLoss | None] = "cross_entropy"
    label_field: ClassVar[str] = "label"
    """The annotation's field with the answer; splits without labels lack it."""
    accuracy_name: ClassVar[str] = "accuracy"
    """Name of the share of correct answers."""
    tables: ClassVar[tuple[str, ...]] = ()
    """What the first score is tabulated by; see `groups`."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """The question and its answer; in evaluation also the reference."""
        assert annotation is not None
        given = sample.annotations[annotation]
        # Evaluation also predicts splits without labels, for servers that score submissions.
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
        # Dicts keep their order: the first score stands for the task, and alone has tables.
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
        pairs = zip(texts, known, strict=True)
        return {self.accuracy_name: [float(bool(self.correct(*pair))) for pair in pairs]}

    def tables_of(self, known: list[Any]) -> Sequence[str]:
        """What the first score of these references is tabulated by."""
        return self.tables

    def groups(self, known: list[Any], by: str) -> list[Any]:
        """Each example's group in the table `by`; None leaves an example out. A reference that is
        the answer itself is its own group."""
        return [given[by] if isinstance(given, Mapping) else given for given in known]


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(AnswerTask):
    """Choose the answer to a question about a picture (A-OKVQA, ScienceQA); scored by accuracy, in
    all and by the data's own groups.

    The input is `choose: QUESTION context: HINT options: (A) CHOICE (B) CHOICE ...`, the parts of
    ScienceQA's baselines in the order question, context, choices. The model learns to write the
    letter; to answer, it compares the letters. A letter without a choice is wrong.
    """

    kinds: ClassVar[tuple[str, ...]] = ("multiple_choice",)
    label_field: ClassVar[str] = "answer_index"

    prompt: str = "choose: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: Count = 400
    """Longest input in tokens, special tokens included; longer ones are cut at the end."""
    max_target_tokens: Count = 5
    """Longest target in tokens; a letter is never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=5, choices=LETTERS))
    """How the model's output becomes a letter; the best of five."""

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """The whole input; without a hint there is no context."""
        text = super().question(sample, given)
        # ScienceQA's order. A hint that is too long pushes the choices out, since the end is cut.
        if hint := optional_text(given, "hint"):
            text += f" context: {hint}"
        if "choices" not in given and self.label_field not in given:
            return text  # somebody asks in words of their own, which name the choices
        listed = given["choices"]
        if not isinstance(listed, list) or not 0 < len(listed) <= len(LETTERS):
            raise ValueError(f"choices is {listed!r:.60}, a list of 1 to {len(LETTERS)} expected")
        # Python would take -1 for the last letter, and True for the second one.
        label = given.get(self.label_field)
        if label is not None and (type(label) is not int or not 0 <= label < len(listed)):
            raise ValueError(f"answer_index is {label!r:.60}, of {len(listed)} choices from 0 on")
        choices = (f"({letter}) {choice}" for letter, choice in zip(LETTERS, listed, strict=False))
        return f"{text} options: {' '.join(choices)}"

    def answer_text(self, label: Any) -> str:
        return LETTERS[label]

    def reference(self, given: Mapping[str, Any], answer: str) -> Any:
        """The letter, and the question's group in each table."""
        groups = given.get("groups") or {}
        for by, group in dict(groups).items():
            if "/" in by:
                raise ValueError(f"groups has the name {by!r:.60}; names of tables have no slash")
            if isinstance(group, bool) or not isinstance(group, str | int | None):
                raise TypeError(f"groups.{by} is {group!r:.60}, a text or whole number expected")
        return {"answer": answer, "groups": dict(groups)}

    def tables_of(self, known: list[Any]) -> Sequence[str]:
        """The data's groupings, in the order of the first question that has them."""
        return list(dict.fromkeys(by for reference in known for by in reference["groups"]))

    def groups(self, known: list[Any], by: str) -> list[Any]:
        return [reference["groups"].get(by) for reference in known]

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference["answer"])

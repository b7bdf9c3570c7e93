"""A task turns samples into text examples and scores the answers.

The stream, the trainer and the evaluation know `Task` alone; each subclass is one file. A task
reads annotations and writes text: it knows no tokenizer, no picture and no tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np

from vlds.runtime.checks import Choice, Count, DataPath, Positive
from vlds.runtime.json_files import in_words
from vlds.schema import LONGEST_TEXT, Decoding, Example, Sample, SkipSample
from vlds.tasks.class_output import ClassLoss, ClassOutput, Head
from vlds.tasks.metrics.plain_scores import split

Split = Literal["evaluate", "test"]
"""The lists of data sets on which a task is scored: fields of `Task`."""
SPLITS: tuple[Split, ...] = ("evaluate", "test")
TEST_MARK = ".test"
"""Ends the label of a task's results on its test data."""


@dataclass(frozen=True, kw_only=True)
class Task(Choice, ABC):
    """Data, prompt, decoding and score of one task."""

    kinds: ClassVar[tuple[str, ...]]
    """Kinds of samples that the task understands (dataset.json's "kind")."""
    reduction: ClassVar[Literal["example_mean", "token_mean"]] = "example_mean"
    """example_mean: the loss is the mean over examples of each example's mean over its tokens.
    token_mean: the mean over all tokens."""
    unit: ClassVar[Literal["annotation", "sample"]] = "annotation"
    """What evaluation counts: annotations, or samples with all their annotations as references."""

    lower_is_better: ClassVar[tuple[str, ...]] = ()
    """Scores whose lowest value is the best, such as distances."""
    input_field: ClassVar[str | None] = "question"
    """The annotation's field with the question; None if the picture alone is the input."""
    num_pictures: ClassVar[int | None] = None
    """How many pictures each sample must have; None: as many as the model takes, at least one."""
    ranks: ClassVar[bool] = False
    """True if evaluation compares every text of the data with every picture; the task's head scores
    a pair by its last class."""
    masks_words: ClassVar[bool] = False
    """True if words of the prompt are predicted in their own places (`Example.masking`)."""
    draws_prompt: ClassVar[bool] = False
    """True if prompts are drawn, or predictions have a form of our own: other programs have none
    and take none."""
    class_loss: ClassVar[ClassLoss | None] = None
    """Loss of the task's head; None: the task has text as output only."""
    labels: ClassVar[tuple[str, ...]] = ()
    """All answers of a task that always has the same few; () if the data say which."""

    train: list[DataPath] = field(default_factory=list)
    """Folders or URLs of the data sets to train on."""
    evaluate: list[DataPath] = field(default_factory=list)
    """Folders or URLs of the data sets to evaluate on, during training and after it."""
    test: list[DataPath] = field(default_factory=list)
    """Folders or URLs of the data sets of the final scores, by `vlds evaluate` and `vlds predict`;
    `vlds train` only compares them with the training data."""
    weight: Positive = 1.0
    """Share of this task's examples, relative to the other tasks' weights."""
    batch_size: Count | None = None
    """Size of this task's global batches; only with data.unit global_batch, where each batch holds
    one task. Default: data.global_batch_size."""
    prompt: str
    """Text before the input, trailing space included; "" for none."""
    max_prompt_tokens: Count
    """Longest input in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count
    """Longest target in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding
    """How the model's output becomes text."""
    head: Head | None = None
    """Answer with one of the head's classes: a class of vlds.models.heads; default: write text."""
    headline: str | None = None
    """The score that represents the task in tables; default: the first of its scores."""

    def __post_init__(self) -> None:
        if self.head is None:
            return
        if self.class_loss is None:
            raise ValueError(
                f"head: {type(self).__name__} has answers that are texts, and no class_loss; leave "
                "the head out"
            )
        # The default decoding may name choices: they are the task's own, not the user's.
        (default,) = (f.default_factory for f in fields(self) if f.name == "decoding")
        is_default = callable(default) and default() == self.decoding
        for name in ("choices", "answers"):
            if getattr(self.decoding, name) is not None and not is_default:
                raise ValueError(
                    f"head: it chooses among its own classes, and decoding.{name} limits what is "
                    "written; leave one of them out"
                )

    def num_others(self, *, evaluation: bool) -> int:
        """Other samples that `example` needs with each (`Sample.others`)."""
        return 0

    @property
    def num_shots(self) -> int | None:
        """Pictures of each class to train on; None: all."""
        return None

    def narrowed(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Those of a data set's classes that the task is about."""
        return classes

    @property
    def own_head(self) -> Head | None:
        """The head over the classes that the task is about."""
        return self.head

    @property
    def class_output(self) -> ClassOutput | None:
        """What the task wants of a model, if not text."""
        if (head := self.own_head) is None:
            return None
        assert self.class_loss is not None
        return ClassOutput(head, self.class_loss, self.num_shots)

    def with_classes(self, example: Example, scores: Mapping[str, float]) -> Example:
        """An example as the task's output asks: with a head, its answers' scores in place of the
        text. Answers that are not classes have no score."""
        if (head := self.own_head) is None:
            return example
        # An empty text: the head reads the state from which its first token would be predicted.
        return replace(example, target="", class_scores=head.class_scores(scores))

    def data_of(self, split: Split) -> list[str]:
        """One of the lists on which the task is scored."""
        return self.test if split == "test" else self.evaluate

    @abstractmethod
    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """Turn one annotation of a sample into text.

        `name` is the task's name in the recipe. `annotation` is None only if `unit` is "sample".
        In training `rng` may be used within this call; it is reseeded for the next example. In
        evaluation `rng` is None and the example is fixed: its reference is set and its target is
        the best answer; both are None if the split has no labels.

        Errors: Unlabelled in training if the split has no labels. Any other ValueError, or error
        of a lookup, type or number, says that the annotation is bad: the sample is replaced.
        """

    @abstractmethod
    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Score predictions, keyed by example id, against the references of the same ids.

        References that are None (no labels) do not count; if all are None, the result is empty.
        Scores lie in 0..1 (CIDEr in 0..10, GQA's distribution above 0); the first one represents
        the task. "SCORE/TABLE/GROUP" is a cell of a table (vlds/tasks/metrics/plain_scores.py).
        """

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """Each labelled example's value of the score `name`, in the references' order; NaN for an
        example that does not count. The score is their mean; the report's intervals need them.
        None if the score is not a mean over examples.

        Errors: ValueError if the values are unknown, or cannot be computed on this machine.
        """
        raise ValueError(
            f"{type(self).__name__} does not say what each example adds to {name}; implement "
            "example_scores"
        )

    def num_scored(self, references: Mapping[str, Any]) -> int:
        """How many examples count in the scores. Default: those that have a label."""
        return sum(reference is not None for reference in references.values())

    def is_low(self, score: str) -> bool:
        """True if the lowest value of a score, or of a cell of its tables, is the best."""
        cell = split(score)
        return (cell[0] if cell else score) in self.lower_is_better

    def groups(self, known: list[Any], by: str) -> list[Any]:
        """Each labelled reference's group in the table `by` of the scores; None where it has
        none. Default: the reference's entry of that name."""
        return [given.get(by) if isinstance(given, Mapping) else None for given in known]

    def answer_from(self, text: str) -> str:
        """The answer in a model's output, as it is scored and submitted."""
        return text

    def missing_for_scores(self) -> str | None:
        """What this machine lacks for a score that the recipe names, field first, with the cure;
        None if all scores can be computed."""
        return None

    def left_out(self) -> str | None:
        """Default scores that this machine cannot compute, with the cure; None if it can compute
        all."""
        return None

    def all_scores(self, computed: Sequence[str]) -> Sequence[str]:
        """`computed`, the scores of some data, and those that are computed elsewhere alone."""
        return computed

    def notes(self, predictions: Mapping[str, str], references: Mapping[str, Any]) -> list[str]:
        """What a reader of the scores must know; the ids are those of `score`."""
        left_out = self.left_out()
        return [] if left_out is None else [left_out]

    def thorough(self) -> Task:
        """The task with all its scores, including those too slow for evaluation in training."""
        return self

    @abstractmethod
    def answer_of(self, reference: Any) -> str | None:
        """The best single answer of a reference; None for tasks without one (captions)."""

    def correct(self, prediction: str, reference: Any) -> bool | None:
        """True if a prediction is correct; None for tasks without correct answers."""
        # Character by character; tasks that forgive case or blanks override this.
        answer = self.answer_of(reference)
        return None if answer is None else prediction == answer


class Unlabelled(ValueError):
    """A split without labels, on which nothing can be trained."""


def label_of(task: str, split: Split) -> str:
    """The name of a task's results on one of its lists in files, scores and reports: TASK, or
    TASK.test for its test data."""
    return f"{task}{TEST_MARK}" if split == "test" else task


def task_of(label: str) -> str:
    """The task that a label names."""
    return label.removesuffix(TEST_MARK)


def ask(
    task: Task, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
) -> Example:
    """`Task.example` of an annotation that may be malformed.

    Errors: SkipSample if the task cannot read it; Unlabelled.
    """
    try:
        example = task.example(name, sample, annotation, rng)
    # Annotations come from files: what a task cannot read is bad data, not a bug.
    except Unlabelled:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise SkipSample(
            f"sample {sample.key}: its annotations are not what {type(task).__name__} reads: "
            f"{in_words(error)}"
        ) from error
    # Tokenizers take minutes for texts of megabytes, and raise for what is not a text.
    for what, text in (("prompt", example.prompt), ("target", example.target)):
        if text is None and what == "target":
            continue  # a split without labels
        if not isinstance(text, str):
            raise SkipSample(f"sample {sample.key}: its {what} is {text!r:.60}, text expected")
        if len(text) > LONGEST_TEXT:
            raise SkipSample(
                f"sample {sample.key}: its {what} has {len(text):,} characters; at most "
                f"{LONGEST_TEXT:,} are read"
            )
    return example


def as_text(value: object, name: str = "the answer") -> str:
    """A value that must be a string.

    Errors: TypeError if it is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.60}, text expected")
    return value


def optional_text(given: Mapping[str, Any], name: str) -> str | None:
    """A field that is a string or missing.

    Errors: TypeError if it is not.
    """
    return None if given.get(name) is None else as_text(given[name], name)


def optional_texts(given: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a list of strings or missing.

    Errors: TypeError if it is not.
    """
    # Not `list(value)`: a string would become a list of characters.
    value = given.get(name) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} is {value!r:.60}, a list of texts expected")
    return value


def labelled(
    predictions: Mapping[str, str], references: Mapping[str, Any]
) -> tuple[list[str], list[Any]]:
    """Predictions and references of the labelled examples, in the references' order.

    Errors: ValueError if an id has no prediction, or a prediction has no reference.
    """
    # Both directions: a score over the common ids would hide that files do not match.
    missing = [key for key in references if key not in predictions]
    unknown = [key for key in predictions if key not in references]
    for ids, what in ((missing, "no prediction"), (unknown, "a prediction but no reference")):
        if ids:
            raise ValueError(
                f"{len(ids)} of {len(references)} examples have {what}: {first_ids(ids)}; "
                "score predictions against the data set that they were made for"
            )
    # A reference of None is an example without a label: it needs a prediction and gets no score.
    known = [key for key, reference in references.items() if reference is not None]
    return [predictions[key] for key in known], [references[key] for key in known]


def check_unique(ids: Iterable[str]) -> None:
    """Errors: ValueError if examples share an id: only one of them would be scored."""
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} ids appear twice in the data that are evaluated together: "
            f"{first_ids(repeated)}; make each data set a separate task"
        )


def first_ids(ids: Sequence[str]) -> str:
    """Up to five ids, for a message."""
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def require_label(annotation: Mapping[str, Any], field_name: str, sample: Sample) -> Any:
    """The label that training needs.

    Errors: Unlabelled if the split has none.
    """
    if (value := annotation.get(field_name)) is None:
        raise Unlabelled(
            f"data set {sample.dataset}: annotation {annotation.get('id')} has no "
            f'"{field_name}"; this split has no labels, so it cannot be trained on: '
            "name another data set under the task's `train`"
        )
    return value

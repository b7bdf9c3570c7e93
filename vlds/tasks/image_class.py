"""Picture classification: which of the data set's classes does a picture show?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from vlds.runtime.checks import Count
from vlds.schema import Decoding, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, labelled
from vlds.tasks.class_output import Head
from vlds.tasks.metrics.plain_scores import fold, mean, members_of

PER_CLASS = "mean_class_accuracy"


@dataclass(frozen=True, kw_only=True)
class ImageClass(AnswerTask):
    """Name the class of a picture; scored by accuracy over pictures, its mean over classes, and
    accuracy by class. Case and white space do not count.

    The prompt is the whole input, and the class's name is the target. `decoding.answers` limits
    what the model writes to the classes: name the dataset.json that lists them.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image_class",)
    input_field: ClassVar[str | None] = None
    tables: ClassVar[tuple[str, ...]] = ("class",)

    shots: Count | None = None
    """Pictures of each class to train on, drawn by the recipe's seed; default: all."""
    half: Literal["base", "new"] | None = None
    """Keep the first half of the data set's classes (base) or the second (new), to train on the
    base classes and evaluate on the new ones. Default: all."""
    prompt: str = "class: "
    """The whole input, trailing space included; "" for none."""
    max_prompt_tokens: Count = 20
    """Longest input in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 20
    """Longest name to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes a name; greedy, 20 tokens with the start token."""

    @property
    def num_shots(self) -> int | None:
        return self.shots

    def narrowed(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """The classes of `half`; of an odd number, the base half has one more."""
        if self.half is None:
            return classes
        # Of five classes, base has the first three and new the other two.
        middle = (len(classes) + 1) // 2
        return classes[:middle] if self.half == "base" else classes[middle:]

    @cached_property
    def own_head(self) -> Head | None:
        """The head over the classes that the task is about."""
        # Cached: each example asks for it, and a new head would build its index again.
        if self.head is None or self.half is None:
            return self.head
        return replace(self.head, classes=self.narrowed(self.head.names))

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        return self.prompt

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Accuracy, its mean over classes, and its table."""
        scores = super().score(predictions, references)
        if not scores:
            return {}
        texts, known = labelled(predictions, references)
        right = self.example_values(texts, known)["accuracy"]
        of_classes = members_of(right, self.groups(known, "class"))
        # The first score stands for the task, so the mean over classes comes second.
        first, *cells = scores.items()
        return dict([first, (PER_CLASS, mean(list(map(mean, of_classes.values())))), *cells])

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float] | None:
        """None for the mean over classes. Values that are weighed by the sizes of classes would
        have it as their mean, but means of resamples above 1, which hold other sizes."""
        if name == PER_CLASS:
            return None
        return super().example_scores(name, predictions, references)

    def groups(self, known: list[Any], by: str) -> list[Any]:
        """Each picture's class; of names that are equal but for case and blanks, the first."""
        names: dict[str, str] = {}
        return [names.setdefault(fold(label), label) for label in map(as_text, known)]

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return fold(prediction) == fold(as_text(reference))

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

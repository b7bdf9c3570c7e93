"""A few of an evaluation's examples with their pictures, for those who follow a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from vlds.data.shards.pictures import thumbnail
from vlds.data.streams.source import Source, fixed_examples
from vlds.evaluation.result import Evaluation
from vlds.schema import SkipSample

GAP = 4
"""Pixels between the pictures of one example."""


@dataclass(frozen=True)
class ShownExample:
    """One example to look at."""

    task: str
    prompt: str
    prediction: str
    answer: str | None
    """None for tasks without one, such as captions."""
    picture: Image.Image = field(repr=False)
    """RGB; several pictures stand next to each other."""

    @property
    def caption(self) -> str:
        """The example in one line."""
        end = "" if self.answer is None else f" (answer: {self.answer})"
        return f"{self.prompt.strip()} -> {self.prediction}{end}".strip()


def shown_examples(source: Source, evaluation: Evaluation, most: int) -> list[ShownExample]:
    """At most so many examples, at even distances over the data: the same ones after every
    evaluation. Those without a picture that can be read are left out."""
    total, found = source.first_sample[-1], []
    for index in sorted({(2 * n + 1) * total // (2 * most) for n in range(most)}):
        dataset, place = source.locate(index)
        with suppress(SkipSample, ValueError):
            pictures = [small for data in dataset.read(place).images if (small := thumbnail(data))]
            ((_, examples),) = fixed_examples(source, range(index, index + 1))
            # Samples at different places show annotations at different places: questions of one
            # kind often have the same place in all samples.
            example = examples[index % len(examples)] if examples else None
            if example is None or not pictures or example.id not in evaluation.predictions:
                continue
            found.append(
                ShownExample(
                    evaluation.task,
                    example.shown,
                    evaluation.predictions[example.id],
                    source.task.answer_of(example.reference),
                    side_by_side([Image.open(BytesIO(data)).convert("RGB") for data in pictures]),
                )
            )
    return found


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, on white."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP
    return whole

"""Referring expressions: write the box of what a text describes, as four numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from vlds.heads.base import ClassLoss
from vlds.metrics.box_overlap import overlap
from vlds.runtime.checks import Count
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.answer_task import AnswerTask

ENOUGH = 0.5
"""Overlap (IoU) from which a box is right: Acc@0.5 of RefCOCO."""
STEPS = 1000
"""Parts of a picture's width or height that a number counts."""
NUMBER = re.compile(r"[0-9]{1,4}")
CORNERS = 4


@dataclass(frozen=True, kw_only=True)
class Grounding(AnswerTask):
    """Write the box of what an expression describes; scored by Acc@0.5, the share of boxes that
    overlap the right one by half (IoU).

    The box is its left, top, right and bottom in thousandths of the picture, `120 88 431 700`, so
    any model can write it. `Refer` points at given boxes instead.
    """

    kinds: ClassVar[tuple[str, ...]] = ("refer",)
    label_field: ClassVar[str] = "box"
    input_field: ClassVar[str | None] = "expression"
    class_loss: ClassVar[ClassLoss | None] = None

    prompt: str = "locate: "
    """Text before the expression, trailing space included; "" for none."""
    max_prompt_tokens: Count = 40
    """Longest prompt and expression in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 24
    """Longest target in tokens; four numbers take up to 16 and their end."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=24))
    """How the model's output becomes a box; greedy."""

    def answered(
        self,
        example: Example,
        sample: Sample,
        given: Mapping[str, Any],
        rng: np.random.Generator | None,
    ) -> Example:
        """The box as text; in evaluation also in pixels, with the picture's size."""
        box, size = given[self.label_field], sample.extra["size"][0]
        answer = box_text(box, size)
        reference = {"answer": answer, "box": list(box), "size": list(size)}
        return replace(example, target=answer, reference=None if rng is not None else reference)

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        pairs = zip(texts, known, strict=True)
        return {"accuracy": [float(self.correct(*pair)) for pair in pairs]}

    def answer_of(self, reference: Any) -> str | None:
        """The box as text."""
        text: str = reference["answer"]
        return text

    def correct(self, prediction: str, reference: Any) -> bool:
        """True if the written box overlaps the right one by half; False for another text."""
        box = box_of(prediction, reference["size"])
        return box is not None and overlap(box, reference["box"]) >= ENOUGH


def box_text(box: Sequence[float], size: Sequence[float]) -> str:
    """A box (left, top, width, height) in a picture (width, height), both in pixels, as text."""
    left, top, width, height = box
    corners = ((left, size[0]), (top, size[1]), (left + width, size[0]), (top + height, size[1]))
    shares = (round(STEPS * edge / whole) for edge, whole in corners)
    return " ".join(str(min(max(share, 0), STEPS)) for share in shares)


def box_of(text: str, size: Sequence[float]) -> list[float] | None:
    """The box (left, top, width, height) in pixels; None if the text has not four numbers."""
    numbers = [int(number) for number in NUMBER.findall(text)]
    if len(numbers) != CORNERS:
        return None
    scaled = [share * size[axis % 2] / STEPS for axis, share in enumerate(numbers)]
    left, top, right, bottom = scaled
    return [left, top, right - left, bottom - top]

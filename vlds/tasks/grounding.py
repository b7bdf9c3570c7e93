"""Places in a picture: write the box of what a text describes, point at it, or name what is there.

`Grounding` writes a box as four numbers, with any model. The others read and write visual tokens
(<vis_extra_id_0>, ...), one for each detected box or grid cell, as VL-T5 does
(https://arxiv.org/abs/2102.02779): `Refer` points at what people's expressions describe,
`VisualGrounding` at what a detector's names call, and `GroundedCaption` names what a token shows.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Annotated, Any, ClassVar
from zlib import crc32

import numpy as np

from vlds.runtime.checks import Count, Limits
from vlds.schema import Decoding, Example, Sample, SkipSample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, optional_texts
from vlds.tasks.class_output import ClassLoss
from vlds.tasks.masked_words import SENTINEL, words_of
from vlds.tasks.metrics.plain_scores import overlap
from vlds.tasks.vqa import draw_answer

POINTERS = tuple(f"<vis_extra_id_{number}>" for number in range(36))
"""The tokens of VL-T5's 36 detected boxes, and of VL-Adapter's grid."""
ENOUGH = 0.5
"""Overlap (IoU) from which a proposal is right."""
STEPS = 1000
"""Parts of a picture's width or height that a number counts."""
NUMBER = re.compile(r"[0-9]{1,4}")


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

    def correct(self, prediction: str, reference: Any) -> bool:
        """True if the written box overlaps the right one by half; False for another text."""
        box = box_of(prediction, reference["size"])
        return box is not None and overlap(box, reference["box"]) >= ENOUGH

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference["answer"])


def box_text(box: Sequence[float], size: Sequence[float]) -> str:
    """A box (left, top, width, height) in a picture (width, height), both in pixels, as text."""
    # (120, 66, 300, 200) in a picture of 1000 x 500 -> "120 132 420 532".
    if len(box) != 4 or not isfinite(sum(box)) or min(box[2:]) < 0 or min(size) <= 0:
        raise ValueError(
            f"its box is {box!r:.60} in a picture of {size!r:.60}, left, top, width and height in "
            "pixels expected"
        )
    left, top, width, height = box
    corners = ((left, size[0]), (top, size[1]), (left + width, size[0]), (top + height, size[1]))
    shares = (round(STEPS * edge / whole) for edge, whole in corners)
    # Annotators' boxes may reach past the edge of the picture.
    return " ".join(str(min(max(share, 0), STEPS)) for share in shares)


def box_of(text: str, size: Sequence[float]) -> list[float] | None:
    """The box (left, top, width, height) in pixels; None if the text has not four numbers."""
    # Anything may stand between the numbers: only they count.
    numbers = [int(number) for number in NUMBER.findall(text)]
    if len(numbers) != 4:
        return None
    # Numbers 0 and 2 are shares of the width, 1 and 3 of the height.
    scaled = [share * size[axis % 2] / STEPS for axis, share in enumerate(numbers)]
    left, top, right, bottom = scaled
    return [left, top, right - left, bottom - top]


@dataclass(frozen=True, kw_only=True)
class Refer(AnswerTask):
    """Point at what an expression describes; scored by accuracy: the share of answers whose
    proposal overlaps the box by half, or whose cell holds its centre.

    For JointSeq2Seq, whose vocabulary has visual tokens. An annotation has an `expression` and a
    `box` (left, top, width, height in pixels), its sample `proposals`: a box for each visual token.
    Training draws among the proposals that overlap the box by half, with probability IoU / sum, as
    VL-T5's RefCOCOg does; an example without such a proposal trains nothing. Answers come from a
    comparison of the visual tokens' logits; VL-T5 compares the whole vocabulary.
    """

    kinds: ClassVar[tuple[str, ...]] = ("refer",)
    label_field: ClassVar[str] = "box"
    input_field: ClassVar[str | None] = "expression"

    prompt: str = "visual grounding: "
    """Text before the expression, trailing space included; "" for none."""
    max_prompt_tokens: Count = 20
    """Longest prompt and expression in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 4
    """Longest target in tokens; a visual token is never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(choices=POINTERS))
    """How the model's output becomes a visual token: the best of `choices`, 36 by default."""
    grid: Annotated[int, Limits(1, 6)] | None = None
    """Cells along a side of a grid, if its cells stand for proposals: the cell that holds the box's
    centre is right. Default: the samples' own proposals."""

    def answered(
        self,
        example: Example,
        sample: Sample,
        given: Mapping[str, Any],
        rng: np.random.Generator | None,
    ) -> Example:
        """Draw a proposal in training; the best one and all right ones in evaluation."""
        scores = self.right(sample, given[self.label_field])
        if rng is not None:
            answer, _ = draw_answer(scores, rng)
            # Weight 0 where no proposal is right: the example stays, so that batches stay whole.
            return replace(example, target=answer, weight=float(bool(scores)))
        # "" if no proposal is right: then every answer is wrong.
        best = max(scores, key=lambda pointer: scores[pointer], default="")
        return replace(example, target=best, reference={"answer": best, "right": sorted(scores)})

    def right(self, sample: Sample, box: list[float]) -> dict[str, float]:
        """Visual tokens that are right, and how well they fit the box."""
        if self.grid is not None:
            (width, height), (left, top, *size) = sample.extra["size"][0], box
            centre = (left + size[0] / 2) / width, (top + size[1] / 2) / height
            # A centre on the right or lower edge belongs to the last cell.
            column, row = (min(int(share * self.grid), self.grid - 1) for share in centre)
            # Tokens count row by row: of 6 x 6 cells, column 2 of row 1 is token 8.
            return {POINTERS[row * self.grid + column]: 1.0}
        # A detector may find fewer or more boxes than there are tokens; the rest has no partner.
        overlaps = {
            pointer: overlap(box, proposal)
            for pointer, proposal in zip(POINTERS, sample.extra["proposals"], strict=False)
        }
        return {pointer: score for pointer, score in overlaps.items() if score >= ENOUGH}

    def answer_of(self, reference: Any) -> str | None:
        """The proposal that fits best; None if none is right."""
        return reference["answer"] or None

    def correct(self, prediction: str, reference: Mapping[str, Any]) -> bool | None:
        return prediction in reference["right"]


@dataclass(frozen=True, kw_only=True)
class RegionTask(AnswerTask, ABC):
    """A task whose annotations have `regions`: a name for each visual token, "" where there is
    nothing to name. Training draws a region each time; evaluation always asks about the same one.
    """

    kinds: ClassVar[tuple[str, ...]] = ("regions",)
    label_field: ClassVar[str] = "regions"
    draws_prompt: ClassVar[bool] = True
    class_loss = None

    num_regions: Annotated[int, Limits(1, len(POINTERS))] = 1
    """Regions of a picture that one example is about; if there are several, each name follows a
    sentinel. VL-T5 has 4 in its second stage, on VCR."""

    @abstractmethod
    def asked(self, names: Sequence[str], chosen: Sequence[int]) -> tuple[str, str, Any]:
        """The input behind the prompt, the target and the reference of an example about some
        regions; `names` are those of all visual tokens."""

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """The input of a split without labels."""
        text: str = self.prompt + given.get(self.input_field or "", "")
        return text

    def answered(
        self,
        example: Example,
        sample: Sample,
        given: Mapping[str, Any],
        rng: np.random.Generator | None,
    ) -> Example:
        """An example about regions in random order; in evaluation always the same.

        Errors: SkipSample if no region has a name.
        """
        # A detector may have found more regions than there are visual tokens.
        names = optional_texts(given, self.label_field)[: len(POINTERS)]
        named = [number for number, text in enumerate(names) if text]
        if not named:
            raise SkipSample(f"sample {sample.key}: none of its regions has a name")
        # In evaluation the id decides: the same region whatever the order of the data.
        draws = np.random.default_rng(crc32(given["id"].encode())) if rng is None else rng
        chosen = draws.permutation(named)[: self.num_regions].tolist()
        text, target, reference = self.asked(names, chosen)
        reference = reference if rng is None else None
        return replace(example, prompt=self.prompt + text, target=target, reference=reference)


def names_of(names: Sequence[str], regions: Sequence[int]) -> str:
    """The name of one region; of several, each name behind a sentinel."""
    if len(regions) == 1:
        return names[regions[0]]
    return " ".join(f"{SENTINEL.format(n)} {names[region]}" for n, region in enumerate(regions))


@dataclass(frozen=True, kw_only=True)
class VisualGrounding(RegionTask):
    """Write the visual token of a named region; scored by accuracy: any region of that name is
    right. Examples about several regions can be trained, and not scored.
    """

    input_field: ClassVar[str | None] = "expression"

    prompt: str = "visual grounding: "
    """Text before the name, trailing space included; "" for none."""
    max_prompt_tokens: Count = 20
    """Longest prompt and name in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 20
    """Longest target in tokens; a visual token is never cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(choices=POINTERS))
    """How the model's output becomes a visual token: the best of `choices`, 36 by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_regions > 1 and (self.evaluate or self.test):
            raise ValueError(
                f"num_regions: got {self.num_regions}, but an answer is one visual token; leave "
                "`evaluate` and `test` out, or score a task with num_regions 1"
            )

    def asked(self, names: Sequence[str], chosen: Sequence[int]) -> tuple[str, str, Any]:
        """A region's name, its visual token, and all that are right."""
        # Scored examples are about one region (__post_init__), so the first name is the only one.
        target, called = " ".join(POINTERS[number] for number in chosen), names[chosen[0]]
        right = [POINTERS[number] for number, other in enumerate(names) if other == called]
        return names_of(names, chosen), target, {"answer": target, "right": right}

    def correct(self, prediction: str, reference: Mapping[str, Any]) -> bool | None:
        return prediction in reference["right"]

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference["answer"])


@dataclass(frozen=True, kw_only=True)
class GroundedCaption(RegionTask):
    """Name the region that a visual token stands for; scored by the share of right names."""

    input_field: ClassVar[str | None] = "pointer"

    prompt: str = "caption region: "
    """Text before the visual token, trailing space included; "" for none."""
    max_prompt_tokens: Count = 20
    """Longest input in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 20
    """Longest name in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes a name; greedy."""

    def asked(self, names: Sequence[str], chosen: Sequence[int]) -> tuple[str, str, Any]:
        """A region's visual token and its name."""
        answer = names_of(names, chosen)
        return " ".join(POINTERS[number] for number in chosen), answer, answer

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return words_of(prediction) == words_of(as_text(reference))

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

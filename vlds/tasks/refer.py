"""Referring expressions: point at what a text describes, by writing the visual token of a proposal.

Training draws among the proposals that overlap the box by half, with probability IoU / sum, as
VL-T5's RefCOCOg does; an example without such a proposal trains nothing. Answers come from a
comparison of the visual tokens' logits; VL-T5 compares the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np

from vlds.metrics.box_overlap import overlap
from vlds.runtime.checks import Count, Limits
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.vqa import draw_answer

POINTERS = tuple(f"<vis_extra_id_{number}>" for number in range(36))
"""The tokens of VL-T5's 36 detected boxes, and of VL-Adapter's grid."""
ENOUGH = 0.5
"""Overlap (IoU) from which a proposal is right."""


@dataclass(frozen=True, kw_only=True)
class Refer(AnswerTask):
    """Point at what an expression describes; scored by accuracy: the share of answers whose
    proposal overlaps the box by half, or whose cell holds its centre.

    For JointSeq2Seq, whose vocabulary has visual tokens. An annotation has an `expression` and a
    `box` (left, top, width, height in pixels), its sample `proposals`: a box for each visual token.
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
            return replace(example, target=answer, weight=float(bool(scores)))
        best = max(scores, key=lambda pointer: scores[pointer], default="")
        return replace(example, target=best, reference={"answer": best, "right": sorted(scores)})

    def right(self, sample: Sample, box: list[float]) -> dict[str, float]:
        """Visual tokens that are right, and how well they fit the box."""
        if self.grid is not None:
            (width, height), (left, top, *size) = sample.extra["size"][0], box
            centre = (left + size[0] / 2) / width, (top + size[1] / 2) / height
            column, row = (min(int(share * self.grid), self.grid - 1) for share in centre)
            return {POINTERS[row * self.grid + column]: 1.0}
        overlaps = {
            pointer: overlap(box, proposal)
            for pointer, proposal in zip(POINTERS, sample.extra["proposals"], strict=False)
        }
        return {pointer: score for pointer, score in overlaps.items() if score >= ENOUGH}

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        pairs = zip(texts, known, strict=True)
        return {"accuracy": [float(text in reference["right"]) for text, reference in pairs]}

    def answer_of(self, reference: Any) -> str | None:
        """The proposal that fits best; None if none is right."""
        return reference["answer"] or None

    def correct(self, prediction: str, reference: Mapping[str, Any]) -> bool | None:
        return prediction in reference["right"]

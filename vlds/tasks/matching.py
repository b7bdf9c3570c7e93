"""Image-text matching: does a caption belong to a picture? Every second caption is that of another
picture, as in the pre-training of METER (https://arxiv.org/abs/2111.02387) and VL-T5
(https://arxiv.org/abs/2102.02779)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from zlib import crc32

import numpy as np

from vlds.runtime.checks import Count
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, require_label
from vlds.tasks.metrics.plain_scores import fold

MATCH, OTHER = "true", "false"


def false_captions(sample: Sample, other: Sample) -> list[str]:
    """Captions of another sample that this one's picture does not have as well."""
    # Captions that differ only in case and blanks are the same: true of both pictures.
    own = {fold(entry.get("caption", "")) for entry in sample.annotations}
    captions = (require_label(entry, "caption", other) for entry in other.annotations)
    return [text for text in captions if fold(text) not in own]


@dataclass(frozen=True, kw_only=True)
class Matching(AnswerTask):
    """Say whether a caption belongs to the picture; scored by accuracy, in all and by answer.

    In training half of the captions, drawn at random, are those of another picture; in evaluation
    which ones is fixed. A caption that the picture has as well never counts as another picture's.
    The model learns to write "true" or "false"; to answer, it compares the two words' logits.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption",)
    label_field: ClassVar[str] = "caption"
    input_field: ClassVar[str | None] = "caption"
    tables: ClassVar[tuple[str, ...]] = ("answer",)
    labels: ClassVar[tuple[str, ...]] = (OTHER, MATCH)
    draws_prompt: ClassVar[bool] = True

    prompt: str = "image text match: "
    """Text before the caption, trailing space included; "" for none."""
    max_prompt_tokens: Count = 60
    """Longest prompt and caption in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 10
    """Longest target in tokens; "true" and "false" are never cut."""
    decoding: Decoding = field(
        default_factory=lambda: Decoding(max_new_tokens=19, choices=(MATCH, OTHER))
    )
    """How the model's output becomes an answer; the better of two words."""

    def num_others(self, *, evaluation: bool) -> int:
        return 1

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """The prompt; `answered` adds a caption."""
        return self.prompt

    def answered(
        self,
        example: Example,
        sample: Sample,
        given: Mapping[str, Any],
        rng: np.random.Generator | None,
    ) -> Example:
        """The sample's caption, or one of the other sample's."""
        draw = crc32(given["id"].encode()) if rng is None else int(rng.integers(1 << 32))
        # The last bit says whether to take another picture's caption, the others say which one.
        others: list[str] = []
        if draw % 2 and sample.others:
            (other,) = sample.others
            others = false_captions(sample, other)
        answer = OTHER if others else MATCH
        caption = others[draw // 2 % len(others)] if others else given["caption"]
        reference = None if rng is not None else {"answer": answer}  # its group in the table
        text = self.prompt + caption.strip()
        example = replace(example, prompt=text, target=answer, reference=reference)
        return self.with_classes(example, {answer: 1.0})

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference["answer"])

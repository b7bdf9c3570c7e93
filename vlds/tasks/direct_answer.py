"""A-OKVQA's direct answers: the question alone, without its choices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from vlds.metrics.vqa_accuracy import Rules
from vlds.runtime.checks import Count
from vlds.schema import Example, Sample
from vlds.tasks.vqa import VQA


@dataclass(frozen=True, kw_only=True)
class DirectAnswer(VQA):
    """Answer a question of A-OKVQA in free words; scored as its evaluation script does.

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

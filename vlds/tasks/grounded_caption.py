"""Grounded captions: name what a visual token shows, as in VL-T5's pre-training
(https://arxiv.org/abs/2102.02779), whose names are the detector's attributes and objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.metrics.exact_match import matches
from vlds.runtime.checks import Count
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import as_text
from vlds.tasks.hidden_words import words_of
from vlds.tasks.region_task import RegionTask, drawn_regions, names_of, pointers_to


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

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """A visual token and the name of its region."""
        assert annotation is not None
        given = sample.annotations[annotation]
        if rng is None and self.label_field not in given:
            return Example(given["id"], name, self.prompt + given.get("pointer", ""), None)
        names, chosen = drawn_regions(sample, given, self.num_regions, rng)
        answer = names_of(names, chosen)
        reference = answer if rng is None else None
        return Example(
            given["id"], name, self.prompt + pointers_to(chosen), answer, reference=reference
        )

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        """1 for a right name, whatever its case."""
        return {"accuracy": matches(map(words_of, texts), [words_of(as_text(t)) for t in known])}

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return words_of(prediction) == words_of(as_text(reference))

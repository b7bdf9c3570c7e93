"""Visual grounding: point at what a name calls, as in VL-T5's pre-training
(https://arxiv.org/abs/2102.02779). `Refer` points at what people's expressions describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vlds.runtime.checks import Count
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import as_text
from vlds.tasks.refer import POINTERS
from vlds.tasks.region_task import RegionTask, drawn_regions, names_of, pointers_to


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

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """The name of a region and its visual token; in evaluation all that are right, too."""
        assert annotation is not None
        given = sample.annotations[annotation]
        if rng is None and self.label_field not in given:
            return Example(given["id"], name, self.prompt + given.get("expression", ""), None)
        names, chosen = drawn_regions(sample, given, self.num_regions, rng)
        text, target = self.prompt + names_of(names, chosen), pointers_to(chosen)
        if rng is not None:
            return Example(given["id"], name, text, target)
        called = names[chosen[0]]
        right = [POINTERS[number] for number, other in enumerate(names) if other == called]
        return Example(
            given["id"], name, text, target, reference={"answer": target, "right": right}
        )

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        pairs = zip(texts, known, strict=True)
        return {"accuracy": [float(text in reference["right"]) for text, reference in pairs]}

    def answer_of(self, reference: Any) -> str | None:
        """The region that was drawn."""
        return as_text(reference["answer"])

    def correct(self, prediction: str, reference: Mapping[str, Any]) -> bool | None:
        return prediction in reference["right"]

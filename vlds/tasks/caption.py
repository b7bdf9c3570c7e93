"""Captions: describe a picture in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from vlds.metrics.cider import missing_for_official_cider, official_cider, plain_cider
from vlds.metrics.word_f1 import word_f1
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.base import Task, labelled, require_label


@dataclass(frozen=True, kw_only=True)
class Caption(Task):
    """Describe a picture; scored by CIDEr and word F1 against all its captions.

    Each caption is an example of training; evaluation writes one caption a picture. `CIDEr` is the
    official score and needs Java and pycocoevalcap; without them there is `cider_plain_tokens`,
    which is not comparable with it.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption",)
    input_field: ClassVar[str | None] = None
    reduction: ClassVar[Literal["example_mean", "token_mean"]] = "token_mean"
    unit: ClassVar[Literal["annotation", "sample"]] = "sample"

    prompt: str = "caption: "
    """The whole input, trailing space included; "" for none."""
    max_prompt_tokens: int = 40
    """Longest input in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: int = 40
    """Longest caption to learn in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(num_beams=5, max_new_tokens=19))
    """How the model's output becomes a caption; five beams, 20 tokens with the start token."""

    def example(
        self,
        name: str,
        sample: Sample,
        annotation: int | None,
        rng: np.random.Generator | None,
    ) -> Example:
        """One caption in training, all of them as the reference in evaluation."""
        if annotation is not None:
            given = sample.annotations[annotation]
            caption = require_label(given, "caption", sample).strip()
            return Example(given["id"], name, self.input_of(sample), caption, reference=[caption])
        assert rng is None, "training runs over annotations"
        captions = [given["caption"].strip() for given in sample.annotations if "caption" in given]
        first = captions[0] if captions else None
        return Example(sample.id, name, self.input_of(sample), first, reference=captions or None)

    def input_of(self, sample: Sample) -> str:
        """The whole text that the model reads beside the picture."""
        return self.prompt

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """CIDEr under the name of what could be computed, then word F1."""
        texts, known = labelled(predictions, references)
        if not known:
            return {}
        if missing_for_official_cider() is None:
            cider = {"CIDEr": official_cider(texts, known)}
        else:
            cider = {"cider_plain_tokens": plain_cider(texts, known)}
        return cider | {"word_f1": word_f1(texts, known)}

    def answer_of(self, reference: Any) -> str | None:
        """None: many captions are right."""
        return None

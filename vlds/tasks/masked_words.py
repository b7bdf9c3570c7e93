"""Masked words: fill the gaps in a caption with the picture's help, as in BERT and in METER's
pre-training (https://arxiv.org/abs/2111.02387), which masks whole words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np

from vlds.metrics.exact_match import matches, mean
from vlds.runtime.checks import Count, PositiveShare
from vlds.schema import Decoding, Example, Masking, Sample
from vlds.tasks.base import Task, as_text, labelled, require_label


@dataclass(frozen=True, kw_only=True)
class MaskedWords(Task):
    """Predict the masked words of captions; scored by the share of captions that are restored.

    Needs a model with a head for it, such as CrossModal with `masked_words`. Scores ignore case and
    white space.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption",)
    input_field: ClassVar[str | None] = "caption"
    masks_words: ClassVar[bool] = True
    draws_prompt: ClassVar[bool] = True
    reduction: ClassVar[Literal["example_mean", "token_mean"]] = "token_mean"

    share: PositiveShare = 0.15
    """Share of the words that is predicted; of these, four fifths are masked, a tenth is another
    word, a tenth the word itself. In evaluation all are masked."""
    prompt: str = ""
    """Text before the caption, whose words are masked too."""
    max_prompt_tokens: Count = 40
    """Longest caption in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 1
    """Not used: the answers stand in the caption's own places."""
    decoding: Decoding = field(default_factory=Decoding)
    """Not used: every place gets its most likely word."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """A caption and how it is masked; in evaluation always in the same way."""
        assert annotation is not None
        given = sample.annotations[annotation]
        if rng is None and "caption" not in given:
            return Example(given["id"], name, self.prompt, None)
        text = self.prompt + require_label(given, "caption", sample).strip()
        seed = crc32(given["id"].encode()) if rng is None else int(rng.integers(1 << 32))
        masking = Masking(self.share, seed, always_mask=rng is None)
        reference = text if rng is None else None
        return Example(given["id"], name, text, text, reference=reference, masking=masking)

    def score(
        self, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> dict[str, float]:
        """Share of the captions whose words were all found."""
        values = self.example_scores("restored", predictions, references)
        return {"restored": mean(values)} if values else {}

    def example_scores(
        self, name: str, predictions: Mapping[str, str], references: Mapping[str, Any]
    ) -> Sequence[float]:
        """1 for a caption that was restored."""
        texts, known = labelled(predictions, references)
        return matches(map(closed, texts), [closed(as_text(given)) for given in known])

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return closed(prediction) == closed(as_text(reference))


def closed(text: str) -> str:
    """Without white space, which tokenizers put around punctuation, and in lower case."""
    return "".join(text.lower().split())

"""Span masking and infilling with the picture's help, as in the pre-training of VL-T5 and VL-BART
(https://arxiv.org/abs/2102.02779).

Some words of a sentence are hidden, and neighbours among them are hidden together as a run. T5
writes the hidden words behind the sentinels that stand for their runs; BART writes the sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np

from vlds.metrics.exact_match import matches
from vlds.runtime.checks import Count, PositiveShare
from vlds.schema import Decoding, Example, Sample
from vlds.tasks.answer_task import AnswerTask
from vlds.tasks.base import as_text, require_label
from vlds.tasks.hidden_words import denoising, hidden_runs, infilling, words_of

TEXT_FIELDS = {"caption": "caption", "pair_text": "text"}
"""Kind of samples -> the field of an annotation with its sentence."""


@dataclass(frozen=True, kw_only=True)
class SpanPrediction(AnswerTask):
    """Restore the hidden words of a sentence about a picture; scored by the share of sentences of
    which all hidden words are right, whatever their case.

    Training hides other words of a sentence each time; evaluation always hides the same.
    """

    kinds: ClassVar[tuple[str, ...]] = ("caption", "pair_text")
    input_field: ClassVar[str | None] = "caption"
    draws_prompt: ClassVar[bool] = True
    class_loss = None

    share: PositiveShare = 0.15
    """Share of the words that is hidden, rounded down, at least one word; VL-BART hides 0.3."""
    target: Literal["spans", "sentence"] = "spans"
    """spans: the hidden words behind their sentinels <extra_id_0>, <extra_id_1>, ... (T5).
    sentence: the whole sentence, whose runs are replaced by <mask> (BART)."""
    prompt: str = "span prediction: "
    """Text before the sentence, trailing space included; VL-BART has "denoise text: "."""
    max_prompt_tokens: Count = 20
    """Longest prompt and sentence in tokens, special tokens included; longer ones are cut."""
    max_target_tokens: Count = 20
    """Longest target in tokens, special tokens included; longer ones are cut."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=19))
    """How the model's output becomes text; greedy."""

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        """A sentence with hidden words, and what the model writes."""
        assert annotation is not None
        given = sample.annotations[annotation]
        text_field = TEXT_FIELDS[sample.kind]
        if rng is None and text_field not in given:
            return Example(given["id"], name, self.prompt, None)
        words = require_label(given, text_field, sample).split()
        draws = np.random.default_rng(crc32(given["id"].encode())) if rng is None else rng
        runs = hidden_runs(draws.permutation(len(words)).tolist(), self.share)
        source, target = (
            infilling(words, runs) if self.target == "spans" else denoising(words, runs)
        )
        reference = target if rng is None else None
        return Example(given["id"], name, self.prompt + source, target, reference=reference)

    def example_values(self, texts: list[str], known: list[Any]) -> dict[str, list[float]]:
        """1 for a sentence whose hidden words are all right."""
        return {"restored": matches(map(words_of, texts), [words_of(as_text(t)) for t in known])}

    def answer_of(self, reference: Any) -> str | None:
        return as_text(reference)

    def correct(self, prediction: str, reference: Any) -> bool | None:
        return words_of(prediction) == words_of(as_text(reference))

"""TextVQA: questions about the text in a picture, beside the words that a reader found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlds.metrics.vqa_accuracy import Rules
from vlds.runtime.checks import Count, Natural
from vlds.schema import Sample
from vlds.tasks.base import optional_texts
from vlds.tasks.vqa import VQA


@dataclass(frozen=True, kw_only=True)
class TextVQA(VQA):
    """Answer a question about the text in a picture; scored by TextVQA's accuracy.

    The input is `textvqa: QUESTION words: WORD WORD ...`, with the words that an optical reader
    found (`ocr_tokens` of the sample), in its order.
    """

    prompt: str = "textvqa: "
    """Text before the question, trailing space included; "" for none."""
    max_prompt_tokens: Count = 200
    """Longest input in tokens, special tokens included; longer ones lose their last words."""
    max_target_tokens: Count = 20
    """Longest answer to learn in tokens, special tokens included; longer ones are cut."""
    accuracy: Rules = "textvqa"
    """Rules of VQA accuracy: textvqa, those of M4C and of TextVQA's challenge."""
    max_words: Natural = 50
    """Words of the picture in the input, at most; 50 as in M4C, 0 for none."""

    def question(self, sample: Sample, given: Mapping[str, Any]) -> str:
        """The prompt, the question, and the picture's words if there are any."""
        text = super().question(sample, given)
        words = optional_texts(sample.extra, "ocr_tokens")[: self.max_words]
        return f"{text} words: {' '.join(words)}" if words else text

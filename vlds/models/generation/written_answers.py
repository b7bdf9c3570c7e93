"""Answers that Hugging Face's `generate` writes, and how sure the model is of them.

Shapes: b rows, l tokens so far, w words of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)

from vlds.models.generation.answer import Answer
from vlds.models.generation.answer_list import AnswerList
from vlds.schema import Decoding


class WrittenAnswer(NamedTuple):
    """One row's answer."""

    ids: list[int]
    """With the end of the turn, if it was written."""
    words: list[int]
    """Without it."""
    log_probability: float
    """Of the whole answer, its end included."""


@dataclass(frozen=True)
class Writer:
    """Writes answers with one Hugging Face model."""

    model: Any
    ends: tuple[int, ...]
    """Ids that end an answer."""
    pad: int
    forbidden: tuple[int, ...] = ()
    """Ids that no answer may hold, such as the placeholders of pictures."""
    decoder_start: int | None = None
    """Id before an answer, if a decoder of its own writes it; it is no part of the answer."""

    def write(
        self, inputs: Mapping[str, Tensor], decoding: Decoding, answers: AnswerList | None
    ) -> list[WrittenAnswer]:
        """Greedy answers or those of a beam search to rows that are padded on the left.

        `inputs`: of Hugging Face's forward pass.
        """
        start = 1
        if self.decoder_start is None:
            start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        output = self.model.generate(
            **inputs,
            generation_config=self.settings(decoding, answers),
            logits_processor=LogitsProcessorList(rules(decoding, answers, start)),
        )
        sequences = output.sequences[:, start:]
        totals = self.model.compute_transition_scores(
            output.sequences,
            output.logits,
            getattr(output, "beam_indices", None),
            normalize_logits=True,
        )
        return [
            self.answer(ids, scores)
            for ids, scores in zip(sequences.tolist(), totals.float().tolist(), strict=True)
        ]

    def settings(self, decoding: Decoding, answers: AnswerList | None) -> GenerationConfig:
        """Ours alone: a checkpoint's own settings would leak."""
        settings = self.defaults()
        settings.update(
            max_new_tokens=decoding.max_new_tokens if answers is None else answers.longest,
            num_beams=decoding.num_beams,
            early_stopping=decoding.early_stopping,
            suppress_tokens=list(self.forbidden) or None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return settings

    def defaults(self) -> GenerationConfig:
        """Where greedy answers begin and end."""
        return GenerationConfig(
            do_sample=False,
            eos_token_id=list(self.ends),
            pad_token_id=self.pad,
            decoder_start_token_id=self.decoder_start,
        )

    def answer(self, ids: Sequence[int], scores: Sequence[float]) -> WrittenAnswer:
        """One row of what was written, up to its end."""
        end = next((n for n, token in enumerate(ids) if token in self.ends), len(ids))
        whole = list(ids[: end + 1])
        return WrittenAnswer(whole, list(ids[:end]), sum(scores[: len(whole)]))


def as_answer(written: WrittenAnswer, tokenizer: Any, listed: AnswerList | None) -> Answer:
    """The text of an answer, and how sure the model is of it."""
    confidence = math.exp(written.log_probability)
    if listed is not None:
        return Answer(listed.text_of(written.words), confidence, None)
    mean = math.exp(written.log_probability / max(1, len(written.ids)))
    text = tokenizer.decode(written.words, skip_special_tokens=True).strip()
    return Answer(text, confidence, mean if len(written.words) > 1 else None)


class AnswerRule(LogitsProcessor):
    """Applies a rule for answers to what follows the prompt."""

    def __init__(self, rule: Callable[[Tensor, Tensor], Tensor], start: int) -> None:
        """`start`: tokens of the prompt that stand before answers."""
        self.rule, self.start = rule, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(b, l) with the prompt, (b, w) -> (b, w)."""
        return self.rule(input_ids[:, self.start :], scores)


def rules(decoding: Decoding, answers: AnswerList | None, start: int) -> list[LogitsProcessor]:
    """What answers must keep to."""
    chosen: list[Callable[[Tensor, Tensor], Tensor]] = []
    if decoding.no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
    if answers is not None:
        chosen.append(answers.restrict)
    return [AnswerRule(rule, start) for rule in chosen]


def left_padded(rows: Tensor, lengths: Tensor, value: int) -> Tensor:
    """Rows (b, l) that are padded on the right, moved to the right edge."""
    longest = int(lengths.max())
    positions = torch.arange(longest, device=rows.device) - (longest - lengths[:, None])
    moved = rows.gather(1, positions.clamp(min=0))
    return moved.masked_fill(positions < 0, value)

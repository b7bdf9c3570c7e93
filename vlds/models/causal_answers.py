"""Answers of causal models: `generate` of Hugging Face, or a comparison of a few words.

Shapes: b rows, k beams, l tokens of the prompt, t tokens of the answer, w words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlds.models.generation import best_choice
from vlds.models.model import Answer
from vlds.models.written_answers import Writer, WrittenAnswer, as_answer
from vlds.schema import IGNORED_LABEL, Batch, Decoding

if TYPE_CHECKING:
    from vlds.models.causal_model import CausalModel


def answers(model: CausalModel, batch: Batch, decoding: Decoding) -> list[Answer]:
    """Each row's answer; the batch holds prompts only."""
    visual = model.visual_tokens(batch)
    if decoding.choices is not None:
        return chosen(model, batch, visual, decoding.choices)
    listed = model.answer_list(decoding)
    written = generate(model, batch, visual, decoding)
    return [as_answer(each, model.tokenizer, listed) for each in written]


def chosen(
    model: CausalModel, batch: Batch, visual: Tensor, choices: Sequence[str]
) -> list[Answer]:
    """The choices whose first tokens have the highest logits."""
    sequences = model.sequences(batch, visual)
    last = sequences.mask.sum(1) - 1
    positions = torch.zeros_like(sequences.mask).scatter(1, last[:, None], True)
    logits = model.logits_at(batch, sequences, positions)
    numbers, confidences = best_choice(logits, model.choice_ids(choices))
    rows = zip(numbers, confidences.tolist(), strict=True)
    return [Answer(choices[number], confidence, None) for number, confidence in rows]


def generate(
    model: CausalModel, batch: Batch, visual: Tensor, decoding: Decoding
) -> list[WrittenAnswer]:
    """Each row's answer as tokens."""
    assert model.chat is not None
    sequences = model.sequences(batch, visual, left=True)
    inputs = {"inputs_embeds": sequences.embeds, "attention_mask": sequences.mask.long()}
    writer = Writer(model.backbone, tuple(model.chat.end_ids), model.chat.pad_id)
    return writer.write(inputs, decoding, model.answer_list(decoding))


def without_answers(batch: Batch) -> Batch:
    """A batch of prompts only."""
    if batch.labels is None:
        return batch
    mask = batch.attention_mask.bool() & (batch.labels == IGNORED_LABEL)
    return replace(batch, attention_mask=mask, labels=None, labels_on_prompt=False)

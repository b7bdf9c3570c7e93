"""Answers of causal models: `generate` of Hugging Face, or a comparison of a few words.

Shapes: b rows, k beams, l tokens of the prompt, t tokens of the answer, w words of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from vlds.models.answer_list import AnswerList
from vlds.models.chat_format import ChatFormat
from vlds.models.collate import padded
from vlds.models.generation import best_choice
from vlds.models.model import Answer
from vlds.schema import IGNORED_LABEL, Batch, Decoding

if TYPE_CHECKING:
    from vlds.models.causal_model import CausalModel


class ListedOnly(LogitsProcessor):
    """Lets `generate` write only answers of a list."""

    def __init__(self, listed: AnswerList) -> None:
        self.listed = listed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids`: (b * k, new tokens), since `generate` begins with embeddings."""
        return self.listed(F.pad(input_ids, (1, 0)), scores)  # which skips a start token


def answers(model: CausalModel, batch: Batch, decoding: Decoding) -> list[Answer]:
    """Each row's answer; the batch holds prompts only."""
    visual = model.visual_tokens(batch)
    if decoding.choices is not None:
        return chosen(model, batch, visual, decoding.choices)
    assert model.chat is not None
    written = generate(model, batch, visual, decoding)
    totals = log_probabilities(model, batch, visual, written)
    if (listed := model.answer_list(decoding)) is not None:
        texts = [listed.texts[tuple(ids)] for ids in written]
        rows = zip(texts, totals, strict=True)
        return [Answer(text, math.exp(total), None) for text, total in rows]
    ends = set(model.chat.end_ids)
    words = [ids[:-1] if ids[-1] in ends else ids for ids in written]
    texts = [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in words]
    return [
        Answer(text, math.exp(total), math.exp(total / len(ids)) if len(said) > 1 else None)
        for text, total, ids, said in zip(texts, totals, written, words, strict=True)
    ]


def chosen(
    model: CausalModel, batch: Batch, visual: Tensor, choices: Sequence[str]
) -> list[Answer]:
    """The choices whose first tokens have the highest logits."""
    sequences = model.sequences(batch, visual)
    last = sequences.mask.sum(1) - 1
    positions = torch.zeros_like(sequences.mask).scatter(1, last[:, None], True)
    logits = model.logits_at(sequences, positions)
    numbers, confidences = best_choice(logits, model.choice_ids(choices))
    rows = zip(numbers, confidences.tolist(), strict=True)
    return [Answer(choices[number], confidence, None) for number, confidence in rows]


def generate(
    model: CausalModel, batch: Batch, visual: Tensor, decoding: Decoding
) -> list[list[int]]:
    """Tokens of each answer, with the one that ends it if it ends."""
    assert model.chat is not None
    sequences = model.sequences(batch, visual, left=True)
    beams = batch.task_index.repeat_interleave(decoding.num_beams)
    model.routing.set(beams, batch.input_ids.device)
    listed = model.answer_list(decoding)
    ids: Tensor = model.backbone.generate(
        inputs_embeds=sequences.embeds,
        attention_mask=sequences.mask.long(),
        generation_config=settings(decoding, model.chat, listed),
        logits_processor=LogitsProcessorList([] if listed is None else [ListedOnly(listed)]),
    )
    return [up_to_end(row, model.chat.end_ids) for row in ids.tolist()]


def settings(decoding: Decoding, chat: ChatFormat, listed: AnswerList | None) -> GenerationConfig:
    """How `generate` writes; nothing comes from the checkpoint."""
    return GenerationConfig(
        max_new_tokens=decoding.max_new_tokens if listed is None else listed.longest,
        num_beams=decoding.num_beams,
        early_stopping=decoding.early_stopping,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        do_sample=False,
        eos_token_id=chat.end_ids,
        pad_token_id=chat.pad_id,
    )


def up_to_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to the first that ends an answer, included."""
    place = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return ids[: place + 1]


def log_probabilities(
    model: CausalModel, batch: Batch, visual: Tensor, written: Sequence[list[int]]
) -> list[float]:
    """The model's log-probability of each whole answer (b of t tokens), the end included."""
    device = batch.input_ids.device
    targets = padded(written, IGNORED_LABEL).to(device)
    real = targets != IGNORED_LABEL
    whole = replace(
        batch,
        input_ids=torch.cat([batch.input_ids, targets.masked_fill(~real, 0)], 1),
        attention_mask=torch.cat([batch.attention_mask.bool(), real], 1),
        labels=torch.cat([torch.full_like(batch.input_ids, IGNORED_LABEL), targets], 1),
        labels_on_prompt=True,
    )
    totals: list[float] = (-model.nll(whole, visual).double().sum(1)).tolist()
    return totals


def without_answers(batch: Batch) -> Batch:
    """A batch of prompts only."""
    if batch.labels is None:
        return batch
    mask = batch.attention_mask.bool() & (batch.labels == IGNORED_LABEL)
    return replace(batch, attention_mask=mask, labels=None, labels_on_prompt=False)

"""From encoder states to token ids: greedy, beam search, or a comparison of a few words.

Our loop does less work than Hugging Face's `generate`: the first step runs once per example, not
once per beam; the encoder's keys and values are computed and kept once per example; finished
examples leave the batch. Shapes: b examples, k beams, r rows, w words of vocabulary, l length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)

from vlds.models.generation.answer_list import AnswerList
from vlds.models.generation.cached_decoder import CachedDecoder
from vlds.models.generation.hypotheses import Beams, Greedy, Hypotheses, Written
from vlds.schema import Decoding

LEAVE = 0.75
"""Finished examples leave the batch once at most this share of it is unfinished."""
Rules = Callable[[Tensor, Tensor], Tensor]
"""Ids (r, l) and scores (r, w) of the next token -> scores."""


def rules(
    decoding: Decoding, config: Any, listed: AnswerList | None, limit: int, forces_eos: bool
) -> Rules:
    """What changes the scores of the next token. Nothing comes from the checkpoint's config."""
    if listed is not None:
        return listed
    processors = LogitsProcessorList()
    if decoding.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
    if decoding.num_beams > 1 and forces_eos:
        processors.append(ForcedEOSTokenLogitsProcessor(limit, config.eos_token_id))
    return processors  # type: ignore[no-any-return]


def generate_ids(
    decoder: CachedDecoder,
    decoding: Decoding,
    listed: AnswerList | None = None,
    *,
    beam_forces_eos: bool,
) -> Written:
    """Generate answers of at most the decoding's length."""
    config = decoder.config
    limit = 1 + (decoding.max_new_tokens if listed is None else listed.longest)
    bend = rules(decoding, config, listed, limit, beam_forces_eos)
    num, device = decoder.num_examples, decoder.device
    start = torch.full((num, decoding.num_beams, 1), config.decoder_start_token_id, device=device)
    open_ones: Hypotheses = (
        Greedy(start, limit, config)
        if decoding.num_beams == 1
        else Beams(start, limit, config, decoding)
    )
    ids = torch.full((num, limit), config.pad_token_id, device=device)
    sums = torch.zeros(num, device=device)
    numbers = torch.arange(num, device=device)
    over = False
    while not over:
        logits = decoder.next_logits(open_ones.ids[..., -1], open_ones.size)
        scores = logits if decoding.num_beams == 1 else logits.log_softmax(-1)
        decoder.keep(open_ones.advance(bend(open_ones.ids.flatten(0, 1), scores), logits))
        num_open = len(numbers) - int(open_ones.done.sum())
        over = num_open == 0 or open_ones.ids.shape[2] >= limit
        if over or num_open <= LEAVE * len(numbers):
            ids[numbers], best_sums = open_ones.best()
            sums[numbers] = best_sums.to(sums.dtype)
        if not over and num_open <= LEAVE * len(numbers):
            stay = (~open_ones.done).nonzero().flatten()
            numbers = numbers[stay]
            open_ones.select(stay)
            decoder.select(stay)
    return Written(ids, sums)


def answers(ids: Tensor, eos_token_id: int) -> list[list[int]]:
    """Token ids of each answer, from after the start token to before </s>."""
    rows = ids[:, 1:].tolist()
    return [row[: row.index(eos_token_id)] if eos_token_id in row else row for row in rows]


def token_means(written: Written, num_before: int, eos_token_id: int) -> list[float | None]:
    """The geometric mean of the probabilities of each answer's tokens, </s> among them; None for an
    answer of one token. `num_before`: special tokens that stand before any answer, as BART's do."""
    longest = written.ids.shape[1] - 1  # an answer of this length has no </s>
    lengths = map(len, answers(written.ids, eos_token_id))
    return [
        math.exp(total / (min(length + 1, longest) - num_before))
        if length - num_before > 1
        else None
        for length, total in zip(lengths, written.log_probabilities.tolist(), strict=True)
    ]


def best_choice(logits: Tensor, choices: list[list[int]]) -> tuple[list[int], Tensor]:
    """(b, w) logits -> for each example the number of the choice whose first token has the highest
    logit; ties go to the last. With (b,) its probability among the choices."""
    firsts = torch.tensor([choice[0] for choice in choices], device=logits.device)
    scores = logits[:, firsts].flip(-1)
    chosen = [len(choices) - 1 - number for number in scores.argmax(-1).tolist()]
    return chosen, scores.float().softmax(-1).amax(-1)

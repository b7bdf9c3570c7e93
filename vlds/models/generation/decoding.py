"""From encoder states to token ids: greedy, beam search, or a comparison of a few words.

`generate_ids` does less work than Hugging Face's `generate`: the first step runs once per example,
not once per beam; the encoder's keys and values are computed and kept once per example; finished
examples leave the batch. Shapes: b examples, k beams, r rows, w words of vocabulary, l length,
s encoder states, d width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.generation import (
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)

from vlds.models.generation.answer_list import AnswerList
from vlds.models.methods.context import BatchContext
from vlds.schema import Decoding

LEAVE = 0.75
"""Finished examples leave the batch once at most this share of it is unfinished."""


class Written(NamedTuple):
    """The answers of a batch."""

    ids: Tensor
    """(b, l) with start token and padding."""
    log_probabilities: Tensor
    """(b,) that the model gives to the whole answer with </s>; with a list, its share there."""


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
    # What changes the scores of the next token. Nothing comes from the checkpoint's own config.
    processors = LogitsProcessorList()
    if decoding.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
    if decoding.num_beams > 1 and beam_forces_eos:
        processors.append(ForcedEOSTokenLogitsProcessor(limit, config.eos_token_id))
    # A listed answer follows its list alone, and ends where that ends.
    rules: Callable[[Tensor, Tensor], Tensor] = processors if listed is None else listed
    num, device = decoder.num_examples, decoder.device
    start = torch.full((num, decoding.num_beams, 1), config.decoder_start_token_id, device=device)
    hypotheses: Hypotheses = (
        Greedy(start, limit, config)
        if decoding.num_beams == 1
        else Beams(start, limit, config, decoding)
    )
    ids = torch.full((num, limit), config.pad_token_id, device=device)
    sums = torch.zeros(num, device=device)
    # Place in the batch of each example that is still in `hypotheses` and `decoder`.
    places = torch.arange(num, device=device)
    over = False
    while not over:
        logits = decoder.next_logits(hypotheses.ids[..., -1], hypotheses.size)
        scores = logits if decoding.num_beams == 1 else logits.log_softmax(-1)
        bent = rules(hypotheses.ids.flatten(0, 1), scores)
        # How sure the model is does not depend on rules, but it is sure of an answer of a list as
        # against the others. So each token counts among those that lead to one.
        total = (scores if listed is None else bent).logsumexp(-1)
        decoder.keep(hypotheses.advance(bent, total))
        num_open = len(places) - int(hypotheses.done.sum())
        over = num_open == 0 or hypotheses.ids.shape[2] >= limit
        # To leave copies the caches, so several examples leave at once.
        if over or num_open <= LEAVE * len(places):
            ids[places], best_sums = hypotheses.best()
            sums[places] = best_sums.to(sums.dtype)
        if not over and num_open <= LEAVE * len(places):
            stay = (~hypotheses.done).nonzero().flatten()
            places = places[stay]
            hypotheses.select(stay)
            decoder.select(stay)
    return Written(ids, sums)


class Hypotheses(ABC):
    """The `size` answers of each example so far."""

    rows: ClassVar[tuple[str, ...]] = ("ids", "sums", "done")
    """Tensors with a row for each example."""
    sums: Tensor
    """Sums of the scores of what has been written."""

    def __init__(self, start: Tensor, limit: int, config: Any) -> None:
        """`start`: (b, k, 1)."""
        self.ids, self.limit, self.size = start, limit, start.shape[1]
        self.eos, self.pad = config.eos_token_id, config.pad_token_id
        self.done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        """(b,) True for finished examples."""

    @abstractmethod
    def advance(self, scores: Tensor, total: Tensor) -> Tensor | None:
        """Extend by a token from scores (b * k, w), the logits or log-probabilities as the rules
        have bent them; scores minus `total` (b * k,) are the log-probabilities that count.
        (b * k,) rows that continue, None for all."""

    @abstractmethod
    def best(self) -> Written:
        """Answers (b, limit), padded."""

    def select(self, examples: Tensor) -> None:
        """Continue with these examples only."""
        for name in self.rows:
            setattr(self, name, getattr(self, name)[examples])


class Greedy(Hypotheses):
    """The one open answer of each example."""

    def __init__(self, start: Tensor, limit: int, config: Any) -> None:
        super().__init__(start, limit, config)
        self.sums = torch.zeros(len(start), device=start.device)

    def advance(self, scores: Tensor, total: Tensor) -> None:
        """Append the best token; what is done gets padding."""
        best, tokens = scores.max(-1)
        log_probabilities = best - total
        self.sums = self.sums + log_probabilities.masked_fill(self.done, 0.0)
        tokens = tokens.masked_fill(self.done, self.pad)
        self.ids = extend(self.ids, tokens[:, None])
        self.done = self.done | (tokens == self.eos)

    def best(self) -> Written:
        return Written(padded(self.ids, self.limit, self.pad)[:, 0], self.sums)


class Beams(Hypotheses):
    """The k open and the k best finished answers of each example.

    Scores are those of transformers 4.2, as VL-Adapter has them: the sum of log-probabilities
    divided by the length that counts the start token, for open answers at the length limit too.
    """

    rows = (*Hypotheses.rows, "totals", "finished_ids", "finished_logs", "finished_scores")

    def __init__(self, start: Tensor, limit: int, config: Any, decoding: Decoding) -> None:
        super().__init__(start, limit, config)
        self.early_stopping = decoding.early_stopping
        self.length_counts_start = decoding.length_counts_start
        shape, device = start.shape[:2], start.device
        self.sums = torch.zeros(shape, device=device)
        self.sums[:, 1:] = -torch.inf  # the beams are all equal at first, so only one may continue
        self.totals = torch.zeros(shape, device=device)
        self.finished_ids = torch.full((*shape, self.limit), self.pad, device=device)
        self.finished_scores = torch.full(shape, -torch.inf, device=device)  # falling
        self.finished_logs = torch.full(shape, -torch.inf, device=device)

    def advance(self, scores: Tensor, total: Tensor) -> Tensor:
        """Extend the beams by a token from log-probabilities (b * k, w); (b * k,) row that each one
        came from. A sum of -inf marks a beam that does not exist."""
        num_words = scores.shape[-1]
        self.totals = self.totals + total.view_as(self.totals)
        sums = self.sums[..., None] + scores.view(len(self.done), self.size, num_words)
        # Of the best 2k extensions at least k go on: each beam ends in at most one way.
        sums, chosen = sums.flatten(1).topk(2 * self.size, 1)
        parents, tokens = chosen // num_words, chosen % num_words
        ends = tokens == self.eos
        length = self.ids.shape[2]
        # An answer ends only among the best k; </s> is not counted in its length.
        new = sums[:, : self.size] / length
        new = new.masked_fill(~ends[:, : self.size] | self.done[:, None], -torch.inf)
        ended = extend(take(self.ids, parents), tokens)[:, : self.size]
        logs = (sums - self.totals.gather(1, parents))[:, : self.size]
        ids, logs, new = self._with_finished(ended, logs, new)
        self.finished_scores, best = new.topk(self.size, 1)
        self.finished_ids, self.finished_logs = take(ids, best), logs.gather(1, best)
        # The best open answer is judged by its present length, as in transformers: that it may gain
        # by growing longer is ignored.
        full = torch.isfinite(self.finished_scores).all(1)
        hopeless = self.finished_scores[:, -1] >= sums[:, 0] / length
        # Stable: what has not ended comes first, best first.
        continuing = torch.argsort(ends.long(), dim=1, stable=True)[:, : self.size]
        self.sums, parents = sums.gather(1, continuing), parents.gather(1, continuing)
        self.totals = self.totals.gather(1, parents)
        self.ids = extend(take(self.ids, parents), tokens.gather(1, continuing))
        none_open = (self.sums == -torch.inf).all(1)
        self.done = self.done | none_open | (full & (hopeless | self.early_stopping))
        # Beam 1 of example 2, with 3 beams each, is row 7 of the decoder's cache.
        first_rows = torch.arange(len(parents), device=parents.device)[:, None] * self.size
        rows: Tensor = first_rows + parents
        return rows.flatten()

    def best(self) -> Written:
        """The best answers; those still open compete too."""
        length = self.ids.shape[2] - (0 if self.length_counts_start else 1)
        unfinished = (self.sums / length).masked_fill(self.done[:, None], -torch.inf)
        ids, logs, scores = self._with_finished(self.ids, self.sums - self.totals, unfinished)
        chosen = scores.argmax(1, keepdim=True)
        return Written(take(ids, chosen)[:, 0], logs.gather(1, chosen)[:, 0])

    def _with_finished(
        self, ids: Tensor, logs: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, log-probabilities and scores of the finished answers, then of these. A score of -inf
        marks an answer that does not exist."""
        return (
            torch.cat([self.finished_ids, padded(ids, self.limit, self.pad)], 1),
            torch.cat([self.finished_logs.to(logs.dtype), logs], 1),
            torch.cat([self.finished_scores.to(scores.dtype), scores], 1),
        )


def take(ids: Tensor, chosen: Tensor) -> Tensor:
    """(b, k, l) and (b, j) -> (b, j, l)."""
    return ids.gather(1, chosen[..., None].expand(-1, -1, ids.shape[2]))


def extend(ids: Tensor, tokens: Tensor) -> Tensor:
    """(b, k, l) and (b, k) -> (b, k, l + 1)."""
    return torch.cat([ids, tokens[..., None]], dim=2)


def padded(ids: Tensor, length: int, pad: int) -> Tensor:
    """(b, k, l) -> (b, k, length)."""
    return F.pad(ids, (0, length - ids.shape[2]), value=pad)


def cache_of(output: Any) -> dict[str, Any]:
    """The cache in a model's output, under the name by which the next pass takes it: versions of
    transformers call it `cache` or `past_key_values`."""
    name = "cache" if "cache" in output else "past_key_values"
    return {name: output[name]}


class CachedStack:
    """A decoder's layers, which run over one token of each row at a time. The cache holds the
    encoder's keys and values once per example, and those of written tokens once per beam."""

    def __init__(self, decoder: Any, states: Tensor, mask: Tensor) -> None:
        """Hugging Face's decoder, encoder states (b, s, d), their mask (b, s)."""
        self._decoder, self.states = decoder, states
        lowest = torch.finfo(states.dtype).min
        self._mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask.bool(), lowest)
        self._cache: dict[str, Any] = {}
        """Empty before the first token."""

    def run(self, tokens: Tensor) -> Tensor:
        """Last tokens (b * k, 1) -> states (b * k, d)."""
        output = self._decoder(
            input_ids=tokens,
            encoder_hidden_states=self.states,
            encoder_attention_mask=self._mask[:, None, None],
            use_cache=True,
            **self._cache,
        )
        self._cache = cache_of(output)
        states: Tensor = output.last_hidden_state[:, -1]
        return states

    def keep(self, rows: Tensor) -> None:
        """Let each row of the tokens written continue another, of (b * k,)."""
        (cache,) = self._cache.values()
        written = cache.self_attention_cache
        if (num_kept := len(written.layers[0].keys)) < len(rows):
            # The first step runs once per example, so row n of b * k came from row n // k.
            rows = rows // (len(rows) // num_kept)
        written.reorder_cache(rows)

    def select(self, examples: Tensor) -> None:
        """Continue with these examples only."""
        (cache,) = self._cache.values()
        size = len(cache.self_attention_cache.layers[0].keys) // len(self.states)
        beams = torch.arange(size, device=self.states.device)
        rows = (examples[:, None] * size + beams).flatten()
        cache.self_attention_cache.batch_select_indices(rows)
        cache.cross_attention_cache.batch_select_indices(examples)
        self.states, self._mask = self.states[examples], self._mask[examples]


class CachedDecoder:
    """Writes one token of each beam at a time."""

    def __init__(
        self,
        config: Any,
        stacks: Sequence[CachedStack],
        vocabulary_logits: Callable[[Tensor], Tensor],
        task_index: Tensor,
        context: BatchContext,
    ) -> None:
        """`stacks`: they run one after the other, and the last one's states give the logits;
        `config`: Hugging Face's; `task_index`: tasks (b,)."""
        self.config, self.device = config, stacks[0].states.device
        self._stacks, self._vocabulary_logits = stacks, vocabulary_logits
        self._context, self._task_index = context, task_index
        self._examples = torch.arange(len(task_index))
        self._begun = False

    @property
    def num_examples(self) -> int:
        """Examples that are not finished."""
        return len(self._stacks[0].states)

    def next_logits(self, last_tokens: Tensor, size: int) -> Tensor:
        """(b, k) last tokens -> (b * k, w) logits in at least float32."""
        repeat = 1
        if not self._begun:  # all beams start with the same token
            self._begun = True
            last_tokens, repeat = last_tokens[:, :1], size
        tasks, examples = (
            rows.repeat_interleave(last_tokens.shape[1])
            for rows in (self._task_index, self._examples)
        )
        self._context.set_rows(tasks, examples, self.device)
        for stack in self._stacks:
            states = stack.run(last_tokens.reshape(-1, 1))
        logits = self._vocabulary_logits(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.repeat_interleave(repeat, 0) if repeat > 1 else logits

    def keep(self, rows: Tensor | None) -> None:
        """Let each row of the tokens written continue another, of (b * k,); None: itself."""
        if rows is not None:
            for stack in self._stacks:
                stack.keep(rows)

    def select(self, examples: Tensor) -> None:
        """Continue with these examples only."""
        for stack in self._stacks:
            stack.select(examples)
        self._task_index = self._task_index[examples.cpu()]
        self._examples = self._examples[examples.cpu()]


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

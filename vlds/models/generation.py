"""From encoder states to token ids: greedy, beam search, or a comparison of a few words.

Greedy decoding is Hugging Face's. Beam search is our own loop inside its `generate`, because scores
decide which beam wins and VL-Adapter's come from transformers 4.2: the sum of log-probabilities
divided by the length that counts the start token, for open answers at the length limit too. Shapes:
b examples, k beams, w words of vocabulary, l length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from vlds.schema import Decoding


def generation_config(model: Any, decoding: Decoding, beam_forces_eos: bool) -> GenerationConfig:
    """Everything that steers `generate`, so that nothing comes from the checkpoint's own config."""
    config = model.config
    return GenerationConfig(
        num_beams=decoding.num_beams,
        max_length=1 + decoding.max_new_tokens,
        early_stopping=decoding.early_stopping,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        do_sample=False,
        use_cache=True,
        length_penalty=1.0,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        forced_eos_token_id=config.eos_token_id
        if decoding.num_beams > 1 and beam_forces_eos
        else None,
    )


def generate_ids(
    model: Any,
    states: Tensor,
    mask: Tensor,
    decoding: Decoding,
    *,
    beam_forces_eos: bool,
    synced_gpus: bool = False,
) -> Tensor:
    """(b, l) ids with start token and padding; `synced_gpus`: ranks go on until all are done."""
    loop = BeamSearch(decoding.length_counts_start, synced_gpus)
    search = {"custom_generate": loop} if decoding.num_beams > 1 else {}
    ids: Tensor = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        generation_config=generation_config(model, decoding, beam_forces_eos),
        synced_gpus=synced_gpus,
        **search,
    )
    return ids


def answers(ids: Tensor, eos_token_id: int) -> list[list[int]]:
    """Token ids of each answer, from after the start token to before </s>."""
    found = []
    for row in ids[:, 1:].tolist():
        end = row.index(eos_token_id) if eos_token_id in row else len(row)
        found.append(row[:end])
    return found


def best_choice(logits: Tensor, choices: list[list[int]]) -> list[list[int]]:
    """(b, w) logits -> for each example the choice whose first token has the highest logit; ties go
    to the last."""
    firsts = torch.tensor([choice[0] for choice in choices], device=logits.device)
    scores = logits[:, firsts].flip(-1)
    return [choices[len(choices) - 1 - number] for number in scores.argmax(-1).tolist()]


class BeamSearch:
    """A decoding loop for `generate(custom_generate=...)`."""

    def __init__(self, length_counts_start: bool, synced_gpus: bool) -> None:
        self.length_counts_start = length_counts_start
        self.synced_gpus = (
            synced_gpus  # `generate` does not hand it on to loops that are not its own
        )

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """The best answer of each example (b, l), from start tokens (b * k, 1) and repeated encoder
        states."""
        decoder = CachedDecoder(model, model_kwargs)
        beams = Beams(input_ids, generation_config)
        over = False
        while model._has_unfinished_sequences(over, self.synced_gpus, device=input_ids.device):
            logits = decoder.next_logits(beams.last_tokens())
            if over:
                continue  # other ranks are still at work and need our part of the weights
            log_probs = logits_processor(beams.flat_ids(), logits.log_softmax(-1))
            decoder.reorder(beams.advance(log_probs))
            over = beams.over()
        return beams.best(self.length_counts_start)


class Beams:
    """The k open and the k best finished answers of each example."""

    def __init__(self, start: Tensor, config: Any) -> None:
        self.size, self.limit = config.num_beams, config.max_length
        self.eos, self.pad = config.eos_token_id, config.pad_token_id
        self.early_stopping = bool(config.early_stopping)
        num = len(start) // self.size
        shape, device = (num, self.size), start.device
        self.ids = start.view(*shape, 1)
        self.sums = torch.zeros(shape, device=device)
        self.sums[:, 1:] = -1e9  # the beams are all equal at first, so only one may go on
        self.finished_ids = torch.full((*shape, self.limit), self.pad, device=device)
        self.finished_scores = torch.full(shape, -torch.inf, device=device)  # falling
        self.done = torch.zeros(num, dtype=torch.bool, device=device)

    def flat_ids(self) -> Tensor:
        """(b * k, l)."""
        return self.ids.flatten(0, 1)

    def last_tokens(self) -> Tensor:
        """(b * k, 1)."""
        return self.ids[..., -1:].flatten(0, 1)

    def advance(self, log_probs: Tensor) -> Tensor:
        """Extend the beams by a token from log-probabilities (b * k, w); (b * k,) row that each one
        came from."""
        num_words = log_probs.shape[-1]
        totals = self.sums[..., None] + log_probs.view(len(self.done), self.size, num_words)
        totals, chosen = totals.flatten(1).topk(2 * self.size, 1)
        parents, tokens = chosen // num_words, chosen % num_words
        ends = tokens == self.eos
        length = self.ids.shape[2]
        # An answer ends only among the best k; </s> is not counted in its length.
        new = totals[:, : self.size] / length
        new = new.masked_fill(~ends[:, : self.size] | self.done[:, None], -torch.inf)
        ended = extend(take(self.ids, parents), tokens)[:, : self.size]
        self.finish(ended, new)
        full = torch.isfinite(self.finished_scores).all(1)
        hopeless = self.finished_scores[:, -1] >= totals[:, 0] / length
        self.done = self.done | (full & (hopeless | self.early_stopping))
        # The best k that do not end. There are k, since each of the k beams ends in one way at
        # most.
        goes_on = torch.argsort(ends.long(), dim=1, stable=True)[:, : self.size]
        self.sums, parents = totals.gather(1, goes_on), parents.gather(1, goes_on)
        self.ids = extend(take(self.ids, parents), tokens.gather(1, goes_on))
        first_rows = torch.arange(len(parents), device=parents.device)[:, None] * self.size
        rows: Tensor = first_rows + parents
        return rows.flatten()

    def finish(self, ids: Tensor, scores: Tensor) -> None:
        """Keep the best k of the old and the new finished answers; one with score -inf is none."""
        ids = F.pad(ids, (0, self.limit - ids.shape[2]), value=self.pad)
        scores = torch.cat([self.finished_scores.to(scores.dtype), scores], 1)
        self.finished_scores, chosen = scores.topk(self.size, 1)
        self.finished_ids = take(torch.cat([self.finished_ids, ids], 1), chosen)

    def over(self) -> bool:
        """Whether nothing can change any more."""
        return self.ids.shape[2] >= self.limit or bool(self.done.all())

    def best(self, length_counts_start: bool) -> Tensor:
        """(b, l) best answers; those still open at the limit compete too."""
        length = self.ids.shape[2] - (0 if length_counts_start else 1)
        self.finish(self.ids, (self.sums / length).masked_fill(self.done[:, None], -torch.inf))
        return self.finished_ids[:, 0]


class CachedDecoder:
    """One decoder step at a time over the cache that `generate` has made."""

    def __init__(self, model: Any, model_kwargs: dict[str, Any]) -> None:
        self.model = model
        # transformers 5 has renamed the cache on its way.
        self.cache_name = "cache" if "cache" in model_kwargs else "past_key_values"
        names = ("encoder_outputs", "attention_mask", self.cache_name)
        self.inputs = {name: model_kwargs[name] for name in names}

    def next_logits(self, last_tokens: Tensor) -> Tensor:
        """(b * k, w) in at least float32."""
        output = self.model(decoder_input_ids=last_tokens, use_cache=True, **self.inputs)
        logits: Tensor = output.logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def reorder(self, rows: Tensor) -> None:
        """Let each row go on from the cache of another."""
        self.inputs[self.cache_name].reorder_cache(rows)


def take(ids: Tensor, chosen: Tensor) -> Tensor:
    """(b, k, l) and (b, j) -> (b, j, l)."""
    return ids.gather(1, chosen[..., None].expand(-1, -1, ids.shape[2]))


def extend(ids: Tensor, tokens: Tensor) -> Tensor:
    """(b, k, l) and (b, k) -> (b, k, l + 1)."""
    return torch.cat([ids, tokens[..., None]], dim=2)

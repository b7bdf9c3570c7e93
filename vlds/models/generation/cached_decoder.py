"""A decoder that writes one token at a time and keeps its keys and values.

Shapes: b examples, k beams, w words of vocabulary, s encoder states, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlds.methods.context import BatchContext


class CachedStack:
    """A decoder's layers, which run over one token of each row at a time. It keeps the encoder's
    keys and values once per example, and those of written tokens once per beam."""

    def __init__(self, decoder: Any, states: Tensor, mask: Tensor) -> None:
        """Hugging Face's decoder, encoder states (b, s, d), their mask (b, s)."""
        self._decoder, self.states = decoder, states
        lowest = torch.finfo(states.dtype).min
        self._mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask.bool(), lowest)
        self._cache: dict[str, Any] = {}

    @property
    def has_begun(self) -> bool:
        """True once a token has run."""
        return bool(self._cache)

    def run(self, tokens: Tensor) -> Tensor:
        """Last tokens (b * k, 1) -> states (b * k, d)."""
        output = self._decoder(
            input_ids=tokens,
            encoder_hidden_states=self.states,
            encoder_attention_mask=self._mask[:, None, None],
            use_cache=True,
            **self._cache,
        )
        # Versions of transformers differ in the cache's name.
        name = "cache" if "cache" in output else "past_key_values"
        self._cache = {name: output[name]}
        states: Tensor = output.last_hidden_state[:, -1]
        return states

    def keep(self, rows: Tensor) -> None:
        """Let each row of the tokens written continue another, of (b * k,)."""
        (cache,) = self._cache.values()
        written = cache.self_attention_cache
        if (num_kept := len(written.layers[0].keys)) < len(rows):
            # After the first step there is one row an example.
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

    @property
    def num_examples(self) -> int:
        """Examples that are not finished."""
        return len(self._stacks[0].states)

    def next_logits(self, last_tokens: Tensor, size: int) -> Tensor:
        """(b, k) last tokens -> (b * k, w) logits in at least float32."""
        repeat = 1
        if not self._stacks[0].has_begun:  # all beams start with the same token
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
        """Let each row of the tokens written continue another, of (b * k,); None: from itself."""
        if rows is None:
            return
        for stack in self._stacks:
            stack.keep(rows)

    def select(self, examples: Tensor) -> None:
        """Continue with these examples only."""
        for stack in self._stacks:
            stack.select(examples)
        self._task_index = self._task_index[examples.cpu()]
        self._examples = self._examples[examples.cpu()]

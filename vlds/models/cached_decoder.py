"""A decoder that writes one token at a time and keeps its keys and values.

Shapes: b examples, k beams, w words of vocabulary, s encoder states, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlds.methods.routing import TaskRouting


class CachedDecoder:
    """Runs one decoder step at a time. It keeps the encoder's keys and values once per example, and
    those of written tokens once per beam."""

    def __init__(
        self,
        model: Any,
        vocabulary_logits: Callable[[Tensor], Tensor],
        states: Tensor,
        mask: Tensor,
        task_index: Tensor,
        routing: TaskRouting,
    ) -> None:
        """`model`: Hugging Face's; encoder states (b, s, d), their mask (b, s), tasks (b,)."""
        self.config, self.device = model.config, states.device
        self._decoder = model.get_decoder()
        self._vocabulary_logits = vocabulary_logits
        self._routing, self._task_index = routing, task_index
        self._states = states
        lowest = torch.finfo(states.dtype).min
        self._mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask.bool(), lowest)
        self._cache: dict[str, Any] = {}

    @property
    def num_examples(self) -> int:
        """Examples that are not finished."""
        return len(self._states)

    def next_logits(self, last_tokens: Tensor, size: int) -> Tensor:
        """(b, k) last tokens -> (b * k, w) logits in at least float32."""
        repeat = 1
        if not self._cache:  # all beams start with the same token
            last_tokens, repeat = last_tokens[:, :1], size
        tasks = self._task_index.repeat_interleave(last_tokens.shape[1])
        self._routing.set(tasks, self.device)
        output = self._decoder(
            input_ids=last_tokens.reshape(-1, 1),
            encoder_hidden_states=self._states,
            encoder_attention_mask=self._mask[:, None, None],
            use_cache=True,
            **self._cache,
        )
        # Versions of transformers differ in the cache's name.
        name = "cache" if "cache" in output else "past_key_values"
        self._cache = {name: output[name]}
        logits = self._vocabulary_logits(output.last_hidden_state[:, -1])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.repeat_interleave(repeat, 0) if repeat > 1 else logits

    def keep(self, rows: Tensor | None) -> None:
        """Let each row of the tokens written continue another, of (b * k,); None: from itself."""
        if rows is None:
            return
        (cache,) = self._cache.values()
        written = cache.self_attention_cache
        if (num_kept := len(written.layers[0].keys)) < len(rows):
            # After the first step there is one row an example.
            rows = rows // (len(rows) // num_kept)
        written.reorder_cache(rows)

    def select(self, examples: Tensor) -> None:
        """Continue with these examples only."""
        (cache,) = self._cache.values()
        size = len(cache.self_attention_cache.layers[0].keys) // self.num_examples
        rows = (examples[:, None] * size + torch.arange(size, device=self.device)).flatten()
        cache.self_attention_cache.batch_select_indices(rows)
        cache.cross_attention_cache.batch_select_indices(examples)
        self._states, self._mask = self._states[examples], self._mask[examples]
        self._task_index = self._task_index[examples.cpu()]

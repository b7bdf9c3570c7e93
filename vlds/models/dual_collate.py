"""Rows and their pictures -> Batch, for models that read pictures and texts apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlds.models.collate import Tokenizer, batch_of, token_ids
from vlds.schema import IGNORED_LABEL, Batch, Images, Row


@dataclass(frozen=True)
class DualCollator:
    """Makes batches. A row's text is its prompt and target together; a row of a task with a head
    has scores of classes instead of a target. A row's one label says whether it has a target."""

    tokenizer: Tokenizer

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows, of one size."""
        assert isinstance(images, Tensor)
        texts = [(r.example.prompt + (r.example.target or ""), r.max_target_tokens) for r in rows]
        ids = token_ids(self.tokenizer, texts)
        batch = batch_of(rows, ids, self.tokenizer.pad_token_id, evaluation=evaluation)
        missing = [row.example.target is None for row in rows]
        if not all(missing):
            batch.labels = torch.tensor([[IGNORED_LABEL if m else 0] for m in missing])
        batch.images = images
        return batch

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (prompt, most tokens) pairs."""
        return [len(tokens) for tokens in token_ids(self.tokenizer, prompts)]

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (answer, most tokens) pairs, with what ends a text."""
        return self.prompt_lengths(answers)

"""Rows and their pictures -> Batch, for causal models: prompt and answer are one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from vlds.models.chat_format import ChatFormat
from vlds.models.collate import batch_of, first_token_alone, padded
from vlds.schema import IGNORED_LABEL, Batch, Images, Row


@dataclass(frozen=True)
class CausalCollator:
    """Puts rows together, padded on the right. Pictures stand before the text and have no tokens in
    it."""

    chat: ChatFormat
    features: bool
    """True if images are stored features."""

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows (u, ...). Evaluation batches hold no
        answers."""
        assert not isinstance(images, list)
        prompts = self.prompts([(row.example.prompt, row.max_prompt_tokens) for row in rows])
        answers = [[] if evaluation else self.answer(row) for row in rows]
        tokens = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        batch = batch_of(rows, tokens, self.chat.pad_id, evaluation=evaluation)
        if any(answers):
            labels = [
                [*[IGNORED_LABEL] * len(prompt), *answer]
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            batch.labels, batch.labels_on_prompt = padded(labels, IGNORED_LABEL), True
        batch.images, batch.features = (None, images) if self.features else (images, None)
        return batch

    def answer(self, row: Row) -> list[int]:
        """Tokens of a row's target; none if it has no target, and one if it has classes."""
        example = row.example
        if example.target is None:
            return []
        ids = self.chat.answer_ids(example.target, row.max_target_tokens)
        return ids if example.class_scores is None else first_token_alone(ids, 0)

    def prompts(self, prompts: Sequence[tuple[str, int]]) -> list[list[int]]:
        """Tokens of (prompt, most tokens) pairs; equal ones are tokenized once."""
        ids_of = cache(self.chat.prompt_ids)
        return [ids_of(text, limit) for text, limit in prompts]

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (prompt, most tokens) pairs."""
        return [len(ids) for ids in self.prompts(prompts)]

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (answer, most tokens) pairs, with the end of the turn."""
        return [len(self.chat.answer_ids(text, most)) for text, most in answers]

"""Rows of Causal: the collator, which writes prompt and answer in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from vlds.models.collate import batch_of, first_token_alone, padded, recent
from vlds.models.kinds.chat_format import ChatFormat
from vlds.schema import (
    IGNORED_LABEL,
    Batch,
    Images,
    RefusedRows,
    Row,
    SkipSample,
    Turn,
)

PICTURES_BEFORE = "pictures_before"
"""Key in `Batch.types`: of each token of the text, how many of its row's pictures stand before it.
Missing where all stand before the text."""


@dataclass(frozen=True)
class CausalCollator:
    """Rows and their pictures -> Batch, padded on the right. Pictures have no tokens in the text:
    they stand before a question, and in a conversation where `PICTURES_BEFORE` says."""

    chat: ChatFormat
    features: bool
    """True if images are stored features."""

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows (u, ...). Evaluation batches hold no answers.

        Errors: RefusedRows that names all rows with a conversation that the chat template refuses.
        """
        assert not isinstance(images, list)
        # For this call alone: a cache that lives on would hold every prompt of an epoch.
        ids_of = cache(self.chat.turn_ids)
        tokens: list[list[int]] = []
        labels: list[list[int]] = []
        before: list[list[int]] = []
        shown = []
        refused = {}
        for number, row in enumerate(rows):
            example = row.example
            turns, pictures = recent(
                example.asked(len(row.images)), row.max_prompt_tokens, self.turns_length
            )
            # Frames of a clip are pictures here.
            turns = [turn.as_pictures for turn in turns]
            try:
                said = ids_of(tuple(turns), row.max_prompt_tokens)
            except SkipSample as error:  # the chat template does
                refused[number] = str(error)
                continue
            prompt = said.ids
            answer: list[int] = []
            if not evaluation and example.target is not None and example.learned:
                answer = self.chat.answer_ids(example.target, row.max_target_tokens)
                if example.class_scores is not None:
                    answer = first_token_alone(answer, 0)
            tokens.append([*prompt, *answer])
            marks = zip(prompt, said.learned, strict=True)
            labels.append([*(id if mark else IGNORED_LABEL for id, mark in marks), *answer])
            counts = said.pictures if example.turns else [len(pictures)] * len(prompt)
            before.append([*counts, *[len(pictures)] * len(answer)])
            shown.append(row._replace(images=[row.images[n] for n in pictures]))
        if refused:
            raise RefusedRows(refused)
        batch = batch_of(shown, tokens, self.chat.pad_id, evaluation=evaluation)
        if not evaluation and any(row.example.target is not None for row in rows):
            batch.labels, batch.labels_on_prompt = padded(labels, IGNORED_LABEL), True
        if any(row.example.turns for row in rows):
            batch.types[PICTURES_BEFORE] = padded(before, 0)
        batch.images, batch.features = (None, images) if self.features else (images, None)
        return batch

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        ids_of = cache(self.chat.prompt_ids)
        return [len(ids_of(text, limit)) for text, limit in prompts]

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        return [len(self.chat.answer_ids(text, most)) for text, most in answers]

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return self.chat.turns_length(turns)

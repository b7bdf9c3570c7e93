"""Rows and their pictures -> Batch, for models that read a text as a whole and answer with classes,
or with the words that are masked in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlds.models.collate import batch_of, padded
from vlds.schema import IGNORED_LABEL, Batch, Images, Row

MASKED, RANDOM = 0.8, 0.9
"""BERT's shares of the words to predict: below the first a mask stands in their place, below the
second any token, else the word itself."""


@dataclass(frozen=True)
class CrossModalCollator:
    """Puts rows together, padded on the right."""

    tokenizer: Any
    """A fast tokenizer of Hugging Face, which tells to which word a token belongs."""
    features: bool
    """True if images are stored features."""

    def __call__(self, rows: Sequence[Row], images: Images, *, evaluation: bool) -> Batch:
        """`images`: the distinct images of the rows, of one size. The label of an example with
        classes is its first token."""
        assert not isinstance(images, list)
        encoded = [self.encode(row) for row in rows]
        tokens = [ids for ids, _ in encoded]
        batch = batch_of(rows, tokens, self.tokenizer.pad_token_id, evaluation=evaluation)
        labels = [labels for _, labels in encoded]
        if any(label != IGNORED_LABEL for of_row in labels for label in of_row):
            batch.labels, batch.labels_on_prompt = padded(labels, IGNORED_LABEL), True
        batch.images, batch.features = (None, images) if self.features else (images, None)
        return batch

    def encode(self, row: Row) -> tuple[list[int], list[int]]:
        """Tokens of a row's text, as the model reads them, and the label of each."""
        example = row.example
        encoding = self.tokenizer(example.prompt, truncation=True, max_length=row.max_prompt_tokens)
        ids: list[int] = list(encoding["input_ids"])
        labels = [IGNORED_LABEL] * len(ids)
        if example.class_scores is not None:
            labels[0] = ids[0]
        elif example.masked_words is not None:
            for place, word in enumerate(encoding.word_ids()):
                if word in example.masked_words:
                    labels[place] = ids[place]
                    ids[place] = self.shown(ids[place], example.masked_words[word], place)
        return ids, labels

    def shown(self, token: int, draw: float, place: int) -> int:
        """What stands in the place of a token to predict; `draw`: from 0 to 1, its word's."""
        if draw < MASKED:
            return int(self.tokenizer.mask_token_id)
        if draw < RANDOM:
            share = (draw - MASKED) / (RANDOM - MASKED)
            return int(share * len(self.tokenizer) + place) % len(self.tokenizer)
        return token

    def prompt_lengths(self, prompts: Sequence[tuple[str, int]]) -> list[int]:
        """Tokens of (prompt, most tokens) pairs."""
        encode: Mapping[str, list[list[int]]]
        lengths = []
        for text, most in prompts:
            encode = self.tokenizer(text, truncation=True, max_length=most)
            lengths.append(len(encode["input_ids"]))
        return lengths

    def answer_lengths(self, answers: Sequence[tuple[str, int]]) -> list[int]:
        """One label for each answer."""
        return [1] * len(answers)

"""Examples and their pictures -> Batch.

An image that several examples of the micro-batch ask about is stored once in `images`.
b examples, u distinct images, n images an example, l prompt tokens, t target tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Example


class Tokenizer(Protocol):
    """What batches need of a Hugging Face tokenizer."""

    pad_token_id: int

    def __call__(
        self, texts: list[str], /, *, add_special_tokens: bool, truncation: bool, max_length: int
    ) -> Mapping[str, list[list[int]]]: ...


class Row(NamedTuple):
    """One example on its way into a batch."""

    example: Example
    task_index: int
    max_prompt_tokens: int
    max_target_tokens: int
    images: range
    """Indices of its images in the batch's stack."""
    valid: bool = True


class ImageStack:
    """The distinct images of a batch: decoded pictures (3, h, w) or stored features (v, dim)."""

    def __init__(self, num_images: int) -> None:
        """`num_images`: a guess of how many will be added."""
        self._guess = num_images
        self._array: np.ndarray | None = None
        self._num_images = 0

    def __len__(self) -> int:
        return self._num_images

    def add(self, images: Sequence[np.ndarray]) -> range:
        """Copy the images of a sample to the stack and return their indices.

        Errors: ValueError for features of different shapes in one batch.
        """
        first = self._num_images
        for image in images:
            if self._array is None:
                self._array = np.empty((self._guess, *image.shape), image.dtype)
            elif image.shape != self._array.shape[1:]:
                raise ValueError(
                    f"stored features of different shapes in one batch: {self._array.shape[1:]}, "
                    f"{image.shape}; compute them with one encoder and one image size"
                )
            elif self._num_images == len(self._array):
                self._array = np.concatenate([self._array, np.empty_like(self._array)])
            self._array[self._num_images] = image
            self._num_images += 1
        return range(first, self._num_images)

    def tensor(self) -> Tensor | None:
        """(u, ...), sharing the stack's memory; None without images."""
        return None if self._array is None else torch.from_numpy(self._array[: self._num_images])


def collate(
    rows: Sequence[Row],
    stack: ImageStack,
    tokenizer: Tokenizer,
    *,
    features: bool,
    evaluation: bool,
) -> Batch:
    """Put rows together, padded on the right. `features`: these are on the stack."""
    prompts = token_ids(tokenizer, [(r.example.prompt, r.max_prompt_tokens) for r in rows])
    input_ids = _padded(prompts, tokenizer.pad_token_id)
    lengths = torch.tensor([len(tokens) for tokens in prompts])
    images = stack.tensor()
    return Batch(
        ids=[row.example.id for row in rows],
        task_index=torch.tensor([row.task_index for row in rows]),
        input_ids=input_ids,
        attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
        labels=_labels(rows, tokenizer),
        weights=torch.tensor([row.example.weight for row in rows], dtype=torch.float32),
        valid=torch.tensor([row.valid for row in rows]),
        image_index=_padded([row.images for row in rows], NO_IMAGE),
        images=None if features else images,
        features=images if features else None,
        references=[row.example.reference for row in rows] if evaluation else [],
        samples=[row.example.sample for row in rows] if evaluation else [],
    )


def _labels(rows: Sequence[Row], tokenizer: Tokenizer) -> Tensor | None:
    """(b, t), ignored for examples without a target; None if no example has one."""
    if all(row.example.target is None for row in rows):
        return None
    texts = [(row.example.target or "", row.max_target_tokens) for row in rows]
    pairs = zip(rows, token_ids(tokenizer, texts), strict=True)
    return _padded(
        [[] if row.example.target is None else tokens for row, tokens in pairs], IGNORED_LABEL
    )


def token_ids(tokenizer: Tokenizer, texts: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Token ids of (text, most tokens) pairs: one call of the tokenizer for each limit.

    Equal texts, frequent among prompts and answers of one batch, are tokenized once.
    """
    ids_of: dict[tuple[str, int], list[int]] = {}
    for limit in {limit for _, limit in texts}:
        distinct = list(dict.fromkeys(text for text, its_limit in texts if its_limit == limit))
        tokens = tokenizer(distinct, add_special_tokens=True, truncation=True, max_length=limit)
        for text, ids in zip(distinct, tokens["input_ids"], strict=True):
            ids_of[text, limit] = ids
    return [ids_of[key] for key in texts]


def _padded(lines: Sequence[Sequence[int]], value: int) -> Tensor:
    """(lines, longest) int64; one column of `value` where all lines are empty."""
    columns = list(zip_longest(*lines, fillvalue=value)) or [(value,) * len(lines)]
    return torch.from_numpy(np.array(columns, np.int64).T.copy())

"""Examples and their pictures -> Batch.

Each distinct image of the micro-batch stands once in `images`, however many examples ask about it.
b examples, u distinct images, n images an example, l prompt tokens, t target tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Example


@dataclass(frozen=True)
class Row:
    """One example on its way into a batch."""

    example: Example
    task_index: int
    max_prompt_tokens: int
    max_target_tokens: int
    image_key: Hashable
    """The same for rows of the same sample."""
    images: Sequence[np.ndarray] = field(repr=False)
    """Decoded pictures (3, h, w) or stored features (v, dim)."""
    valid: bool = True


def collate(rows: Sequence[Row], tokenizer: Any, *, features: bool, evaluation: bool) -> Batch:
    """Put rows together, padded on the right. `features` says what the rows' images are.

    Errors: ValueError where features of one batch differ in shape.
    """
    prompts = token_ids(tokenizer, [(r.example.prompt, r.max_prompt_tokens) for r in rows])
    input_ids = _padded(prompts, tokenizer.pad_token_id)
    lengths = torch.tensor([len(tokens) for tokens in prompts])
    image_index, images = _images(rows)
    return Batch(
        ids=[row.example.id for row in rows],
        task_index=torch.tensor([row.task_index for row in rows]),
        input_ids=input_ids,
        attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
        labels=_labels(rows, tokenizer),
        weights=torch.tensor([row.example.weight for row in rows], dtype=torch.float32),
        valid=torch.tensor([row.valid for row in rows]),
        image_index=image_index,
        images=None if features else images,
        features=images if features else None,
        references=[row.example.reference for row in rows] if evaluation else [],
    )


def _labels(rows: Sequence[Row], tokenizer: Any) -> Tensor | None:
    """(b, t), all ignored for examples without a target; None where there is no target at all."""
    with_target = [n for n, row in enumerate(rows) if row.example.target is not None]
    if not with_target:
        return None
    texts = [(rows[n].example.target or "", rows[n].max_target_tokens) for n in with_target]
    targets: list[list[int]] = [[] for _ in rows]
    for n, tokens in zip(with_target, token_ids(tokenizer, texts), strict=True):
        targets[n] = tokens
    return _padded(targets, IGNORED_LABEL)


def token_ids(tokenizer: Any, texts: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Token numbers of (text, most tokens) pairs: one call of the tokenizer for each limit.

    Equal texts, frequent among prompts and answers of one batch, are tokenized once.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for limit in {limit for _, limit in texts}:
        distinct = list(dict.fromkeys(text for text, its_limit in texts if its_limit == limit))
        tokens = tokenizer(distinct, add_special_tokens=True, truncation=True, max_length=limit)
        for text, ids in zip(distinct, tokens["input_ids"], strict=True):
            found[text, limit] = ids
    return [found[key] for key in texts]


def _padded(lines: Sequence[Sequence[int]], value: int) -> Tensor:
    """(lines, longest) int64."""
    out = np.full((len(lines), max(1, *map(len, lines))), value, np.int64)
    for number, line in enumerate(lines):
        out[number, : len(line)] = line
    return torch.from_numpy(out)


def _images(rows: Sequence[Row]) -> tuple[Tensor, Tensor | None]:
    """(b, n) numbers of the rows' images, and the distinct images (u, ...)."""
    width = max(len(row.images) for row in rows)
    index = np.full((len(rows), width), NO_IMAGE, np.int64)
    first: dict[Hashable, int] = {}
    distinct: list[np.ndarray] = []
    for number, row in enumerate(rows):
        if row.image_key not in first:
            first[row.image_key] = len(distinct)
            distinct += row.images
        start = first[row.image_key]
        index[number, : len(row.images)] = np.arange(start, start + len(row.images))
    if not distinct:
        return torch.from_numpy(index), None
    if len(shapes := {array.shape for array in distinct}) > 1:
        raise ValueError(
            f"stored features of different shapes in one batch: {sorted(shapes)}; "
            "compute them with one encoder and one image size"
        )
    return torch.from_numpy(index), torch.from_numpy(np.stack(distinct))

"""Examples and pictures become one padded batch, each picture once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlds.data.collate import Row, collate
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Example


class Words:
    """One token a word, its length; 0 pads."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], int]] = []

    def __call__(
        self, texts: list[str], add_special_tokens: bool, truncation: bool, max_length: int
    ) -> dict[str, list[list[int]]]:
        self.seen.append((texts, max_length))
        return {"input_ids": [[len(w) for w in text.split()][:max_length] for text in texts]}


def row(
    id: str, prompt: str, target: str | None, key: str, num_images: int, **changes: object
) -> Row:
    images = [np.full((3, 2, 2), hash((key, n)) % 251, np.uint8) for n in range(num_images)]
    limits = {"max_prompt_tokens": 3, "max_target_tokens": 2, "task_index": 0}
    example = Example(id, "t", prompt, target, weight=0.5, reference=id.upper())
    return Row(example=example, image_key=key, images=images, **(limits | changes))  # type: ignore[arg-type]


def test_padding_labels_and_limits() -> None:
    rows = [
        row("a", "a bb ccc dddd", "aaaaa", "k", 1),
        row("b", "a", "a bb ccc", "k", 1, task_index=2, max_prompt_tokens=9, max_target_tokens=3),
    ]
    batch = collate(rows, Words(), features=False, evaluation=False)
    assert batch.ids == ["a", "b"]
    assert batch.input_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[5, IGNORED_LABEL, IGNORED_LABEL], [1, 2, 3]]
    assert batch.task_index.tolist() == [0, 2]
    assert batch.task_index.dtype == batch.labels.dtype == batch.input_ids.dtype == torch.int64
    assert batch.weights.tolist() == [0.5, 0.5]
    assert batch.references == []


def test_each_picture_stands_once() -> None:
    rows = [
        row("a", "a", "x", "one", 1),
        row("b", "b", "x", "pair", 2),
        row("c", "c", "x", "one", 1),
        row("d", "d", "x", "none", 0),
    ]
    batch = collate(rows, Words(), features=False, evaluation=False)
    assert batch.images is not None
    assert batch.images.shape == (3, 3, 2, 2)
    assert batch.images.dtype == torch.uint8
    assert batch.image_index.tolist() == [
        [0, NO_IMAGE],
        [1, 2],
        [0, NO_IMAGE],
        [NO_IMAGE, NO_IMAGE],
    ]
    for number, entry in enumerate(rows):
        for n, image in enumerate(entry.images):
            index = batch.image_index[number, n]
            np.testing.assert_array_equal(batch.images[index].numpy(), image)


def test_equal_texts_are_tokenized_once_for_each_limit() -> None:
    tokenizer = Words()
    rows = [row(str(n), "same text", "yes", "k", 1, max_prompt_tokens=2 + n % 2) for n in range(6)]
    collate(rows, tokenizer, features=False, evaluation=False)
    prompts = [seen for seen in tokenizer.seen if seen[0] != ["yes"]]
    assert sorted(prompts, key=lambda seen: seen[1]) == [(["same text"], 2), (["same text"], 3)]


def test_evaluation_has_references_and_may_lack_targets() -> None:
    rows = [row("a", "a", None, "k", 1), row("b", "b", "x y", "k", 1, valid=False)]
    batch = collate(rows, Words(), features=False, evaluation=True)
    assert batch.references == ["A", "B"]
    assert batch.valid.tolist() == [True, False]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[IGNORED_LABEL] * 2, [1, 1]]
    assert collate(rows[:1], Words(), features=False, evaluation=True).labels is None


def test_features_go_into_features() -> None:
    entries = [
        Row(
            example=Example(str(n), "t", "a", "b"),
            task_index=0,
            max_prompt_tokens=3,
            max_target_tokens=3,
            image_key=n,
            images=[np.full((width, 4), n, np.float16)],
        )
        for n, width in enumerate((2, 2, 3))
    ]
    batch = collate(entries[:2], Words(), features=True, evaluation=False)
    assert batch.images is None
    assert batch.features is not None
    assert batch.features.dtype == torch.float16
    assert batch.features[:, 0, 0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="different shapes"):
        collate(entries, Words(), features=True, evaluation=False)

"""Examples and pictures become one padded batch, each picture once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlds.data.streams.assemble import ImageStack
from vlds.models.collate import JointCollator
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Example, Row


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


ONE = range(1)


def row(id: str, prompt: str, target: str | None, images: range = ONE, **changes: object) -> Row:
    limits = {"max_prompt_tokens": 3, "max_target_tokens": 2, "task_index": 0}
    example = Example(id, "t", prompt, target, weight=0.5, reference=id.upper())
    return Row(example=example, images=images, **(limits | changes))  # type: ignore[arg-type]


def collated(rows: list[Row], tokenizer: Words | None = None, *, evaluation: bool = False) -> Batch:
    """Rows about one picture."""
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    return JointCollator(tokenizer or Words(), features=False)(rows, images, evaluation=evaluation)


def test_padding_labels_and_limits() -> None:
    rows = [
        row("a", "a bb ccc dddd", "aaaaa"),
        row("b", "a", "a bb ccc", task_index=2, max_prompt_tokens=9, max_target_tokens=3),
    ]
    batch = collated(rows)
    assert batch.ids == ["a", "b"]
    assert batch.input_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[5, IGNORED_LABEL, IGNORED_LABEL], [1, 2, 3]]
    assert batch.task_index.tolist() == [0, 2]
    assert batch.task_index.dtype == batch.labels.dtype == batch.input_ids.dtype == torch.int64
    assert batch.weights.tolist() == [0.5, 0.5]
    assert batch.references == []


def test_rows_point_to_the_pictures_of_the_stack() -> None:
    pictures = ImageStack(1)
    one = pictures.add([np.zeros((3, 2, 2), np.uint8)])
    pair = pictures.add([np.full((3, 2, 2), n, np.uint8) for n in (1, 2)])
    rows = [
        row("a", "a", "x", one),
        row("b", "b", "x", pair),
        row("c", "c", "x", one),
        row("d", "d", "x", range(0)),
    ]
    batch = JointCollator(Words(), features=False)(rows, pictures.images(), evaluation=False)
    assert batch.images is not None
    assert batch.images.shape == (3, 3, 2, 2)
    assert batch.images.dtype == torch.uint8
    none = NO_IMAGE
    assert batch.image_index.tolist() == [[0, none], [1, 2], [0, none], [none, none]]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_equal_texts_are_tokenized_once_for_each_limit() -> None:
    tokenizer = Words()
    rows = [row(str(n), "same text", "yes", max_prompt_tokens=2 + n % 2) for n in range(6)]
    collated(rows, tokenizer)
    prompts = [seen for seen in tokenizer.seen if seen[0] != ["yes"]]
    assert sorted(prompts, key=lambda seen: seen[1]) == [(["same text"], 2), (["same text"], 3)]


def test_evaluation_has_references_and_may_lack_targets() -> None:
    rows = [row("a", "a", None), row("b", "b", "x y", valid=False)]
    batch = collated(rows, evaluation=True)
    assert batch.references == ["A", "B"]
    assert batch.valid.tolist() == [True, False]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[IGNORED_LABEL] * 2, [1, 1]]
    assert collated(rows[:1], evaluation=True).labels is None


def test_features_go_into_features() -> None:
    features = ImageStack(2)
    numbers = [features.add([np.full((2, 4), n, np.float16)]) for n in range(2)]
    rows = [row(str(n), "a", "b", images) for n, images in enumerate(numbers)]
    batch = JointCollator(Words(), features=True)(rows, features.images(), evaluation=False)
    assert batch.images is None
    assert batch.features is not None
    assert batch.features.dtype == torch.float16
    assert batch.features[:, 0, 0].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"different shapes in one batch: \(2, 4\), \(3, 4\)"):
        features.add([np.full((3, 4), 2, np.float16)])

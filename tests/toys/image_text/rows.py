"""Rows about pictures, and models, of the tiny image-text types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.toys.image_text import configs, pictures, save_tiny
from vlds.models import ImageTextToText
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.image_text_model import ImageTextModel
from vlds.models.kinds.image_text_rows import ImageTextCollator
from vlds.models.methods import Method
from vlds.schema import Batch, Example, Row

TASKS = ("vqa", "caption")
TEXTS = (("what is red ?", "blue sky"), ("what is this thing here ?", "dog"), ("why ?", "a cat"))
NUMBERS: Mapping[str, Sequence[int]] = {
    "florence2": (1, 1, 1), "blip-2": (1, 1, 1), "paligemma": (1, 2, 1), "got_ocr2": (1, 2, 1),
}  # fmt: skip
"""Pictures of the three rows, for types that do not take any number; others have 1, 2, 0."""


@dataclass(frozen=True)
class Tiny:
    """A tiny model of one type, and rows for it."""

    model_type: str
    kind: ImageTextToText
    processor: Any

    @property
    def collator(self) -> ImageTextCollator:
        return self.kind.collator(self.processor)

    def build(
        self, methods: dict[str, Method] | None = None, seed: int = 0, **fields: Any
    ) -> ImageTextModel:
        setup = ModelSetup(kind=self.kind, methods=methods or {}, seed=seed, **fields)
        model = build_model(setup, TASKS, torch.float32, self.processor)
        assert isinstance(model, ImageTextModel)
        return model

    def rows(self) -> list[Row]:
        """Three rows of two tasks, with one, two and no pictures where the type takes them."""
        return rows_with(NUMBERS.get(self.model_type, (1, 2, 0)))

    def batch(self, rows: Sequence[Row], *, evaluation: bool = False) -> Batch:
        return self.collator(rows, images(), evaluation=evaluation)

    def run_by(self, backbone: Any, model: ImageTextModel) -> Tensor:
        """Logits of Hugging Face's class, for what a model makes of the rows; each in the place of
        the token that it predicts."""
        logits: Tensor = backbone(**model.inputs(self.batch(self.rows()))).logits
        return logits if model.answers_apart else F.pad(logits[:, :-1], (0, 0, 1, 0))


def rows_with(numbers: Sequence[int]) -> list[Row]:
    """Three rows of two tasks, with these numbers of pictures."""
    rows, start = [], 0
    for index, (number, (prompt, target)) in enumerate(zip(numbers, TEXTS, strict=True)):
        example = Example(str(index), TASKS[index % 2], prompt, target)
        rows.append(Row(example, index % 2, 20, 12, range(start, start + number)))
        start += number
    return rows


def images() -> list[Tensor]:
    """Pictures (3, h, w) of unlike sizes."""
    return [
        torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        for picture in pictures(4, seed=0)
    ]


@cache
def tiny(model_type: str) -> Tiny:
    """The tiny model of a type, saved once in each process."""
    return saved(model_type)


@cache
def wide(model_type: str) -> Tiny:
    """The same with layers of 64 and 128 inputs, whose weights can be packed in blocks of 64."""
    sizes: dict[str, Any] = {"WIDTH": 64, "FFN_WIDTH": 128, "VISION_WIDTH": 64, "HEADS": 4}
    with mock.patch.multiple(configs, **sizes):
        return saved(model_type)


def saved(model_type: str) -> Tiny:
    """A model in a new folder."""
    folder = Path(mkdtemp(prefix=f"vlds-{model_type}-"))
    save_tiny(model_type, folder)
    kind = ImageTextToText(path=str(folder))
    return Tiny(model_type, kind, kind.load_processor())

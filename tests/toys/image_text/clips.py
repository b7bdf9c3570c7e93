"""Rows with clips for the tiny image-text types."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toys.image_text.rows import TASKS, Tiny
from vlds.models.kinds.media import APART
from vlds.schema import Clip, Example, Row, Turn

RATE, NUM_FRAMES = 25, 132
INDICES = (8, 24, 41, 57)
CLIP = Clip(tuple(n / RATE for n in INDICES), NUM_FRAMES / RATE)
SHORT = Clip((0.2, 0.6), 0.8)


def frames(count: int, seed: int = 0, size: tuple[int, int] = (40, 60)) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = (3, *size)
    return [torch.randint(256, shape, dtype=torch.uint8, generator=draw) for _ in range(count)]


def row_of(number: int, start: int, *turns: Turn) -> Row:
    """A row whose pictures are those of the batch from `start` on."""
    count = sum(turn.num_pictures for turn in turns)
    example = Example(str(number), TASKS[number % 2], "", "blue sky", turns=turns)
    return Row(example, number % 2, 200, 20, range(start, start + count))


def talk(model: Tiny) -> tuple[Turn, ...]:
    """Two questions, about a clip and a picture where the type takes both, with a learned answer
    between them."""
    second = () if model.model_type in APART else (None,)
    return (
        Turn("user", ("look: ", CLIP, "what moves ?")),
        Turn("assistant", ("a red car",), True),
        Turn("user", (*second, "and why ?")),
    )


def mixed(model: Tiny) -> tuple[list[Row], list[Tensor]]:
    """Rows with clips of unlike lengths, with a picture, and with neither."""
    return [
        row_of(0, 0, Turn("user", (SHORT, "what ?"))),
        row_of(1, 2, *talk(model)),
        row_of(2, 7, Turn("user", ("why ?",))),
        row_of(3, 7, Turn("user", (None, "who is it ?"))),
    ], [*frames(2, 1), *frames(5, 2), *frames(1, 3, (64, 30))]

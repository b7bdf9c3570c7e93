"""Pictures reach the processor of an image-text model within the pixels that a recipe allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.toys.image_text.rows import tiny
from tests.toys.pictures import noise
from vlds.data.shards.pictures import decode_image
from vlds.models import ImageTextToText
from vlds.schema import NaturalSize


@pytest.mark.parametrize(
    ("sides", "spec", "expected"),
    [
        ((300, 1), NaturalSize(10**6), (1, 300)),
        ((300, 1), NaturalSize(10**6, 30_000), (10, 3000)),
        ((300, 1), NaturalSize(200, 100), (1, 244)),
        ((7, 9), NaturalSize(10**6, 100), (12, 9)),
        ((7, 9), NaturalSize(10**6, 63), (9, 7)),
        ((40, 10), NaturalSize(100, 100), (5, 20)),
    ],
)
def test_sides_keep_their_ratio(
    sides: tuple[int, int], spec: NaturalSize, expected: tuple[int, int]
) -> None:
    """Sides: width and height; expected: height and width."""
    assert decode_image(noise(0, sides), spec).shape == (3, *expected)


def test_small_pictures_have_more_visual_tokens() -> None:
    """Of a type whose processor enlarges none."""
    model = tiny("mistral3")
    tokens = []
    for min_pixels in (None, 56 * 56):
        kind = replace(model.kind, min_pixels=min_pixels)
        small = torch.from_numpy(decode_image(noise(0, (10, 10)), kind.image))
        collator = kind.collator(model.processor)
        prompt, _, media = collator.process(collator.chat.prompt("it", 1), [small])
        assert media["image_sizes"].tolist() == ([[56, 56]] if min_pixels else [[28, 28]])
        tokens.append(len(prompt))
    assert tokens[1] - tokens[0] == 4  # three more, and the end of a line


def test_limits_that_leave_no_size() -> None:
    ImageTextToText(path="x", min_pixels=100, max_pixels=100)
    with pytest.raises(ValueError, match=r"^min_pixels: got 101, more than max_pixels, 100; give"):
        ImageTextToText(path="x", min_pixels=101, max_pixels=100)

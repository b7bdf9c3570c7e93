"""Sheets of a clip's frames."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.toys.films import COLORS
from vlds.report.clips import Frames, digest_of, small_picture


def frame(number: int, size: tuple[int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, COLORS[number]).save(buffer, "PNG")
    return buffer.getvalue()


def clip(count: int, size: tuple[int, int] = (320, 200)) -> Frames:
    return Frames([frame(n, size) for n in range(count)], [n / 2 for n in range(count)])


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [0, 2, 5, 7])]
)
@pytest.mark.parametrize("size", [(320, 200), (30, 60)])
def test_frames_stand_in_rows_at_equal_distances(
    count: int, shown: list[int], size: tuple[int, int]
) -> None:
    sheet = small_picture(clip(count, size), 300)
    assert sheet is not None
    with Image.open(BytesIO(sheet)) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    assert max(height, width) <= 300
    columns, rows = min(2, count), -(-len(shown) // 2)
    for place, number in enumerate(shown):
        row, column = divmod(place, columns)
        middle = pixels[int((row + 0.5) / rows * height), int((column + 0.5) / columns * width)]
        assert np.abs(middle - COLORS[number]).max() < 20, number
    assert pixels[0, 0].max() < 60  # the dark border, by which one sees that it is a clip


def test_damaged_frames_are_left_out_and_clips_told_apart() -> None:
    whole = clip(3)
    torn = whole._replace(pictures=[b"x", *whole.pictures[1:]])
    sheet = small_picture(torn)
    assert sheet is not None
    assert sheet != small_picture(whole)
    assert small_picture(whole._replace(pictures=[b"x"] * 3)) is None
    assert small_picture(b"x") is None
    known = [whole, torn, clip(2), *whole.pictures, memoryview(frame(7, (9, 9)))]
    assert len({digest_of(seen) for seen in known}) == len(known)

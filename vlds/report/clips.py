"""Small pictures of what an example shows: of a picture a thumbnail, of a clip some of its frames
on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from io import BytesIO
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from vlds.data.shards.pictures import JPEG_QUALITY, THUMBNAIL_SIZE, open_picture, thumbnail
from vlds.schema import Encoded

MOST_FRAMES = 4
"""Frames on a sheet, at equal distances, the first and the last among them."""
COLUMNS = 2
GAP_SHARE = 80
"""The sheet's side in widths of the dark gaps, by which one sees that it is a clip."""
DARK, LIGHT = (17, 17, 17), (255, 255, 255)
LETTERS_SHARE = 9
"""A frame's side in heights of the letters that say its time."""
TINY_RATIO = 2
SMALLEST_LETTERS = 9
"""In pixels; smaller ones cannot be read, and are left out."""


class Frames(NamedTuple):
    """The frames of a clip that a sample holds."""

    pictures: Sequence[Encoded]
    times: Sequence[float]
    """Seconds of each from the clip's beginning."""


Seen: TypeAlias = Encoded | Frames
"""A picture or clip of an example."""


def digest_of(seen: Seen) -> str:
    """Tells pictures and clips apart."""
    parts = seen.pictures if isinstance(seen, Frames) else [seen]
    return sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()[:24]


def small_picture(seen: Seen, longest: int = THUMBNAIL_SIZE) -> bytes | None:
    """A small PNG or JPEG with at most `longest` pixels on a side; None if nothing can be
    decoded."""
    return sheet(seen, longest) if isinstance(seen, Frames) else thumbnail(seen, longest)


def sheet(clip: Frames, longest: int) -> bytes | None:
    """Frames of a clip in rows, each with its time, as JPEG; None if none can be decoded."""
    count = min(MOST_FRAMES, len(clip.pictures))
    # Of 8 frames the numbers 0 2 5 7.
    chosen = [round(n * (len(clip.pictures) - 1) / max(1, count - 1)) for n in range(count)]
    columns = min(COLUMNS, count)
    gap = max(2, longest // GAP_SHARE)
    side = (longest - gap * (columns + 1)) // columns
    frames: list[tuple[Image.Image, float]] = []
    for number in chosen:
        if (data := thumbnail(clip.pictures[number], side)) is not None:
            with open_picture(data) as opened:
                opened.load()
                frames.append((fitted(opened, side), clip.times[number]))
    if not frames:
        return None
    width = max(frame.width for frame, _ in frames)
    height = max(frame.height for frame, _ in frames)
    rows = -(-len(frames) // columns)
    size = columns * (width + gap) + gap, rows * (height + gap) + gap
    whole = Image.new("RGB", size, DARK)
    letters = max(width, height) // LETTERS_SHARE
    for number, (frame, time) in enumerate(frames):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (height + gap)
        whole.paste(frame, (left, top))
        if letters >= SMALLEST_LETTERS:
            write(whole, f"{time:.1f} s", (left, top + height), letters)
    encoded = BytesIO()
    whole.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def fitted(frame: Image.Image, side: int) -> Image.Image:
    """A frame whose longer side has so many pixels; a tiny one keeps hard edges."""
    ratio = side / max(frame.size)
    how = Image.Resampling.NEAREST if ratio >= TINY_RATIO else Image.Resampling.LANCZOS
    size = (max(1, round(frame.width * ratio)), max(1, round(frame.height * ratio)))
    return frame.convert("RGB").resize(size, how)


def write(whole: Image.Image, text: str, corner: tuple[int, int], letters: int) -> None:
    """Write a text on a dark field whose lower left corner is given."""
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(letters)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = letters // 4
    x, y = corner[0], corner[1] - (bottom - top) - 2 * pad
    draw.rectangle((x, y, x + right - left + 2 * pad, corner[1]), fill=DARK)
    draw.text((x + pad - left, y + pad - top), text, font=font, fill=LIGHT)

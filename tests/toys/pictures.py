"""Small pictures with the traps of real ones."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
TURNED_LEFT = 6
"""EXIF orientation: shown upright after a quarter turn."""


def jpeg(mode: str = "RGB", width: int = 40, height: int = 24, **options: Any) -> bytes:
    """A JPEG with a gradient, so that a rotation shows."""
    buffer = io.BytesIO()
    gradient(width, height).convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def rotated_jpeg() -> bytes:
    """40x24 in the file, 24x40 to the viewer."""
    return jpeg(exif=orientation(TURNED_LEFT))


def orientation(value: Any) -> bytes:
    """EXIF metadata with this orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif.tobytes()


def png(mode: str = "RGB", width: int = 40, height: int = 24) -> bytes:
    """A PNG of any mode, palettes and transparency included."""
    return encoded("PNG", mode, width, height)


def encoded(form: str, mode: str = "RGB", width: int = 40, height: int = 24, **more: Any) -> bytes:
    """A picture with a gradient, in one of Pillow's formats."""
    buffer = io.BytesIO()
    gradient(width, height).convert(mode).save(buffer, form, **more)
    return buffer.getvalue()


def animation(form: str) -> bytes:
    """Two frames or pages; the second is upside down."""
    first = gradient(40, 24)
    buffer = io.BytesIO()
    lossless = {"lossless": True} if form == "WEBP" else {}
    first.save(buffer, form, save_all=True, append_images=[first.rotate(180)], **lossless)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, blue downwards."""
    image = Image.new("RGB", (width, height))
    image.putdata(
        [(255 * x // width, 40, 255 * y // height) for y in range(height) for x in range(width)]
    )
    return image


def noise(
    seed: int,
    size: tuple[int, int] = (16, 16),
    form: str = "PNG",
    mode: str = "RGB",
    **options: Any,
) -> bytes:
    """A small picture of noise, in one of Pillow's formats."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()

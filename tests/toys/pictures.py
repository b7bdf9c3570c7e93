"""Small pictures with the traps of real ones, made on the spot; and a look into what was packed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlds.data.shards.store import open_dataset
from vlds.schema import Sample

ORIENTATION = 0x0112
TURNED_LEFT = 6
"""EXIF orientation: shown upright after a quarter turn."""


def jpeg(mode: str = "RGB", width: int = 40, height: int = 24, **options: Any) -> bytes:
    """A JPEG with a gradient, so that a turn can be seen."""
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
    """A PNG of any mode, palette and transparency included."""
    return encoded("PNG", mode, width, height)


def encoded(form: str, mode: str = "RGB", width: int = 40, height: int = 24, **more: Any) -> bytes:
    """A picture in one of Pillow's formats."""
    buffer = io.BytesIO()
    gradient(width, height).convert(mode).save(buffer, form, **more)
    return buffer.getvalue()


def animation(form: str) -> bytes:
    """Two frames; the second is upside down."""
    first = gradient(40, 24)
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=[first.rotate(180)], lossless=True)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, blue downwards."""
    image = Image.new("RGB", (width, height))
    image.putdata(
        [(255 * x // width, 40, 255 * y // height) for y in range(height) for x in range(width)]
    )
    return image


def write(path: Path, content: Any) -> Path:
    """Bytes as they are, rows of a list as a JSON list, everything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def packed(folder: Path) -> dict[str, Sample]:
    """Every sample of a packed data set by its id, read as a run reads it."""
    dataset = open_dataset(folder)
    samples = [dataset.read(number) for number in range(dataset.num_samples)]
    assert len({sample.id for sample in samples}) == len(samples)
    return {sample.id: sample for sample in samples}


def annotation(samples: Mapping[str, Sample], wanted: str) -> Mapping[str, Any]:
    """The annotation of that id, whichever sample holds it."""
    return next(a for sample in samples.values() for a in sample.annotations if a["id"] == wanted)


def noise_png(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

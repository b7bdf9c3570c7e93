"""Compares formats for resized pictures: size, decoding time, and what changes for an encoder.

    python benchmarks/pictures.py --pictures PHOTOS --model tf_efficientnet_lite0 --weights FILE

The decoder of a run squashes every picture below a folder to a square of each size; the program
stores it in each format and reads it with the same decoder. `change` is the distance of a timm
model's last feature map from that of the original file at the same size, relative to its norm, in
percent: mean and largest over the pictures. A lossless format has 0. Decoding is CPU time, the
median of the rounds, in which all rows alternate; encoding is timed once. Tables go to stdout.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_prep.packing.picture import (
    ENCODINGS,
    PictureRule,
    picture_fault,
    prepare_picture,
    true_extension,
)
from vlds.data.shards.pictures import decode_image
from vlds.models.vision import Timm
from vlds.models.vision.base import GridEncoder
from vlds.schema import ImageSpec

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
BATCH = 20
FORMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "JPEG 95, 4:2:0": ("JPEG", {"quality": 95, "subsampling": "4:2:0"}),
    "JPEG 95, 4:4:4 (`jpeg`)": ("JPEG", ENCODINGS["jpeg"]),
    "JPEG 98, 4:4:4": ("JPEG", {"quality": 98, "subsampling": "4:4:4"}),
    "JPEG 100, 4:4:4": ("JPEG", {"quality": 100, "subsampling": "4:4:4"}),
    "WebP 95": ("WEBP", {"quality": 95}),
    "WebP 100": ("WEBP", {"quality": 100}),
    "WebP lossless (`webp`)": ("WEBP", ENCODINGS["webp"]),
    "WebP lossless, least effort": ("WEBP", {"lossless": True, "method": 0, "quality": 0}),
    "WebP lossless, Pillow's effort": ("WEBP", {"lossless": True}),
    "PNG": ("PNG", {}),
}
"""Name of the row -> Pillow's name of the format, and options of its writer."""


@dataclass(frozen=True)
class Row:
    """The pictures in one format."""

    encoded: Sequence[bytes]
    change: Tensor | None = None
    """(pictures,) relative, of the features; None for the originals."""
    seconds: float | None = None
    """CPU time of encoding; None where nothing was encoded."""


def read_pictures(folder: Path) -> list[bytes]:
    """The pictures of a folder that decode without errors, sorted by name."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    return [data for path in files if not picture_fault(data := path.read_bytes())]


def features(encoder: GridEncoder, encoded: Sequence[bytes], spec: ImageSpec) -> Tensor:
    """Features of the pictures at one size: (pictures, cells * channels)."""
    maps = []
    for first in range(0, len(encoded), BATCH):
        pixels = np.stack([decode_image(data, spec) for data in encoded[first : first + BATCH]])
        with torch.no_grad():
            maps.append(encoder(torch.from_numpy(pixels)).flatten(1))
    return torch.cat(maps)


def relative_change(measured: Tensor, expected: Tensor) -> Tensor:
    """(pictures,) distance relative to the norm of `expected`."""
    distance: Tensor = (measured - expected).norm(dim=1) / expected.norm(dim=1)
    return distance


def encode(image: Image.Image, form: str, options: Mapping[str, Any]) -> bytes:
    """A picture as bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def measure(originals: Sequence[bytes], encoder: GridEncoder, size: int) -> dict[str, Row]:
    """All rows of the table for one size."""
    spec = ImageSpec(size, size)
    expected = features(encoder, originals, spec)
    squares = [Image.fromarray(decode_image(data, spec).transpose(1, 2, 0)) for data in originals]
    rows = {"the original files": Row(originals)}
    for name, (form, options) in FORMS.items():
        begin = time.process_time()
        encoded = [encode(image, form, options) for image in squares]
        seconds = time.process_time() - begin
        change = relative_change(features(encoder, encoded, spec), expected)
        rows[name] = Row(encoded, change, seconds)
    rule = PictureRule(size)
    kept = [prepare_picture(data, rule).data for data in originals]
    change = relative_change(features(encoder, kept, spec), expected)
    rows["proportions kept, `webp`"] = Row(kept, change)
    rows["another picture"] = Row((), relative_change(expected.roll(1, 0), expected))
    return rows


def decoding(rows: Mapping[str, Row], size: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds per picture, for each row that has pictures."""
    spec = ImageSpec(size, size)
    times: dict[str, list[float]] = {name: [] for name, row in rows.items() if row.encoded}
    for _ in range(rounds):
        for name, measured in times.items():
            begin = time.process_time()
            for data in rows[name].encoded:
                decode_image(data, spec)
            measured.append(1000 * (time.process_time() - begin) / len(rows[name].encoded))
    return {name: statistics.median(measured) for name, measured in times.items()}


def table(title: str, rows: Mapping[str, Row], times: Mapping[str, float]) -> str:
    """One line per format."""
    lines = [
        f"{title}\n",
        "| stored as | change % | largest % | kB | decode ms | encode ms |",
        "|---" + "|---:" * 5 + "|",
    ]
    for name, row in rows.items():
        cells = ["", ""]
        if row.change is not None:
            cells = [
                f"{100 * float(row.change.mean()):.1f}",
                f"{100 * float(row.change.max()):.1f}",
            ]
        count = len(row.encoded)
        cells.append(f"{sum(map(len, row.encoded)) / count / 1000:.1f}" if count else "")
        cells.append(f"{times[name]:.2f}" if name in times else "")
        cells.append(f"{1000 * row.seconds / count:.1f}" if row.seconds is not None else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder of picture files")
    parser.add_argument("--model", required=True, help="timm's name of the encoder")
    parser.add_argument("--weights", help="its weights; default: timm fetches them")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    originals = read_pictures(options.pictures)
    kinds = sorted({true_extension(data) for data in originals})
    print(f"{len(originals)} pictures ({', '.join(kinds)}), {options.model}\n")
    for size in options.sizes:
        vision = Timm(
            model=options.model,
            weights=options.weights,
            pretrained=options.weights is None,
            image_size=size,
        )
        rows = measure(originals, vision.build(torch.float32).eval(), size)
        times = decoding(rows, size, options.rounds)
        print(table(f"{size} x {size}", rows, times) + "\n", flush=True)


if __name__ == "__main__":
    main()

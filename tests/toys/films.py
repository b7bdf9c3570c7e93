"""Clips of video whose colour tells the second, written by PyAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

COLORS = (
    (220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 220, 30),
    (30, 220, 220), (220, 30, 220), (240, 240, 240), (20, 20, 20),
)  # fmt: skip
"""Colour of each second, in turn."""
RATE = 10
CODECS = {
    "mp4": "libx264", "mov": "libx264", "mkv": "libx264", "ts": "libx264", "webm": "libvpx",
    "avi": "mpeg4", "gif": "gif",
}  # fmt: skip
FORMATS = {"gif": "rgb8"}
LIKE = 40
"""Most by which encoding changes a channel."""


def picture_at(time: float, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """(height, width, 3): the colour of a second."""
    width, height = size
    return np.full((height, width, 3), COLORS[int(time + 1e-6) % len(COLORS)], np.uint8)


def write_film(
    path: Path,
    times: Sequence[float],
    size: tuple[int, int] = (48, 32),
    pictures: Sequence[np.ndarray[Any, Any]] = (),
    gop: int = 10,
    **options: str,
) -> Path:
    """A clip with a frame from each of these times on, in seconds; `gop`: frames from key frame to
    key frame; `pictures`: other ones than the colours of the seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix.removeprefix(".")
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(CODECS[ending], rate=RATE)
        stream.width, stream.height = size
        stream.pix_fmt = FORMATS.get(ending, "yuv420p")
        stream.gop_size = gop
        stream.codec_context.time_base = Fraction(1, 100)
        for number, time in enumerate(times):
            pixels = pictures[number] if pictures else picture_at(time, size)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 100), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def film(path: Path, seconds: float, rate: int = RATE, **options: Any) -> Path:
    """A clip with frames at equal distances."""
    return write_film(path, [n / rate for n in range(round(seconds * rate))], **options)


def color_of(data: bytes) -> int:
    """The second whose colour a picture has."""
    with Image.open(io.BytesIO(data)) as image:
        mean = np.asarray(image.convert("RGB"), float).mean((0, 1))
    distances = np.abs(np.array(COLORS) - mean).max(1)
    assert distances.min() < LIKE
    return int(distances.argmin())

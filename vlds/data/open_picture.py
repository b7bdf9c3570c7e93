"""The one way in which vlds opens the bytes of a picture.

Pillow knows some fifty formats, among them EPS, which starts Ghostscript, and its header may
promise any number of pixels. So the formats are a fixed list, whatever a file is called, and the
pixels are counted before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import (  # noqa: F401 (each makes its format known)
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vlds.schema import Encoded

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
"""Formats that data sets may hold. Pillow opens MPO, a JPEG with more pictures behind it, as
JPEG."""
MAX_PIXELS = 89_478_485
"""Pillow's own number: 256 MiB of RGB."""
MAX_SCANS = 100
"""Of a progressive JPEG, each of which goes through all pixels; encoders write about ten."""
JPEG = b"\xff\xd8\xff"
SCAN = 0xDA
"""JPEG marker of a scan: the bytes within one hold no 0xFF before it."""
SEQUENTIAL = (0xC0, 0xC1, 0xC9)
"""JPEG markers of a header with sizes, of pictures whose pixels come once."""
TOO_LARGE = "too many pixels or scans"


class TooLarge(ValueError):
    """A picture that would take too much memory or time."""

    def __init__(self) -> None:
        super().__init__(TOO_LARGE)


def open_picture(data: Encoded) -> Image.Image:
    """A picture whose pixels are not decoded yet.

    Errors: TooLarge; whatever Pillow raises for bytes that are not a picture of these formats.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise TooLarge from None
    check_size(data, *image.size)
    return image


def check_size(data: Encoded, width: int, height: int) -> None:
    """Errors: TooLarge."""
    if width * height > MAX_PIXELS:
        raise TooLarge
    if data[:3] == JPEG and _may_repeat(data) and _num_scans(data) > MAX_SCANS:
        raise TooLarge


def _may_repeat(data: Encoded) -> bool:
    """Whether a decoder goes on after a JPEG's first scan. To count scans takes a tenth of the time
    to decode, and most JPEGs have all in one."""
    components = 0
    for marker, begin, end in jpeg_segments(data):
        if marker in SEQUENTIAL and end - begin > 5:
            components = data[begin + 5]
        elif marker == SCAN:
            return not 0 < components <= data[begin]
    return True


def _num_scans(data: Encoded) -> int:
    return bytes(data).count(bytes((0xFF, SCAN)))


def jpeg_segments(data: Encoded) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment of a JPEG, up to the header of its first scan."""
    place = 2
    while place + 4 < len(data) and data[place] == 0xFF:
        if (marker := data[place + 1]) == 0xFF:  # filling
            place += 1
            continue
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        yield marker, place + 4, min(end, len(data))
        if marker == SCAN:
            return
        place = end

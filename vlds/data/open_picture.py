"""The one way in which vlds opens the bytes of a picture.

Pillow knows some fifty formats, among them EPS, which starts Ghostscript, and its header may
promise any number of pixels. So the formats are a fixed list, whatever a file is called, and the
pixels are counted before anything is decoded.
"""

from __future__ import annotations

import io

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
SCAN = b"\xff\xda"
"""Begins a scan; the bytes within one hold no such pair."""
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
    if data[:3] == JPEG and bytes(data).count(SCAN) > MAX_SCANS:
        raise TooLarge

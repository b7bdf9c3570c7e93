"""The one way in which vlds opens the bytes of a picture.

Pillow knows some fifty formats, among them EPS, which starts Ghostscript, and its header may
promise any number of pixels. So the formats are a fixed list, whatever a file is called, and the
pixels are counted before anything is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import (  # noqa: F401 (each makes its format known)
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vlds.schema import Encoded

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
"""Formats that data sets may hold. Pillow opens MPO, a JPEG with more pictures behind it, as
JPEG."""
MAX_PIXELS = 89_478_485
"""Pillow's own number: 256 MiB of RGB."""
MAX_SCANS = 100
"""Of a progressive JPEG, each of which goes through all pixels; encoders write about ten."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
"""Loader workers decode side by side already."""
JPEG = b"\xff\xd8\xff"
SCAN = 0xDA
"""JPEG marker of a scan: the bytes within one hold no 0xFF before it."""
SEQUENTIAL = (0xC0, 0xC1, 0xC9)
"""JPEG markers of a header with sizes, of pictures whose pixels come once."""
TOO_LARGE = "too many pixels or scans"
AVIF = (b"avif", b"avis")
CONTAINERS = (b"mif1", b"msf1")
"""Brands of files that hold AVIF or HEIC; the brands behind say which."""
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
TO_JPEG = "convert it to JPEG"
UNREAD: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", f"JPEG XL, which is not read; {TO_JPEG}"),
    (b"\x00\x00\x00\x0cJXL ", f"JPEG XL, which is not read; {TO_JPEG}"),
    (b"\x00\x00\x00\x0cjP  ", f"JPEG 2000, which is not read; {TO_JPEG}"),
    (b"\xff\x4f\xff\x51", f"JPEG 2000, which is not read; {TO_JPEG}"),
    (b"8BPS", f"Photoshop, which is not read; {TO_JPEG}"),
    (b"%PDF", f"PDF, which is not read; {TO_JPEG}"),
    (b"<svg", f"SVG, which is not read; {TO_JPEG}"),
    (b"<?xml", f"XML or SVG, which is not read; {TO_JPEG}"),
    (b"<!doctype html", "a web page in the place of a picture; download it again"),
    (b"<html", "a web page in the place of a picture; download it again"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file with git lfs pull"),
)
"""First bytes, in lower case where they are letters of markup -> what a file is, and the cure."""


class TooLarge(ValueError):
    """A picture that would take too much memory or time."""

    def __init__(self) -> None:
        super().__init__(TOO_LARGE)


class UnreadFormat(ValueError):
    """A file of a known format that is none of FORMATS; the message says which, and the cure."""


def is_avif(data: Encoded) -> bool:
    """Whether the first bytes say AVIF."""
    begin = bytes(data[:64])
    if begin[4:8] != b"ftyp":
        return False
    return begin[8:12] in AVIF or (begin[8:12] in CONTAINERS and any(b in begin for b in AVIF))


def unread_format(data: Encoded) -> str:
    """What a file is that cannot be read, and the cure; "" where it is a picture or unknown."""
    begin = bytes(data[:64])
    if is_avif(data):
        supported = AvifImagePlugin.SUPPORTED
        return "" if supported else "AVIF, which this Pillow cannot read; pip install -U pillow"
    if begin[4:8] == b"ftyp" and begin[8:12] in (*HEIC, *CONTAINERS):
        return f"HEIC, which is not read; {TO_JPEG}"
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next(
        (what for magic, what in UNREAD if begin.startswith(magic) or text.startswith(magic)), ""
    )


def open_picture(data: Encoded) -> Image.Image:
    """A picture whose pixels are not decoded yet.

    Errors: TooLarge; UnreadFormat; whatever Pillow raises for bytes that are not a picture.
    """
    if fault := unread_format(data):
        raise UnreadFormat(fault)
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

"""The one way in which vlds opens the bytes of a picture, and which way up it is.

Pillow knows some fifty formats, among them EPS, which starts Ghostscript, and a header may promise
any number of pixels. So the formats are a fixed list, whatever a file is called, and the pixels are
counted before anything is decoded.

Cameras store a picture as it lay on the sensor and note the turn in a tag, in EXIF or XMP metadata.
Orientation 1 is upright. The other seven are the rotations and reflections of a rectangle; 5 to 8
swap width and height (EXIF 2.32, section 4.6.4). A tag that cannot be read, or that has another
value, means upright, as it does to browsers.
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
"""JPEG marker of a scan. Within a scan, 0xFF is never followed by it."""
SCAN_MARKER = bytes((0xFF, SCAN))
SEQUENTIAL = (0xC0, 0xC1, 0xC9)
"""JPEG markers of frame headers whose pixels come in one pass."""
TOO_LARGE = "too many pixels or scans"
AVIF = (b"avif", b"avis")
CONTAINERS = (b"mif1", b"msf1")
"""Brands of files that hold AVIF or HEIC; the compatible brands say which."""
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
    (b"<!doctype html", "a web page instead of a picture; download it again"),
    (b"<html", "a web page instead of a picture; download it again"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file with git lfs pull"),
)
"""First bytes (markup in lower case) -> what a file is, and the cure."""
ORIENTATION = 0x0112
UPRIGHT = 1
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what makes the picture upright."""
SIDEWAYS = (5, 6, 7, 8)
METADATA = 0xE1
"""JPEG marker of a segment with EXIF or XMP."""


class TooLarge(ValueError):
    """A picture that would take too much memory or time."""

    def __init__(self) -> None:
        super().__init__(TOO_LARGE)


class UnreadFormat(ValueError):
    """A file of a format outside FORMATS; the message says which, and the cure."""


def is_avif(data: Encoded) -> bool:
    """True if the first bytes say AVIF."""
    begin = bytes(data[:64])
    if begin[4:8] != b"ftyp":
        return False
    return begin[8:12] in AVIF or (begin[8:12] in CONTAINERS and any(b in begin for b in AVIF))


def unread_format(data: Encoded) -> str:
    """What an unreadable file is, and the cure; "" for pictures and unknown bytes."""
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
    if data[:3] == JPEG and _may_repeat(data) and bytes(data).count(SCAN_MARKER) > MAX_SCANS:
        raise TooLarge


def _may_repeat(data: Encoded) -> bool:
    """True if a JPEG may have more than one scan. Counting scans takes a tenth of the time of
    decoding, and most JPEGs have only one."""
    components = 0
    for marker, begin, end in jpeg_segments(data):
        if marker in SEQUENTIAL and end - begin > 5:
            components = data[begin + 5]
        elif marker == SCAN:
            return not 0 < components <= data[begin]
    return True


def jpeg_segments(data: Encoded) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment of a JPEG, up to the header of its first scan."""
    offset = 2
    while offset + 4 < len(data) and data[offset] == 0xFF:
        if (marker := data[offset + 1]) == 0xFF:  # filling
            offset += 1
            continue
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        yield marker, offset + 4, min(end, len(data))
        if marker == SCAN:
            return
        offset = end


def orientation_of(image: Image.Image) -> int:
    """Orientation of an open picture, 1 to 8."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except SyntaxError:  # damaged EXIF: Pillow reports it for a WebP and overlooks it for a JPEG
        return UPRIGHT
    return orientation if orientation in TRANSPOSES else UPRIGHT


def upright(image: Image.Image) -> Image.Image:
    """A picture the right way up, with its pixels loaded."""
    image.load()  # Pillow turns a TIFF while it loads, and forgets its tag
    method = TRANSPOSES.get(orientation_of(image))
    return image if method is None else image.transpose(method)


def upright_size(data: Encoded) -> tuple[int, int]:
    """Width and height of an encoded picture the right way up.

    Errors: ValueError for bytes that are not a picture.
    """
    try:
        with open_picture(data) as image:
            if image.format == "TIFF":
                image.load()
            width, height = image.size
            return (height, width) if orientation_of(image) in SIDEWAYS else (width, height)
    except Exception as error:  # damaged bytes make decoders raise anything
        raise ValueError(f"not a picture ({error})") from error


def jpeg_orientation(data: Encoded) -> int:
    """Orientation of an encoded JPEG, 1 to 8. Pillow reads it only where a tag may be: most
    JPEGs have none, and reading it costs a tenth of a millisecond."""
    metadata = (bytes(data[a:b]) for marker, a, b in jpeg_segments(data) if marker == METADATA)
    if not any(b"Exif" in segment or b"Orientation" in segment for segment in metadata):
        return UPRIGHT
    with open_picture(data) as image:
        return orientation_of(image)

"""Bytes of a picture file -> the bytes a shard stores.

Bytes are stored unchanged unless a resize makes the picture smaller: a run's decoder reads every
format that is accepted here, applies the EXIF orientation and takes the first frame of an
animation. A resize uses that same decoder and is stored without loss by default: a run whose
encoder wants this size sees exactly the pixels of the original file. JPEG is smaller, but changes
the picture: at quality 95 it moves the features of a frozen encoder by a sixth
(benchmarks/pictures.md).

JPEG has no checksum: for unreadable data, libjpeg only warns and continues with grey or wrong
values. Pillow and torchvision swallow the warnings; simplejpeg (strict) makes them errors. Shares
of 3,600 damaged files (12 photographs, 6 encodings) that are noticed:

    what is wrong in the picture data   Pillow   torchvision   simplejpeg
    200 bytes are zero                    0 %        0 %          86 %
    4,096 bytes are zero                 13 %       17 %          98 %
    200 bytes are random                 45 %       46 %          97 %
    200 bytes are missing                 1 %        1 %          92 %
    16 bytes are random                   4 %        5 %          72 %
    one bit is flipped                    1 %        1 %          23 %
    the end is missing                  100 %      100 %         100 %

No decoder can notice the others: the damaged bits are valid codes, and only the picture is wrong.
That needs an earlier checksum, which dataset.json has for each shard; this check is for files that
were damaged before they were packed. PNG has checksums. WebP has none: a third of such damages is
noticed. Only the first frame of an animation is checked, because a run reads no other.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import simplejpeg
from PIL import Image

from vlds.data.shards.decode import decode_image, to_rgb
from vlds.data.shards.open_picture import (
    TOO_LARGE,
    is_avif,
    open_picture,
    unread_format,
    upright,
    upright_size,
)
from vlds.schema import ImageSpec, SkipSample

MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)
"""First bytes of a file -> its true extension, whatever its name says."""
JPEGS = ("JPEG", "MPO")
"""Pillow's formats that begin with a JPEG."""
ImageFormat = Literal["webp", "jpeg"]
"""How a resized picture is stored: WebP without loss, or JPEG."""
LONGEST_WEBP = 16383
"""Most pixels of a side."""
EXTENSIONS: Mapping[ImageFormat, str] = {"webp": "webp", "jpeg": "jpg"}
ENCODINGS: Mapping[ImageFormat, Mapping[str, Any]] = {
    # In lossless WebP, `method` and `quality` mean effort. More effort saves 3 to 4 % of the bytes
    # in up to six times the time; with method 0, radiographs need 1.5 times the bytes.
    "webp": {"lossless": True, "method": 2, "quality": 20},
    # Full color resolution: the usual 4:2:0 moves features 1.5 times as far.
    "jpeg": {"quality": 95, "subsampling": "4:4:4"},
}


class BadPicture(Exception):
    """An unusable picture; the message is the reason that the summary counts."""


@dataclass(frozen=True)
class PictureRule:
    """How pictures are resized and stored."""

    size: int | None = None
    """Pixels of the shorter side; None keeps the size. Small pictures are never enlarged."""
    square: bool = False
    """Scale both sides to `size`, as VL-Adapter does, instead of keeping the proportions."""
    format: ImageFormat = "webp"
    """How a resized picture is stored."""

    def __post_init__(self) -> None:
        if self.square and self.size is None:
            raise ValueError("--square needs --image-size, the side of the square in pixels")

    def record(self) -> dict[str, Any]:
        """The rule as dataset.json records it."""
        form = None if self.size is None else self.format
        return {"size": self.size, "square": self.square, "format": form}

    def target(self, width: int, height: int) -> tuple[int, int]:
        """The new size of a picture."""
        if self.size is None:
            return width, height
        if self.square:
            return self.size, self.size
        ratio = self.size / min(width, height)
        if ratio >= 1:
            return width, height
        return max(1, round(width * ratio)), max(1, round(height * ratio))


@dataclass(frozen=True)
class Picture:
    """A picture ready for a shard."""

    data: bytes
    extension: str
    width: int
    """Width and height are those of the upright picture."""
    height: int


def true_extension(data: bytes) -> str:
    """The extension by the first bytes: NLVR2 has JPEGs in files named .png."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for start, extension in MAGIC:
        if data.startswith(start):
            return extension
    if fault := unread_format(data):
        raise BadPicture(fault)
    if is_avif(data):
        return "avif"
    raise BadPicture("not a picture" if data else "empty file")


def picture_fault(data: bytes) -> str | None:
    """What is wrong with the bytes of a picture; None if all of it decodes."""
    if not data:
        return "empty"
    try:
        with open_picture(data) as image:
            form = image.format
            if form in JPEGS:
                _decode_jpeg(data, image)
            else:
                to_rgb(upright(image))
        if form == "PNG":  # decoding skips the checksums; verify() skips the pixels
            with open_picture(data) as image:
                image.verify()
    except Exception as error:  # damaged bytes make decoders raise anything
        return str(error) or type(error).__name__
    return None


def _decode_jpeg(data: bytes, image: Image.Image) -> None:
    """Read every code of a JPEG. Grey at an eighth of the size is faster."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        if "subsampling" not in str(error):
            raise
        to_rgb(image)  # rare color layouts are not damage: Pillow reads them


def prepare_picture(data: bytes, rule: PictureRule) -> Picture:
    """Check that the whole picture decodes, and resize it if the rule says so.

    Errors: BadPicture.
    """
    extension = true_extension(data)
    if fault := picture_fault(data):
        raise BadPicture(fault if fault == TOO_LARGE else "truncated or damaged")
    try:
        size = upright_size(data)
    except ValueError as error:
        raise BadPicture("truncated or damaged") from error
    if (target := rule.target(*size)) == size:
        return Picture(data, extension, *size)
    return Picture(_resize(data, target, rule.format), EXTENSIONS[rule.format], *target)


def _resize(data: bytes, size: tuple[int, int], form: ImageFormat) -> bytes:
    """Encode a picture as a run sees it at this size (width, height)."""
    width, height = size
    if form == "webp" and max(size) > LONGEST_WEBP:
        raise BadPicture(f"longer than the {LONGEST_WEBP:,} pixels of WebP")
    try:
        pixels = decode_image(data, ImageSpec(height, width))
    except SkipSample as error:
        raise BadPicture("truncated or damaged") from error
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, form, **ENCODINGS[form])
    return buffer.getvalue()

"""Bytes of a picture file -> the bytes a shard stores.

The bytes pass through untouched wherever they can. They are encoded anew only to bake in an EXIF
rotation (decoders disagree on it, so sizes would swap between readers) or to make the picture
smaller when the user asks.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from data_prep.strict_picture import jpeg_fault
from vlds.data.decode import to_rgb

MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tif"),
    (b"MM\x00*", "tif"),
)
"""First bytes of a file -> the extension it deserves, whatever its name says."""

ORIENTATION_TAG = 0x0112
JPEG_QUALITY = 95


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason that the summary counts."""


@dataclass(frozen=True)
class PictureRule:
    """What happens to every picture on its way into a shard."""

    size: int | None = None
    """Pixels of the shorter side; None leaves pictures as they are. Small ones are not enlarged."""
    square: bool = False
    """Scale both sides to `size`, as VL-Adapter does, instead of keeping the proportions."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"--image-size {self.size}: give a number of pixels, 1 or more")
        if self.square and self.size is None:
            raise ValueError("--square needs --image-size, the side of the square in pixels")

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Size a picture of this size gets."""
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
    height: int


def true_extension(data: bytes) -> str:
    """The extension the first bytes call for; NLVR2 hides JPEGs in files named .png."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for start, extension in MAGIC:
        if data.startswith(start):
            return extension
    raise BadPicture("not a picture" if data else "empty file")


def prepare_picture(data: bytes, rule: PictureRule) -> Picture:
    """Check that the whole picture decodes, bake in its rotation, make it smaller when asked."""
    extension = true_extension(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Everything is decoded: half a file fails here and not in a run.
            if extension != "jpg":
                image.load()
            elif jpeg_fault(data):
                raise BadPicture("truncated or damaged")
            upright = image.getexif().get(ORIENTATION_TAG, 1) == 1
            size = rule.target(*(image.size if upright else ImageOps.exif_transpose(image).size))
            if upright and size == image.size:
                return Picture(data, extension, *size)
            return _encode_anew(image, extension, size)
    except Image.DecompressionBombError as error:
        raise BadPicture("too many pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # all that Pillow's plugins raise
        raise BadPicture("truncated or damaged") from error


def _encode_anew(image: Image.Image, extension: str, size: tuple[int, int]) -> Picture:
    """Rotate and scale; JPEG stays JPEG, everything else becomes PNG. EXIF is left behind."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode not in ("L", "RGB", "RGBA"):
        clear = "transparency" in turned.info
        turned = turned.convert("RGBA") if clear else to_rgb(turned)
    if turned.size != size:
        turned = turned.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if extension == "jpg":
        turned.convert("L" if turned.mode == "L" else "RGB").save(
            buffer, "JPEG", quality=JPEG_QUALITY
        )
    else:
        turned.save(buffer, "PNG", exif=b"")
        extension = "png"
    return Picture(buffer.getvalue(), extension, *size)

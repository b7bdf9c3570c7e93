"""Encodes pictures as Python users have them: a path, bytes, a Pillow image or an array."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlds.data.shards.decode import to_rgb
from vlds.data.shards.open_picture import MAX_PIXELS, upright
from vlds.runtime.regular_file import read_file

Picture = str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray
"""A file, its content, a Pillow image, or a uint8 array of one of SHAPES."""
ACCEPTED = "a path, the bytes of a file, a Pillow image or a uint8 array"
SHAPES = "(height, width), (height, width, 1), (height, width, 3) or (height, width, 4)"
CHANNELS = (1, 3, 4)
WEB_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")
"""Beginning of a URL, also of one that was a Path, which has lost a slash."""
_pillow = Lock()
"""Pillow decodes an image when its pixels are first used, which two threads must not do at once."""


def encode_picture(picture: Picture) -> bytes:
    """The picture as bytes of a file.

    Errors: ValueError for a file that cannot be read, and for what is not a picture.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | Path):
        if WEB_ADDRESS.match(str(picture)):
            raise ValueError(
                f"{picture}: a picture is read from a file of this machine; download it first"
            )
        try:
            return read_file(path_of("picture", picture))
        except OSError as error:
            raise ValueError(f"{picture}: {error.strerror}") from None
    if isinstance(picture, np.ndarray):
        return png_of(checked_array(picture))
    if not isinstance(picture, Image.Image):
        raise ValueError(f"picture: got {type(picture).__name__}; give {ACCEPTED}")
    check_size(*picture.size)
    try:
        with _pillow:
            # PNG has no CMYK and the like, and decoders see a file's pixels this way too.
            pixels = np.asarray(to_rgb(upright(picture)))
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise ValueError(
            f"picture: the Pillow image is closed, truncated or damaged ({error}); open it again"
        ) from None
    return png_of(pixels)


def checked_array(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """An array (height, width) or (height, width, 3 or 4).

    Errors: ValueError for an array that is not uint8, has another shape than SHAPES, or is too
    large.
    """
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (len(shape) == 2 or shape[2:] in [(n,) for n in CHANNELS]):
        channels_first = len(shape) == 3 and shape[0] in CHANNELS and shape[2] not in CHANNELS
        cure = "; are its channels first? then give array.transpose(1, 2, 0)"
        raise ValueError(
            f"picture: got an array of {pixels.dtype} and shape {shape}; give uint8, "
            f"{SHAPES}{cure if channels_first else ''}"
        )
    check_size(shape[1], shape[0])
    return pixels[..., 0] if shape[2:] == (1,) else pixels


def check_size(width: int, height: int) -> None:
    """Errors: ValueError for a picture without pixels, or with more than files may have."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(
            f"picture: is {width} wide and {height} high; give at least one pixel and at most "
            f"{MAX_PIXELS:,}"
        )


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """An array as a PNG with the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def path_of(argument: str, value: object) -> Path:
    """An argument as a path.

    Errors: ValueError where it is not one.
    """
    if not isinstance(value, str | Path):
        raise ValueError(f"{argument}: got {type(value).__name__}; give a path, as str or Path")
    if value == "":
        raise ValueError(f"{argument}: the path is empty; name a file or folder")
    try:
        valid = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ValueError(f"{argument}: no file can have the name {str(value)!r:.200}")
    return Path(value)

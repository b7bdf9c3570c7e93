"""Bytes of a picture -> uint8 (3, height, width), exactly, with Pillow.

Every decoder and every shortcut gives other pixels; this one is the reference. Truncated pictures
are errors (PIL.ImageFile.LOAD_TRUNCATED_IMAGES stays off). Preparation baked the EXIF rotation in.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlds.schema import ImageSpec, SkipSample

Picture = NDArray[np.uint8]
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode_image(data: bytes, spec: ImageSpec, name: str = "") -> Picture:
    """Decode and squash to the size of `spec`. `name` says in the error which picture it was.

    Errors: SkipSample for bytes that are no whole picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgb = _to_rgb(image)
    except Image.DecompressionBombError:
        raise SkipSample(f"picture {name}: too many pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # all that Pillow's plugins raise
        reason = "truncated or damaged" if data else "empty"
        raise SkipSample(f"picture {name}: {reason} ({error})") from None
    if rgb.size != (spec.width, spec.height):
        rgb = rgb.resize((spec.width, spec.height), RESAMPLING[spec.resize])
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit gray: Pillow's own conversion would clip everything above 255 to white.
        gray = np.asarray(image).astype(np.int64)
        return Image.fromarray((gray >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


class PictureCache:
    """Decoded pictures of the samples used last, up to a number of bytes; one in each process."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Picture, ...]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Picture, ...] | None:
        """Pictures of a sample, if they are still here."""
        if (pictures := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return pictures

    def put(self, key: Hashable, pictures: tuple[Picture, ...]) -> None:
        """Keep pictures, and forget those not used for longest."""
        self._kept[key] = pictures
        self._bytes += _size(pictures)
        while self._bytes > self.max_bytes and self._kept:
            self._bytes -= _size(self._kept.popitem(last=False)[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"max_bytes": self.max_bytes, "_bytes": 0, "_kept": OrderedDict()}


def _size(pictures: tuple[Picture, ...]) -> int:
    return sum(picture.nbytes for picture in pictures)

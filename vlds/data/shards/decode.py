"""Bytes of a picture -> uint8 (3, height, width).

JPEGs are decoded by simplejpeg, strictly: what other decoders fill with grey is an error. `exact`
takes every pixel of the file. Squashed by torch it differs from Pillow, the reference, by less than
0.1 of 255 levels in the mean; on the sharpest edges of radiographs by up to six. `fast` decodes at
a fraction of the size where that is still large enough; its pixels are others, which a model
notices, so a run keeps to one. Pillow decodes all other pictures. A picture that its EXIF tag turns
is turned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlds.data.shards.open_picture import JPEG, TooLarge, UnreadFormat, check_size, open_picture
from vlds.data.shards.orientation import SIDEWAYS, jpeg_orientation, turned, upright
from vlds.schema import Encoded, ImageSpec, Sample, SkipSample

Picture = NDArray[np.uint8]
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
PLAIN_COLORS = ("YCbCr", "Gray", "RGB")
"""Of JPEGs that other decoders than Pillow take for the same colours."""


def decode_image(data: Encoded, spec: ImageSpec, name: str = "") -> Picture:
    """Decode and squash to the size of `spec`. `name` says in the error which picture it was.

    Errors: SkipSample for bytes that are no whole picture.
    """
    try:
        if _is_plain_jpeg(data):
            return _squash(_decode_jpeg(data, spec), spec)
        with open_picture(data) as image:
            rgb = to_rgb(upright(image))
        if rgb.size != (spec.width, spec.height):
            rgb = rgb.resize((spec.width, spec.height), RESAMPLING[spec.resize])
    except (TooLarge, UnreadFormat) as error:
        raise SkipSample(f"picture {name}: {error}") from None
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        reason = "truncated or damaged" if data else "empty"
        raise SkipSample(f"picture {name}: {reason} ({error})") from None
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def decode_pictures(sample: Sample, spec: ImageSpec) -> tuple[Picture, ...]:
    """All pictures of a sample.

    Errors: SkipSample where one of them is no whole picture.
    """
    names = [f"{number} of sample {sample.key}" for number in range(1, len(sample.images) + 1)]
    pairs = zip(sample.images, names, strict=True)
    return tuple(decode_image(data, spec, name) for data, name in pairs)


def _is_plain_jpeg(data: Encoded) -> bool:
    """True for a JPEG that needs no look of Pillow's, which decodes the rare layouts of colours.

    Errors: TooLarge; ValueError for a damaged header.
    """
    if data[:3] != JPEG:
        return False
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if "subsampling" in str(error):
            return False
        raise
    check_size(data, width, height)
    return colors in PLAIN_COLORS


def _decode_jpeg(data: Encoded, spec: ImageSpec) -> Tensor:
    """(3, h, w) uint8, upright, not smaller than `spec` where the picture is not."""
    orientation = jpeg_orientation(data)
    options: dict[str, Any] = {}
    if spec.decode == "fast":
        height, width = spec.height, spec.width
        if orientation in SIDEWAYS:
            height, width = width, height
        options = {"min_height": height, "min_width": width}
        options |= {"fastdct": True, "fastupsample": True}
    array = simplejpeg.decode_jpeg(data, "RGB", **options)
    return turned(torch.from_numpy(array).permute(2, 0, 1), orientation)


def _squash(pixels: Tensor, spec: ImageSpec) -> Picture:
    size = [spec.height, spec.width]
    if list(pixels.shape[1:]) != size:
        pixels = F.interpolate(pixels[None], size, mode=spec.resize, antialias=True)[0]
    return np.ascontiguousarray(pixels.numpy())


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture of Pillow's, as the decoder sees it."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit gray: Pillow's own conversion would clip everything above 255 to white.
        gray = np.asarray(image).astype(np.int64)
        return Image.fromarray((gray >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct conversion
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; Pillow warns of the direct conversion
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

"""Bytes of a picture -> uint8 (3, height, width).

simplejpeg decodes JPEGs strictly: what other decoders fill with grey is an error. `exact` takes
every pixel of the file. Squashed by torch it differs from Pillow, the reference, by less than 0.1
of 255 levels in the mean; on the sharpest edges of radiographs by up to six. `fast` decodes at a
fraction of the size if that is still large enough; its pixels differ enough to change answers, so a
run must keep one setting. Pillow decodes all other pictures. EXIF orientation is applied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlds.data.shards.open_picture import (
    JPEG,
    SIDEWAYS,
    UPRIGHT,
    TooLarge,
    UnreadFormat,
    check_size,
    jpeg_orientation,
    open_picture,
    upright,
)
from vlds.schema import Encoded, ImageSpec, PictureSpec, Sample, SkipSample

Picture = NDArray[np.uint8]
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
PLAIN_COLORS = ("YCbCr", "Gray", "RGB")
"""Colour spaces of JPEGs on which simplejpeg and Pillow agree."""
REVERSED_ROWS, REVERSED_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)
"""Orientations of the stored picture, after rows and columns of a sideways one are swapped."""


def decode_image(data: Encoded, spec: PictureSpec, name: str = "") -> Picture:
    """Decode, and squash or scale down to the size of `spec`. Errors call the picture `name`.

    Errors: SkipSample for bytes that are not a whole picture.
    """
    try:
        if _is_plain_jpeg(data):
            return _squash(_decode_jpeg(data, spec), spec)
        with open_picture(data) as image:
            rgb = to_rgb(upright(image))
        height, width = target_size(spec, rgb.height, rgb.width)
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), RESAMPLING[resampling(spec)])
    except (TooLarge, UnreadFormat) as error:
        raise SkipSample(f"picture {name}: {error}") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        reason = "truncated or damaged" if data else "empty"
        raise SkipSample(f"picture {name}: {reason} ({error})") from None
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


def decode_pictures(sample: Sample, spec: PictureSpec) -> tuple[Picture, ...]:
    """All pictures of a sample.

    Errors: SkipSample if one of them is not a whole picture.
    """
    return tuple(
        decode_image(data, spec, f"{number} of sample {sample.key}")
        for number, data in enumerate(sample.images, 1)
    )


def _is_plain_jpeg(data: Encoded) -> bool:
    """True for a JPEG that simplejpeg decodes; Pillow decodes those with rare colour layouts.

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


def _decode_jpeg(data: Encoded, spec: PictureSpec) -> Tensor:
    """(3, h, w) uint8, upright; not smaller than `spec`, unless the file is."""
    orientation = jpeg_orientation(data)
    options: dict[str, Any] = {}
    if spec.decode == "fast" and isinstance(spec, ImageSpec):
        height, width = spec.height, spec.width
        if orientation in SIDEWAYS:
            height, width = width, height
        options = {"min_height": height, "min_width": width}
        options |= {"fastdct": True, "fastupsample": True}
    array = simplejpeg.decode_jpeg(data, "RGB", **options)
    return _turned(torch.from_numpy(array).permute(2, 0, 1), orientation)


def _turned(pixels: Tensor, orientation: int) -> Tensor:
    """Pixels (3, h, w) as stored -> (3, h, w), or (3, w, h) of a sideways picture, upright; the
    colours of a pixel lie side by side in memory, as a decoder leaves them."""
    if orientation == UPRIGHT:
        return pixels
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 2)
    flips = [d for d, group in ((1, REVERSED_ROWS), (2, REVERSED_COLUMNS)) if orientation in group]
    return pixels.flip(flips).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _squash(pixels: Tensor, spec: PictureSpec) -> Picture:
    size = target_size(spec, *pixels.shape[1:])
    if tuple(pixels.shape[1:]) != size:
        mode = resampling(spec)
        pixels = F.interpolate(pixels[None], list(size), mode=mode, antialias=True)[0]
    return np.ascontiguousarray(pixels.numpy())


def target_size(spec: PictureSpec, height: int, width: int) -> tuple[int, int]:
    """Height and width of a decoded picture, from those of the file."""
    if isinstance(spec, ImageSpec):
        return spec.height, spec.width
    scale = min(1.0, (spec.max_pixels / (height * width)) ** 0.5)
    return max(1, int(height * scale)), max(1, int(width * scale))


def resampling(spec: PictureSpec) -> str:
    """How pictures of another size are resized."""
    return spec.resize if isinstance(spec, ImageSpec) else "bicubic"


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode, as the decoder sees it."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit gray: Pillow's conversion would clip everything above 255 to white.
        gray = np.asarray(image).astype(np.int64)
        return Image.fromarray((gray >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct conversion
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; Pillow warns of the direct conversion
    return image.convert("RGB")


class PictureCache:
    """Decoded pictures of recently used samples, up to a number of bytes; one in each process."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Picture, ...]] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], tuple[Picture, ...]]) -> tuple[Picture, ...]:
        """The pictures of a sample; `decode` makes them if they are not kept."""
        if (pictures := self._kept.pop(key, None)) is None:
            pictures = decode()
            self._bytes += _size(pictures)
        self._kept[key] = pictures  # the most recently used are last
        while self._bytes > self.max_bytes:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return pictures


def _size(pictures: tuple[Picture, ...]) -> int:
    return sum(picture.nbytes for picture in pictures)

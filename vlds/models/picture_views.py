"""Augmented views of pictures: a random part, stretched to the whole, and perhaps mirrored.

As usual in few-shot training of CLIP, the part has half to all of the area, and an aspect ratio of
3/4 to 4/3. A view depends on the picture and on the view's number alone, so that its embedding can
be kept. The original codes crop the stored picture; here it has the model's size already.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_AREA = 0.5
WIDEST_RATIO = 4 / 3


class View(NamedTuple):
    """A view of a picture."""

    picture: Tensor
    """(3, h, w) uint8."""
    number: int = 0
    """0 is the picture itself."""

    def key(self) -> tuple[bytes, int]:
        """Identifies the view: a hash of the picture's pixels, and the number."""
        pixels = self.picture.cpu().contiguous().numpy().tobytes()
        return blake2b(pixels, digest_size=16).digest(), self.number

    def pixels(self) -> Tensor:
        """(3, h, w) uint8."""
        return self.picture if self.number == 0 else cut(self.picture, self.key())


def cut(picture: Tensor, key: tuple[bytes, int]) -> Tensor:
    """The part of a picture (3, h, w) uint8 that the view's key draws, in the picture's size."""
    name = blake2b(key[0] + key[1].to_bytes(8, "big"), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name, "big"))
    area, ratio, down, right, mirrored = torch.rand(5, generator=generator).tolist()
    area = SMALLEST_AREA + (1 - SMALLEST_AREA) * area
    ratio = math.exp((2 * ratio - 1) * math.log(WIDEST_RATIO))
    height, width = picture.shape[1:]
    rows = max(1, min(height, round(height * math.sqrt(area / ratio))))
    columns = max(1, min(width, round(width * math.sqrt(area * ratio))))
    top, left = round(down * (height - rows)), round(right * (width - columns))
    part = picture[:, top : top + rows, left : left + columns].float()
    whole = F.interpolate(part[None], (height, width), mode="bicubic", antialias=True)[0]
    seen = whole.round().clamp(0, 255).to(torch.uint8)
    return seen.flip(-1) if mirrored < 1 / 2 else seen

"""Pictures that are plain pixels inside a larger file, such as the batches of CIFAR."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlds.runtime.regular_file import open_file

CHANNELS = 3


@dataclass(frozen=True)
class RawPicture:
    """A picture whose red, green and blue planes follow each other, row by row, one byte each."""

    path: Path
    offset: int
    height: int
    width: int

    def read(self) -> bytes:
        """The picture as PNG, which keeps every pixel.

        Errors: ValueError if the file is shorter than it was.
        """
        shape = CHANNELS, self.height, self.width
        with open_file(self.path) as file:
            file.seek(self.offset)
            data = file.read(CHANNELS * self.height * self.width)
        if len(data) < CHANNELS * self.height * self.width:
            raise ValueError(f"{self.path} ends before byte {self.offset + len(data) + 1}")
        pixels = np.frombuffer(data, np.uint8).reshape(shape).transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        return buffer.getvalue()

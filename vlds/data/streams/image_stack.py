"""The distinct images of a batch: an image that several examples ask about is stored once.

u distinct images, v visual tokens of an image, dim channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlds.schema import NaturalSize, PictureSpec


class ImageStack:
    """The distinct images of a batch: decoded pictures (3, h, w) or stored features (v, dim)."""

    def __init__(self, num_images: int) -> None:
        """`num_images`: a guess of how many will be added."""
        self._guess = num_images
        self._array: np.ndarray | None = None
        self._num_images = 0

    def __len__(self) -> int:
        return self._num_images

    def add(self, images: Sequence[np.ndarray]) -> range:
        """Copy the images of a sample to the stack and return their indices.

        Errors: ValueError for features of different shapes in one batch.
        """
        first = self._num_images
        for image in images:
            if self._array is None:
                self._array = np.empty((self._guess, *image.shape), image.dtype)
            elif image.shape != self._array.shape[1:]:
                raise ValueError(
                    f"stored features of different shapes in one batch: {self._array.shape[1:]}, "
                    f"{image.shape}; compute them with one encoder and one image size"
                )
            elif self._num_images == len(self._array):
                self._array = np.concatenate([self._array, np.empty_like(self._array)])
            self._array[self._num_images] = image
            self._num_images += 1
        return range(first, self._num_images)

    def images(self) -> Tensor | None:
        """(u, ...), sharing the stack's memory; None without images."""
        return None if self._array is None else torch.from_numpy(self._array[: self._num_images])


class PictureList:
    """The distinct pictures of a batch, of unlike sizes."""

    def __init__(self) -> None:
        self._pictures: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, images: Sequence[np.ndarray]) -> range:
        """Add the pictures (3, h, w) of a sample and return their indices."""
        first = len(self)
        self._pictures += map(torch.from_numpy, images)
        return range(first, len(self))

    def images(self) -> list[Tensor]:
        """(3, h, w) of each picture."""
        return self._pictures


def new_stack(image: PictureSpec | None, num_images: int) -> ImageStack | PictureList:
    """An empty store for a batch's images of a spec; `num_images`: a guess of their number."""
    return PictureList() if isinstance(image, NaturalSize) else ImageStack(num_images)

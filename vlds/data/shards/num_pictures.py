"""How many pictures the samples of a task may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlds.schema import Sample, SkipSample


@dataclass(frozen=True)
class NumPictures:
    """From `fewest` to `most` pictures, or stored features."""

    fewest: int = 0
    most: int | None = None
    """None: any number."""
    cure: str = "prepare the data set without such samples"
    """What to do about samples with more."""

    def first_odd(self, pictures: Sequence[np.ndarray], but: Sequence[int]) -> int | None:
        """Number of the first sample with another number of pictures, out of those of each shard;
        `but`: samples that do not count. None where all are as they should be."""
        found = np.concatenate(pictures)
        odd = found < self.fewest
        if self.most is not None:
            odd |= found > self.most
        odd[list(but)] = False
        return int(odd.argmax()) if odd.any() else None

    def check(self, sample: Sample) -> None:
        """Errors: SkipSample where a sample has another number."""
        found = len(sample.images) or len(sample.features)
        if found < self.fewest or (self.most is not None and found > self.most):
            raise SkipSample(f"sample {sample.key}: {self.fault(found)}")

    def fault(self, found: int) -> str:
        """What to say of a sample with another number."""
        wanted = str(self.fewest)
        if self.most is None:
            wanted += " or more"
        elif self.most != self.fewest:
            wanted += f" to {self.most}"
        noun = "picture" if found == 1 else "pictures"
        cure = NumPictures.cure if found < self.fewest else self.cure
        return f"it has {found} {noun}, {wanted} expected; {cure}"


ANY_NUMBER = NumPictures()

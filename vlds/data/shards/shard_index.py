"""What lies beside the shards: `.idx`, `.cnt` and `.crc`.

For a shard of n samples `NAME.tar.idx` holds little-endian u64[n+1], the offset of each sample's
first header and the end of the last one's data (the layout of Megatron-Energon); `NAME.tar.cnt`
holds u32[n, 2], annotations and pictures of each sample; `NAME.tar.crc` holds u32[n], the crc32 of
each sample's bytes, from one offset to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.shards.info import DATASET_FILE, REBUILD, ShardInfo
from vlds.runtime.whole_file import write_whole

IDX_TYPE = np.dtype("<u8")
CNT_TYPE = np.dtype("<u4")
CRC_TYPE = np.dtype("<u4")


class Counts(NamedTuple):
    """What the index says of a sample."""

    annotations: int
    pictures: int
    """Or stored features, where it has no pictures."""

    def __str__(self) -> str:
        return f"{self.annotations} annotations and {self.pictures} pictures"


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard are, and what is known of each."""

    offsets: np.ndarray
    """u64[n+1]."""
    counts: np.ndarray
    """u32[n]: annotations."""
    pictures: np.ndarray
    """u32[n]: pictures, or stored features."""
    checksums: np.ndarray
    """u32[n]."""

    @classmethod
    def of(
        cls, offsets: Sequence[int], counts: Sequence[Counts], checksums: Sequence[int]
    ) -> ShardIndex:
        """The index of samples that were just read or written."""
        table = np.array(counts, CNT_TYPE).reshape(len(counts), 2)
        return cls(
            np.array(offsets, IDX_TYPE), table[:, 0], table[:, 1], np.array(checksums, CRC_TYPE)
        )

    def files(self) -> dict[str, bytes]:
        """Ending of each file beside the shard -> its content."""
        counts = np.stack([self.counts, self.pictures], axis=1)
        return {
            ".idx": self.offsets.astype(IDX_TYPE).tobytes(),
            ".cnt": counts.astype(CNT_TYPE).tobytes(),
            ".crc": self.checksums.astype(CRC_TYPE).tobytes(),
        }

    def save(self, tar: Path) -> dict[str, str]:
        """Write the files beside the tar; ending -> sha256."""
        for suffix, data in self.files().items():
            write_whole(beside(tar, suffix), data)
        return {suffix: sha256(data).hexdigest() for suffix, data in self.files().items()}

    @classmethod
    def parse(cls, files: Mapping[str, bytes], shard: ShardInfo, place: str) -> ShardIndex:
        """The index in the files beside a shard; `place` is the shard's, for messages.

        Errors: ShardError where it cannot be that of a shard such as dataset.json describes.
        """
        n = shard.samples
        for suffix, size in index_sizes(n).items():
            if len(files[suffix]) != size:
                raise ShardError(
                    f"{place}{suffix} has {len(files[suffix])} bytes, {n} samples take {size}; "
                    f"{REBUILD}"
                )
        offsets = np.frombuffer(files[".idx"], IDX_TYPE)
        counts = np.frombuffer(files[".cnt"], CNT_TYPE).reshape(n, 2)
        found = offsets.astype(object)
        if (np.diff(found) <= 0).any() or found[-1] > shard.bytes:
            raise ShardError(
                f"{place}.idx: its offsets do not lie one after the other in the {shard.bytes} "
                f"bytes of the shard; {REBUILD}"
            )
        if (total := int(counts[:, 0].sum())) != shard.annotations:
            raise ShardError(
                f"{place}.cnt counts {total} annotations, {DATASET_FILE} says "
                f"{shard.annotations}; {REBUILD}"
            )
        return cls(offsets, counts[:, 0], counts[:, 1], np.frombuffer(files[".crc"], CRC_TYPE))


def index_sizes(samples: int) -> dict[str, int]:
    """Ending of each file beside a shard -> its bytes."""
    return {
        ".idx": (samples + 1) * IDX_TYPE.itemsize,
        ".cnt": 2 * samples * CNT_TYPE.itemsize,
        ".crc": samples * CRC_TYPE.itemsize,
    }


def beside(tar: Path, suffix: str) -> Path:
    """Path of a file that lies beside a shard: NAME.tar + suffix."""
    return tar.with_name(tar.name + suffix)

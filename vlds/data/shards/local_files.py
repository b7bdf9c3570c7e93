"""Data sets in a folder of this machine."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlds.data.errors import ShardError
from vlds.data.shards.index import load_index
from vlds.data.shards.info import DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import ShardIndex
from vlds.runtime.regular_file import open_descriptor

OPEN_FILES = 128


class LocalFiles:
    """The files of a data set in a folder.

    Descriptors of those read last are kept; not pickled, so that each process opens its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def open(self) -> tuple[DatasetInfo, list[ShardIndex]]:
        """dataset.json, and the index of every shard."""
        info = DatasetInfo.load(self.folder)
        foreign = info.fields is not None
        return info, [load_index(self.folder, shard, foreign=foreign) for shard in info.shards]

    def place(self, shard: ShardInfo) -> str:
        """Where a shard is, for messages."""
        return str(self.folder / shard.name)

    def cure(self, shard: ShardInfo) -> str:
        """What to do about damage in a shard."""
        return "copy the shard again, or prepare the data set again"

    def renew(self, shard: ShardInfo) -> bool:
        """False: what lies here is all there is."""
        return False

    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        """Bytes of a shard; pread, so that a descriptor inherited by fork may be shared."""
        data = os.pread(self._descriptor(shard.name), size, offset)
        if len(data) < size:
            raise _too_short(offset + len(data), offset + size)
        return data

    def fill(
        self, shard: ShardInfo, offset: int, buffers: Sequence[bytearray | memoryview]
    ) -> None:
        """Read bytes of a shard into buffers, one after the other."""
        size = sum(map(len, buffers))
        got = os.preadv(self._descriptor(shard.name), buffers, offset)
        if got < size:
            raise _too_short(offset + got, offset + size)

    def _descriptor(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
        else:
            self._open[name] = open_descriptor(self.folder / name)
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _too_short(end: int, expected: int) -> ShardError:
    return ShardError(f"the file ends at byte {end}, {expected} expected")

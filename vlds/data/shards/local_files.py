"""Data sets in a folder of this machine, and the samples in it that `data_prep verify` rejects."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from vlds.data.errors import ShardError
from vlds.data.shards.index import load_index
from vlds.data.shards.info import DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import ShardIndex
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import open_descriptor, read_text

OPEN_FILES = 128
QUARANTINE_FILE = "quarantine.jsonl"


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
            end, expected = offset + len(data), offset + size
            raise ShardError(f"the file ends at byte {end}, {expected} expected")
        return data

    def quarantine(self, info: DatasetInfo) -> Mapping[int, str]:
        """Index of each sample that `data_prep verify` rejected -> what is wrong with it. A run
        replaces them without reading them.

        Errors: ValueError that names the file and line.
        """
        path = self.folder / QUARANTINE_FILE
        if not path.is_file():
            return {}
        counts = accumulate((shard.samples for shard in info.shards), initial=0)
        first = dict(zip((shard.name for shard in info.shards), counts, strict=False))
        faults = {}
        # splitlines would also split at U+2028, which may be what is wrong with an id.
        for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
            try:
                entry = parse_json(line)
                faults[first[entry["shard"]] + entry["i"]] = f"in {path}: {entry['reason']}"
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not what `data_prep verify` writes ({error!r}); run "
                    "it again, or remove the file"
                ) from None
        return faults

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

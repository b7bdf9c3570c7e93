"""A shard that is being written: under another name, then synced, renamed and indexed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from vlds.data.index import CNT_TYPE, IDX_TYPE, ShardIndex, beside, describe_shard
from vlds.data.info import ShardInfo


class OpenShard:
    """One tar: plain ustar, no times, no owners, so that the same samples give the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = beside(path, ".partial")
        self.file = open(self.partial, "wb")  # noqa: SIM115 (close or discard does)
        # mtime 0 keeps it plain ustar; else members get PAX headers, and other bytes each time.
        self.tar = TarWriter(self.file, user="", group="", encoder=False, mtime=0)
        self.offsets = [0]
        self.counts: list[int] = []

    def __enter__(self) -> OpenShard:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave nothing of a shard that was not closed."""
        if not self.file.closed:
            self.discard()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.offsets[-1]

    def add(self, key: str, content: Mapping[str, bytes], annotations: int) -> None:
        """Append one sample."""
        self.tar.write({"__key__": key, **content})
        self.offsets.append(self.tar.tarstream.offset)
        self.counts.append(annotations)

    def close(self) -> ShardInfo:
        """Finish, sync, rename, index."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.partial.replace(self.path)
        index = ShardIndex(np.array(self.offsets, IDX_TYPE), np.array(self.counts, CNT_TYPE))
        return describe_shard(self.path, index)

    def discard(self) -> None:
        """Leave nothing of an unfinished shard."""
        with suppress(OSError):  # such as a full disk, which may be why
            self.tar.close()
        self.file.close()
        self.partial.unlink(missing_ok=True)

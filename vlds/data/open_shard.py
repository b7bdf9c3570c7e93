"""A shard that is being written; it is there once it is whole, and then indexed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from vlds.data.index import CNT_TYPE, IDX_TYPE, ShardIndex, describe_shard
from vlds.data.info import ShardInfo
from vlds.runtime.disk import writable
from vlds.runtime.whole_file import whole_file


class Unwanted(Exception):
    """Ends a shard that is not to be kept."""


class OpenShard:
    """One tar: plain ustar, no times, no owners, so that the same samples give the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = whole_file(path)
        self.partial = self._whole.__enter__()
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
        with writable(self.path, self.partial):
            self.tar.write({"__key__": key, **content})
        self.offsets.append(self.tar.tarstream.offset)
        self.counts.append(annotations)

    def close(self) -> ShardInfo:
        """Finish, give it its name, index it.

        Errors: CannotWrite; then nothing is left of it.
        """
        try:
            with writable(self.path, self.partial):
                self.tar.close()
                self.file.close()
        except BaseException:
            self.discard()
            raise
        self._whole.__exit__(None, None, None)
        index = ShardIndex(np.array(self.offsets, IDX_TYPE), np.array(self.counts, CNT_TYPE))
        return describe_shard(self.path, index)

    def discard(self) -> None:
        """Leave nothing of an unfinished shard."""
        for opened in (self.tar, self.file):
            with suppress(OSError):  # such as a full disk, which may be why
                opened.close()
        self._whole.__exit__(Unwanted, Unwanted(), None)

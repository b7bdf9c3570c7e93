"""A shard that is being written. It gets its name when it is whole, and is then indexed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from webdataset import TarWriter

from vlds.data.shards.index import describe_shard
from vlds.data.shards.info import ShardInfo
from vlds.data.shards.sample import FEATURES
from vlds.data.shards.shard_index import Counts, ShardIndex, counts_of, tar_checksums
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
        # mtime 0 keeps it plain ustar; otherwise PAX headers with the time differ in every run.
        self.tar = TarWriter(self.file, user="", group="", encoder=False, mtime=0)
        self.offsets = [0]
        self.counts: list[Counts] = []

    def __enter__(self) -> OpenShard:
        return self

    def __exit__(self, *error: object) -> None:
        """Remove a shard that was not closed."""
        if not self.file.closed:
            self.discard()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.offsets[-1]

    def add(self, key: str, content: Mapping[str, bytes]) -> None:
        """Append one sample.

        Errors: ValueError for unfit ids; CannotWrite.
        """
        features = sum(name.endswith(FEATURES) for name in content)
        try:
            counts = counts_of(content["json"], features)
        except ValueError as error:
            raise ValueError(f"{self.path}, sample {key}: {error}; correct the source") from None
        with writable(self.path, self.partial):
            self.tar.write({"__key__": key, **content})
        self.offsets.append(self.tar.tarstream.offset)
        self.counts.append(counts)

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
        checksums = tar_checksums(self.path, self.offsets)
        index = ShardIndex.of(self.offsets, self.counts, checksums)
        return describe_shard(self.path, index)

    def discard(self) -> None:
        """Remove an unfinished shard."""
        for opened in (self.tar, self.file):
            with suppress(OSError):  # perhaps the full disk that led here
                opened.close()
        self._whole.__exit__(Unwanted, Unwanted(), None)

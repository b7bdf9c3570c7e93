"""Data sets whose folder is a URL: http://, s3://, gs://, whatever fsspec opens.

Files are fetched whole and checked against dataset.json, then read as local ones. The files beside
the shards are fetched when the data set is opened, a shard when its first sample is read. Every run
fetches dataset.json itself; the processes of a run share one copy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from vlds.data.errors import FetchError
from vlds.data.shards.address import below
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.download import fetch
from vlds.data.shards.info import DATASET_FILE, DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import ShardIndex, index_sizes
from vlds.runtime.credentials import without_credentials
from vlds.runtime.manifest import sha256 as file_sha256
from vlds.runtime.regular_file import read_file

FRESH_S = 60.0
"""A younger copy of dataset.json was made by a process of the same run."""
FAILED_S = 600.0
"""Seconds before a shard that could not be fetched is requested again."""
NUM_THREADS = 16
"""Small files fetched at once."""
MAX_FETCHES = 3
"""How often the cache may lose a shard before its first byte is read."""


def is_url(folder: str | Path) -> bool:
    """True for a data set that is fetched, False for a folder of this machine."""
    return isinstance(folder, str) and "://" in folder


class RemoteFiles:
    """The files of a data set at a URL, through copies in a cache."""

    def __init__(self, url: str, cache: ShardCache) -> None:
        self._address = url
        self.folder = without_credentials(url).rstrip("/")
        """For messages, and for names in the cache."""
        self.cache = cache
        self._failed: dict[str, tuple[float, str]] = {}
        self._hashed: set[str] = set()
        """Names of the shards whose copies were compared with their sha256."""

    def open(self) -> tuple[DatasetInfo, list[ShardIndex]]:
        """dataset.json, and the index of every shard.

        Errors: ValueError that names the URL, what is wrong, and the cure.
        """
        url = below(self.folder, DATASET_FILE)
        path = self._copy(DATASET_FILE)
        with self.cache.alone(path):
            try:
                if not _is_fresh(path):
                    self._download(path, DATASET_FILE)
                info = DatasetInfo.parse(read_file(path), url)
                with ThreadPoolExecutor(NUM_THREADS) as pool:
                    indexes = list(pool.map(self._index, info.shards))
            except ValueError:
                path.unlink(missing_ok=True)  # it may be corrected within FRESH_S
                raise
        return info, indexes

    def location(self, shard: ShardInfo) -> str:
        """Where a shard is, for messages."""
        return below(self.folder, shard.name)

    def cure(self, shard: ShardInfo) -> str:
        """What to do about damage in a shard."""
        path = self._copy(shard.name, shard.sha256)
        return f"remove its copy {path}, or prepare the data set again"

    def quarantine(self, info: DatasetInfo) -> Mapping[int, str]:
        """Nothing: `data_prep verify` writes to local folders only."""
        return {}

    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        """Bytes of a shard, which is fetched if it is not in the cache.

        Errors: FetchError that names the URL, what happened, and the cure.
        """
        path = self._copy(shard.name, shard.sha256)
        for _ in range(MAX_FETCHES):
            data = self.cache.read(path, offset, size, shard.bytes)
            if data is not None:
                return data
            self._fetch(shard, path)
        raise FetchError(
            f"{self.location(shard)}: its copy is removed from the cache {self.cache.folder} "
            "before it can be read; raise data.cache_bytes, or give this run another data.cache"
        )

    def renew(self, shard: ShardInfo) -> bool:
        """Remove a copy that is not the file that dataset.json describes; False if this process has
        checked it before. Hashing takes long, so a process hashes a copy once, and only if a sample
        in it was wrong."""
        if shard.name in self._hashed:
            return False
        self._hashed.add(shard.name)
        path = self._copy(shard.name, shard.sha256)
        with self.cache.alone(path):
            if path.exists() and file_sha256(path) != shard.sha256:
                path.unlink()
        # True even for a good copy: another process may have replaced it after the sample was read.
        return True

    def _copy(self, name: str, version: str = "") -> Path:
        """Path of a file's copy, the same for all signatures of its URL."""
        secret = self.folder != self._address.rstrip("/")
        folder = self.folder.partition("?")[0] if secret else self.folder
        return self.cache.path(below(folder, name), version)

    def _index(self, shard: ShardInfo) -> ShardIndex:
        sizes = index_sizes(shard.samples)
        files = {
            suffix: self._small_file(shard.name + suffix, hash, sizes[suffix])
            for suffix, hash in shard.index_hashes.items()
        }
        return ShardIndex.parse(files, shard, self.location(shard))

    def _small_file(self, name: str, hash: str, size: int) -> bytes:
        path = self._copy(name, hash)
        with suppress(FileNotFoundError):
            if sha256(data := read_file(path)).hexdigest() == hash:
                return data
        self._download(path, name, (hash, size))
        return read_file(path)

    def _fetch(self, shard: ShardInfo, path: Path) -> None:
        """Bring a shard into the cache, unless another process does so in the meantime."""
        limit = self.cache.limit
        if limit is not None and shard.bytes > limit:
            raise FetchError(
                f"data.cache_bytes: got {limit}, but {self.location(shard)} has {shard.bytes}; "
                "give at least that many"
            )
        since, message = self._failed.get(shard.name, (0.0, ""))
        if message and time.monotonic() - since < FAILED_S:
            raise FetchError(message)
        try:
            with self.cache.alone(path):
                if path.exists() and path.stat().st_size == shard.bytes:
                    return
                self._download(path, shard.name, (shard.sha256, shard.bytes))
        except FetchError as error:
            self._failed[shard.name] = time.monotonic(), str(error)
            raise

    def _download(self, path: Path, name: str, expected: tuple[str, int] | None = None) -> None:
        self.cache.add(path, lambda partial: fetch(self._address, name, partial, expected))


def _is_fresh(path: Path) -> bool:
    try:
        return abs(time.time() - path.stat().st_mtime) < FRESH_S
    except FileNotFoundError:
        return False

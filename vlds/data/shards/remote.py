"""The files of a data set at a URL: http://, s3://, gs://, hf://, whatever fsspec opens.

The files beside the shards are fetched when the data set is opened. A shard gets a copy in the
cache when its first sample is wanted: one process of the machine fetches it whole and checks its
sha256. From an object store, the first samples are read as ranges of the shard, so that a run
begins before its first window of shards is there; a web server may not send ranges, so there
everybody waits for the copy. Every run fetches dataset.json itself; the processes of a run share
one copy.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import finalize

from vlds.data.errors import FetchError, FullDisk
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.download import (
    below,
    fetch,
    is_web,
    read_bytes,
    read_range,
    tell_rarely,
)
from vlds.data.shards.info import DATASET_FILE, QUARANTINE_FILE, DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import KEPT_SAMPLES, ShardIndex, index_sizes
from vlds.runtime.files import read_file
from vlds.runtime.json_files import in_words, parse_json
from vlds.runtime.json_files import sha256 as file_sha256
from vlds.runtime.terminal import without_credentials

FRESH_S = 60.0
"""A younger copy of dataset.json was made by a process of the same run."""
FAILED_S = 600.0
"""For so long, a shard that the store does not have, or has with other bytes, fails at once."""
MOST_RANGED = 1 / 16
"""Share of a shard that a process reads as ranges before it waits for the copy."""
AT_ONCE = 16
"""Ranges that a process reads at once."""


def is_url(folder: str | Path) -> bool:
    """True for a data set that is fetched, False for a folder of this machine."""
    return isinstance(folder, str) and "://" in folder


class RemoteFiles:
    """The files of a data set at a URL, through copies in a cache."""

    def __init__(self, url: str, cache: ShardCache, *, copies: bool = True) -> None:
        """`copies`: of the shards too. A web server's are copied anyway."""
        self._address, self._copies = url, copies or is_web(url)
        self.folder = without_credentials(url).rstrip("/")
        """For messages, and for names in the cache."""
        self.cache = cache
        self.has_ranges = not is_web(url)
        """Whether samples can be read before their shard has a copy."""
        self._failed: dict[str, tuple[float, FetchError]] = {}
        self._hashed: set[str] = set()
        """Names of the shards whose copies were compared with their sha256."""
        self._copied: set[str] = set()
        """Names of the shards whose copies this process has read."""
        self._ranged = Counter[str]()
        """Bytes of each shard that this process has read as ranges."""
        self._gathered: dict[tuple[str, int], bytes] = {}
        self._copier = self._start_copier()

    def _start_copier(self) -> Copier:
        # It works for an object with the same tables, so that its threads do not keep this one
        # alive: they end with it.
        twin = object.__new__(RemoteFiles)
        vars(twin).update(vars(self))
        copier = Copier(twin._copy_alone)
        finalize(self, copier.stop)
        return copier

    def open(self) -> tuple[DatasetInfo, list[ShardIndex]]:
        """dataset.json, and of a small data set the index of every shard.

        Errors: ValueError that names the URL, what is wrong, and the cure.
        """
        url = below(self.folder, DATASET_FILE)
        path = self._copy(DATASET_FILE)
        age: float | None = None
        # One process of the machine fetches; the others wait here and find fresh copies.
        with self.cache.alone(path):
            try:
                with suppress(FileNotFoundError):
                    age = time.time() - path.stat().st_mtime
                # abs: a clock that was set back must not make an old copy fresh for hours.
                if age is None or abs(age) >= FRESH_S:
                    self._download(path, DATASET_FILE)
                info = DatasetInfo.parse(read_file(path), url)
                # The files beside shards are small: most of their time is the server's answer.
                shards = info.shards if info.samples <= KEPT_SAMPLES else []
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    indexes = list(pool.map(self._index, shards))
            except ValueError:
                path.unlink(missing_ok=True)  # it may be corrected within FRESH_S
                raise
        return info, indexes

    def index(self, info: DatasetInfo, number: int) -> ShardIndex:
        """The index of a shard, which one process of the machine fetches. Errors: ShardError."""
        shard = info.shards[number]
        with self.cache.alone(self._copy(f"{shard.name}.idx", shard.idx_sha256)):
            return self._index(shard)

    def location(self, shard: ShardInfo) -> str:
        """Where a shard is, for messages."""
        return below(self.folder, shard.name)

    def cure(self, shard: ShardInfo) -> str:
        """What to do about damage in a shard."""
        path = self._copy(shard.name, shard.sha256)
        return f"remove its copy {path}, or prepare the data set again"

    def quarantine(self, info: DatasetInfo) -> Mapping[int, str]:
        """As in LocalFiles. Nothing from a web server, to which `vlds data verify` cannot write."""
        if not self.has_ranges:
            return {}
        data = read_bytes(self._address, QUARANTINE_FILE)
        return parse_quarantine(data, below(self.folder, QUARANTINE_FILE), info) if data else {}

    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        """Bytes of a shard.

        Errors: FetchError that names the URL, what happened, and the cure.
        """
        path, limit = self._copy(shard.name, shard.sha256), self.cache.limit
        # Another process may remove the copy before its first byte is read; three times in a row,
        # the cache is too small.
        for _ in range(3):
            data = self.cache.read(path, offset, size, shard.bytes)
            if data is not None:
                # Its next copy, perhaps an epoch later, is begun with ranges as this one was.
                self._ranged.pop(shard.name, None)
                self._copied.add(shard.name)
                return data
            # With a limit it was the longest unused: an epoch has passed, or others share the room.
            if limit is None and shard.name in self._copied:
                self._copied.discard(shard.name)
                tell_rarely(
                    "removed",
                    f"{self.location(shard)}: somebody has removed or cut its copy in "
                    f"{self.cache.folder}; it is fetched again: keep others off that folder",
                )
            if limit is not None and shard.bytes > limit:
                raise FetchError(
                    f"data.cache_bytes: got {limit}, but {self.location(shard)} has {shard.bytes}; "
                    "give at least that many"
                )
            since, error = self._failed.get(shard.name, (0.0, None))
            if error is not None and time.monotonic() - since > FAILED_S:
                del self._failed[shard.name]
            elif error is not None and not (self.has_ranges and is_full(error)):
                raise type(error)(str(error))
            gathered = self._gathered.pop((shard.name, offset), None)
            if gathered is not None and len(gathered) == size:
                return gathered
            if self._may_range(shard):
                data = self._read_range(shard, offset, size)
                self._want([shard], first=True)
                return data
            self._copy_now(shard)
        raise FetchError(
            f"{self.location(shard)}: its copy is removed from the cache {self.cache.folder} "
            "before it can be read; raise data.cache_bytes, or give this run another data.cache"
        )

    def gather(self, wanted: Sequence[tuple[ShardInfo, int, int]]) -> None:
        """Read (shard, offset, size) of shards without a copy, all at once, for the calls of `read`
        that follow: most of a range's time is the store's answer."""
        self._gathered.clear()
        if not self.has_ranges:
            return
        missing = [w for w in wanted if not self._copy(w[0].name, w[0].sha256).exists()]
        missing = [w for w in missing if self._may_range(w[0])]
        if len(missing) < 2:
            return

        def read_one(place: tuple[ShardInfo, int, int]) -> None:
            shard, offset, size = place
            with suppress(FetchError):  # `read` meets it again, and says so
                self._gathered[shard.name, offset] = self._read_range(shard, offset, size)

        with ThreadPoolExecutor(min(AT_ONCE, len(missing))) as pool:
            list(pool.map(read_one, missing))
        # Afterwards: copies would share the line with what the batch waits for.
        self._want([shard for shard, _, _ in missing], first=True)

    def expect(self, shards: Sequence[ShardInfo]) -> None:
        """Copy shards that will be read soon, in the background; keep the copies that are there."""
        if self.has_ranges:
            self._want(shards, first=False)

    def _may_range(self, shard: ShardInfo) -> bool:
        """Whether to read from the store what is wanted of a shard without a copy."""
        # What comes as ranges comes again in the copy: where the line is the limit, that is waste.
        # A full disk leaves no choice.
        if not self._copies:
            return True
        if (failed := self._failed.get(shard.name)) is not None:
            return self.has_ranges and is_full(failed[1])
        return self.has_ranges and self._ranged[shard.name] < shard.bytes * MOST_RANGED

    def _want(self, shards: Iterable[ShardInfo], *, first: bool) -> None:
        """Copy shards in the background."""
        if not self._copies:
            return
        for shard in dict.fromkeys(shards):
            path = self._copy(shard.name, shard.sha256)
            is_there = self.cache.read(path, 0, 0, shard.bytes) is not None
            if shard.name not in self._failed and not is_there:
                self._copier.want(shard, first=first)

    def _read_range(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        self._ranged[shard.name] += size
        return read_range(self._address, shard.name, offset, size, shard.bytes)

    def renew(self, shard: ShardInfo) -> bool:
        """Compare a copy with dataset.json, and fetch it again if it is another file; make the copy
        if there is none. False if this process has done so before: hashing takes long, so a process
        hashes a copy once, and only if a sample in it was wrong.

        Errors: FetchError.
        """
        if shard.name in self._hashed:
            return False
        self._hashed.add(shard.name)
        path = self._copy(shard.name, shard.sha256)
        with self.cache.alone(path):
            if path.exists() and file_sha256(path) != shard.sha256:
                path.unlink()
        # A sample that came as a range: only its whole shard tells whether that was replaced.
        if self.has_ranges and self._copies:
            self._copy_now(shard)
        # True even for a good copy: another process may have replaced it after the sample was read.
        return True

    def _copy(self, name: str, version: str = "") -> Path:
        """Path of a file's copy, the same for all signatures of its URL."""
        # A signature is new in each run; a query without secrets may name the data.
        secret = self.folder != self._address.rstrip("/")
        folder = self.folder.partition("?")[0] if secret else self.folder
        return self.cache.path(below(folder, name), version)

    def _copy_now(self, shard: ShardInfo) -> None:
        """Make the copy of a shard, or wait until another process has.

        Errors: FetchError.
        """
        with self.cache.alone(self._copy(shard.name, shard.sha256)):
            self._copy_locked(shard)

    def _copy_alone(self, shard: ShardInfo) -> None:
        """Make the copy of a shard, unless another process does or many others are being made."""
        path = self._copy(shard.name, shard.sha256)
        with self.cache.alone(path, wait=False) as is_mine:
            if is_mine:
                with self.cache.slot() as has_slot:
                    if has_slot:
                        self._copy_locked(shard)

    def _copy_locked(self, shard: ShardInfo) -> None:
        path = self._copy(shard.name, shard.sha256)
        # Another process may have made it while this one waited for the lock.
        if path.exists() and path.stat().st_size == shard.bytes:
            return
        try:
            try:
                self._download(path, shard.name, (shard.sha256, shard.bytes))
            except FullDisk:
                if not self.cache.free(shard.bytes):
                    raise
                self._download(path, shard.name, (shard.sha256, shard.bytes))
        except FetchError as error:
            self._failed[shard.name] = time.monotonic(), error
            if is_full(error) and self.has_ranges:
                tell_rarely("full", f"{error}; until then its samples are read without a copy")
                return
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_copier"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._copier = self._start_copier()

    def _index(self, shard: ShardInfo) -> ShardIndex:
        sizes, files = index_sizes(shard.samples), {}
        for suffix, expected in shard.index_hashes.items():
            name = shard.name + suffix
            path = self._copy(name, expected)
            data = b""
            with suppress(FileNotFoundError):
                data = read_file(path)
            if sha256(data).hexdigest() != expected:
                self._download(path, name, (expected, sizes[suffix]))
                data = read_file(path)
            files[suffix] = data
        return ShardIndex.parse(files, shard, self.location(shard))

    def _download(self, path: Path, name: str, expected: tuple[str, int] | None = None) -> None:
        self.cache.add(path, lambda partial: fetch(self._address, name, partial, expected))


def is_full(error: FetchError) -> bool:
    """True if this machine's disk is to blame."""
    return isinstance(error, FullDisk)


class Copier:
    """Makes copies of shards in the background, in a few threads of each process that asks."""

    THREADS = 4
    PAUSE_S = 1.0
    """For so long a shard that another process copies is left to it."""

    def __init__(self, copy: Callable[[ShardInfo], None]) -> None:
        self._copy = copy
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[ShardInfo] = deque()
        self._names: set[str] = set()
        """Of shards that wait or are being copied."""
        self._tried: dict[str, float] = {}
        self._running = 0

    def want(self, shard: ShardInfo, *, first: bool) -> None:
        """Copy a shard, before all that wait or after them."""
        if self._process != os.getpid():  # a fork has the table of its parent, but no thread
            self._start()
        with self._lock:
            if shard.name in self._names:
                # Expected, and read by now: it goes to the front.
                if first and shard in self._waiting:
                    self._waiting.remove(shard)
                    self._waiting.appendleft(shard)
                return
            if time.monotonic() - self._tried.get(shard.name, float("-inf")) < self.PAUSE_S:
                return
            self._names.add(shard.name)
            (self._waiting.appendleft if first else self._waiting.append)(shard)
            if self._running < self.THREADS:
                self._running += 1
                # A daemon: a run that ends does not wait for what it no longer needs.
                threading.Thread(target=self._work, daemon=True).start()

    def stop(self) -> None:
        """Copy nothing more, after what is being copied."""
        with self._lock:
            self._waiting.clear()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                shard = self._waiting.popleft()
            # An error is kept for the next read of the shard, which raises it.
            with suppress(ValueError, OSError):
                self._copy(shard)
            with self._lock:
                self._names.discard(shard.name)
                self._tried[shard.name] = time.monotonic()


def parse_quarantine(data: bytes, path: str, info: DatasetInfo) -> Mapping[int, str]:
    """Index of each sample that `vlds data verify` rejected -> what is wrong with it. A run
    replaces them without reading them.

    Errors: ValueError that names the file and line.
    """
    # The file names shards; a run counts samples through all of them.
    counts = accumulate((shard.samples for shard in info.shards), initial=0)
    first = dict(zip((shard.name for shard in info.shards), counts, strict=False))
    faults = {}
    # splitlines would also split at U+2028, which may be what is wrong with an id.
    for number, line in enumerate(data.decode().removesuffix("\n").split("\n"), 1):
        try:
            entry = parse_json(line)
            faults[first[entry["shard"]] + entry["i"]] = f"in {path}: {entry['reason']}"
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not what `vlds data verify` writes "
                f"({in_words(error)}); run it again, or remove the file"
            ) from None
    return faults

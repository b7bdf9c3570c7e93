"""Data sets whose folder is a URL: http://, s3://, gs://, whatever fsspec opens.

Files are fetched whole and checked against dataset.json, then read as local ones. What lies beside
the shards comes when the data set is opened, a shard when its first sample is read. dataset.json
itself is fetched anew by every run; the processes of a run share one copy.
"""

from __future__ import annotations

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

from fsspec.core import url_to_fs

from vlds.data.errors import FetchError
from vlds.data.shards.address import below, check_whole, is_web, split_login
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.download import MOST_REDIRECTS, TooMuch, download, web_options
from vlds.data.shards.info import DATASET_FILE, DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import ShardIndex, index_sizes
from vlds.runtime.credentials import without_credentials
from vlds.runtime.manifest import sha256 as file_sha256
from vlds.runtime.regular_file import LARGEST_FILE, read_file

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each new try of a download that broke."""
FRESH_S = 60.0
"""A copy of dataset.json so young was made by a process of the same run."""
FAILED_S = 600.0
"""Seconds for which a shard that could not be fetched is not asked for again."""
NUM_THREADS = 16
"""Small files fetched at once."""
MAX_FETCHES = 3
"""How often a shard may go from the cache before its first byte is read."""
REDIRECTED = {
    "TooManyRedirects": f"more than {MOST_REDIRECTS} times",
    "NonHttpUrlRedirectClientError": "to an address that is not of the web",
    "InvalidUrlRedirectClientError": "to what is not an address",
}
"""aiohttp's exceptions, by name: it is imported only where a web server is asked."""


def is_url(folder: str | Path) -> bool:
    """Whether a data set is fetched, or lies in a folder of this machine."""
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
        url = self._url(DATASET_FILE)
        path = self._copy(DATASET_FILE)
        with self.cache.alone(path):
            try:
                if not _is_fresh(path):
                    self.cache.add(path, lambda p: _Server(self._address).fetch(DATASET_FILE, p))
                info = DatasetInfo.parse(read_file(path), url)
                with ThreadPoolExecutor(NUM_THREADS) as pool:
                    indexes = list(pool.map(self._index, info.shards))
            except ValueError:
                path.unlink(missing_ok=True)  # what is wrong may be put right within a minute
                raise
        return info, indexes

    def place(self, shard: ShardInfo) -> str:
        """Where a shard is, for messages."""
        return self._url(shard.name)

    def cure(self, shard: ShardInfo) -> str:
        """What to do about damage in a shard."""
        path = self._copy(shard.name, shard.sha256)
        return f"remove its copy {path}, or prepare the data set again"

    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        """Bytes of a shard, which is fetched where the cache does not hold it.

        Errors: FetchError that names the URL, what happened, and the cure.
        """
        path = self._copy(shard.name, shard.sha256)
        for _ in range(MAX_FETCHES):
            data = self.cache.read(path, offset, size, shard.bytes)
            if data is not None:
                return data
            self._fetch(shard, path)
        raise FetchError(
            f"{self.place(shard)}: its copy goes from the cache {self.cache.folder} before it can "
            "be read; raise data.cache_bytes, or give this run another data.cache"
        )

    def renew(self, shard: ShardInfo) -> bool:
        """Fetch a shard again whose copy is not the file that dataset.json describes; False where
        the copy is that file. Hashing a copy takes long, so it is done once in each process, and
        only for shards of which a sample was wrong.

        Errors: FetchError where it cannot be fetched again.
        """
        if shard.name in self._hashed:
            return False
        self._hashed.add(shard.name)
        path = self._copy(shard.name, shard.sha256)
        with self.cache.alone(path):
            if path.exists() and file_sha256(path) != shard.sha256:
                path.unlink()
        # Else another process may have fetched it again since the sample was read.
        return True

    def _url(self, name: str) -> str:
        """As it is shown."""
        return below(self.folder, name)

    def _copy(self, name: str, version: str = "") -> Path:
        """The place of a file's copy, whoever has signed its URL when."""
        secret = self.folder != self._address.rstrip("/")
        folder = self.folder.partition("?")[0] if secret else self.folder
        return self.cache.path(below(folder, name), version)

    def _index(self, shard: ShardInfo) -> ShardIndex:
        sizes = index_sizes(shard.samples)
        files = {
            suffix: self._small_file(shard.name + suffix, hash, sizes[suffix])
            for suffix, hash in shard.index_hashes.items()
        }
        return ShardIndex.parse(files, shard, self.place(shard))

    def _small_file(self, name: str, hash: str, size: int) -> bytes:
        path = self._copy(name, hash)
        with suppress(FileNotFoundError):
            if sha256(data := read_file(path)).hexdigest() == hash:
                return data
        self.cache.add(path, lambda p: _Server(self._address).fetch(name, p, hash, size))
        return read_file(path)

    def _fetch(self, shard: ShardInfo, path: Path) -> None:
        """Bring a shard into the cache, unless another process does so meanwhile."""
        limit = self.cache.limit
        if limit is not None and shard.bytes > limit:
            raise FetchError(
                f"data.cache_bytes: got {limit}, but {self.place(shard)} has {shard.bytes}; give "
                "at least that many"
            )
        since, message = self._failed.get(shard.name, (0.0, ""))
        if message and time.monotonic() - since < FAILED_S:
            raise FetchError(message)
        try:
            with self.cache.alone(path):
                if path.exists() and path.stat().st_size == shard.bytes:
                    return
                server = _Server(self._address)
                self.cache.add(
                    path, lambda p: server.fetch(shard.name, p, shard.sha256, shard.bytes)
                )
        except FetchError as error:
            self._failed[shard.name] = time.monotonic(), str(error)
            raise


def open_stream(url: str) -> IO[bytes]:
    """The bytes of a file at a URL, from its beginning.

    Errors: FetchError that names the URL and what happened.
    """
    try:
        check_whole(url)
        files, path = url_to_fs(url)
        stream: IO[bytes] = files.open(path, "rb")
    except Exception as error:  # each sort of storage has exceptions of its own
        reason = _final_reason(error, Path()) or f"{_said(error)}; check the address"
        raise FetchError(without_credentials(f"{url}: {reason}")) from None
    return stream


class _Server:
    """fsspec's file system of a URL. Made where it is used: it belongs to one thread.

    Loader workers are forked; fsspec notices that from 2025.5.1 on, before it hung there.
    """

    def __init__(self, url: str) -> None:
        self.url = without_credentials(url)
        try:
            if is_web(url):
                plain, login = split_login(url)
                self._files, self._root = url_to_fs(plain, **web_options(login))
            else:
                check_whole(url)
                self._files, self._root = url_to_fs(url)
        except FetchError:
            raise
        except (ImportError, ValueError) as error:
            raise FetchError(
                without_credentials(
                    f"data set {url}: {error}; give an address that fsspec can open here, such as "
                    "https://"
                )
            ) from None

    def fetch(
        self, name: str, path: Path, hash: str | None = None, size: int | None = None
    ) -> None:
        """Write a file of the folder to `path`; with `hash`, check its sha256, and its size. No
        more is taken than that size, or LARGEST_FILE.

        Errors: FetchError for what no further try would change, and after the last try.
        """
        url = below(self.url, name)
        limit = LARGEST_FILE if size is None else size
        num_wrong = 0
        for pause in (*PAUSES, None):
            try:
                download(self._files, below(self._root, name), path, limit)
            except Exception as error:  # each sort of storage has exceptions of its own
                # Not `from error`: a traceback would show the whole URL.
                if reason := _final_reason(error, path):
                    raise FetchError(without_credentials(f"{url}: {reason}")) from None
                if pause is None:
                    raise FetchError(
                        without_credentials(
                            f"{url}: {len(PAUSES) + 1} downloads broke, the last one with "
                            f"{_said(error)}; check the connection and start again: what has been "
                            "fetched is kept"
                        )
                    ) from None
                time.sleep(pause)
                continue
            if hash is None or (wrong := _difference(path, hash, size)) is None:
                return
            num_wrong += 1
            if num_wrong > 1 or pause is None:
                raise FetchError(
                    f"{url}: {wrong}: it is not the file that was prepared; upload the whole data "
                    "set again"
                )


def _difference(path: Path, hash: str, size: int | None) -> str | None:
    """How a file that came differs from what dataset.json says of it."""
    found, length = file_sha256(path), path.stat().st_size
    if found == hash and size in (None, length):
        return None
    said = hash[:12] if size is None else f"{hash[:12]} and {size} bytes"
    return f"came with sha256 {found[:12]} and {length} bytes, {DATASET_FILE} says {said}"


def _is_fresh(path: Path) -> bool:
    try:
        return abs(time.time() - path.stat().st_mtime) < FRESH_S
    except FileNotFoundError:
        return False


def _said(error: Exception) -> str:
    """An error with its class. The `repr` of aiohttp's shows the headers that were sent, and with
    them the login."""
    return f"{type(error).__name__}({str(error)!r})"


def _final_reason(error: Exception, path: Path) -> str | None:
    """What is wrong and the cure, where no further try would change anything."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "there is no such file (404); check the address, and that all files were uploaded"
    if isinstance(error, PermissionError) or status in (401, 403):
        return (
            "access is refused (403); check the address, and give the credentials: for a web "
            "server in ~/.netrc, else in the environment variables of this sort of storage or a "
            "file in ~/.config/fsspec"
        )
    if isinstance(error, TooMuch):
        return f"{error}; it is not the file that was prepared: check the address and the server"
    if type(error).__name__ in REDIRECTED:
        return f"the server redirects it {REDIRECTED[type(error).__name__]}; check the address"
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
        return f"the server refuses it ({error}); check the address"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space for it in {path.parent}; name a larger disk as data.cache, or keep less by "
            "data.cache_bytes"
        )
    return None

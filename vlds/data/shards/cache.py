"""Copies of files that lie elsewhere, in a folder that the processes of a machine share.

A copy is there whole or not at all. One process fetches a file while the others wait for it. Every
read opens the copy anew and notes the time of use as its time of change, so that the copies unused
for longest make room for new ones. What is being read while it goes stays readable to the end; what
has gone is fetched again: so removing is never wrong, only slow where the limit is too small.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from vlds.data.errors import FetchError
from vlds.runtime.whole_file import whole_file

SHARD_SUFFIX = ".tar"
"""Copies that the limit is for; what lies beside the shards is small and stays."""
GONE = (errno.ENOENT, errno.ESTALE)


def default_folder() -> Path:
    """The user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlds"


@dataclass(frozen=True)
class ShardCache:
    """A folder of copies."""

    folder: Path = field(default_factory=default_folder)
    limit: int | None = None
    """Bytes of shards that are kept at most; those that are just coming in are not counted."""

    def path(self, url: str, version: str = "") -> Path:
        """Where the copy of a file is, or will be.

        The name is a hash of the whole URL, because data sets may have shards of one name, and of
        the file's `version`, because others may come to lie under the URL.
        """
        return self.folder / _name(url, version)

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Wait until no other process is busy with a copy, and keep the others waiting.

        A process that dies leaves no lock behind.
        """
        lock = FileLock(f"{path}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise FetchError(
                f"data.cache: {self.folder} cannot be written ({error.strerror}); name another "
                "folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def add(self, path: Path, fetch: Callable[[Path], None]) -> None:
        """Make a copy: `fetch` writes the file it is given, which then gets the copy's name."""
        # Room is held until the copy has its name, which it gets first.
        with ExitStack() as room, whole_file(path) as partial:
            fetch(partial)
            if self.limit is not None and path.suffix == SHARD_SUFFIX:
                room.enter_context(self.alone(self.folder / "room"))
                self._make_room(partial.stat().st_size, self.limit)

    def read(self, path: Path, offset: int, size: int, whole: int) -> bytes | None:
        """Bytes of a copy, which is used now; None where there is none of `whole` bytes."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != whole:
                    return None
                now = time.time_ns()
                os.utime(descriptor, ns=(now, now))
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def _make_room(self, size: int, limit: int) -> None:
        """Remove what has been unused for longest until `size` more bytes are within the limit."""
        copies = []
        for path in self.folder.glob(f"*{SHARD_SUFFIX}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_mtime_ns, status.st_size, path))
        total = size + sum(bytes for _, bytes, _ in copies)
        for _, bytes, path in sorted(copies):
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= bytes


@lru_cache(maxsize=4096)
def _name(url: str, version: str) -> str:
    return sha256(f"{url}\n{version}".encode()).hexdigest() + Path(url.partition("?")[0]).suffix

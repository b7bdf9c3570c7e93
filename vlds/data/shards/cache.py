"""Copies of remote files, in a folder that the processes of a machine share.

A copy is there whole or not at all. One process fetches a file while the others wait for it. Every
read opens the copy and sets its modification time, so that the least recently used copies make room
for new ones. A copy that is removed while it is read stays readable to the end; a removed copy is
fetched again. So removing is never wrong, only slow if the limit is too small.
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
"""The limit counts these copies; the files beside shards are small and stay."""
GONE = (errno.ENOENT, errno.ESTALE)


def default_folder() -> Path:
    """The user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlds"


@dataclass(frozen=True)
class ShardCache:
    """A folder of copies."""

    folder: Path = field(default_factory=default_folder)
    limit: int | None = None
    """Most bytes of shards; downloads in progress are not counted."""

    def path(self, url: str, version: str = "") -> Path:
        """Path of a file's copy.

        Its name is a hash of the whole URL, because data sets may have shards of one name, and of
        the file's `version`, because the file at a URL may change.
        """
        return self.folder / _name(url, version)

    @contextmanager
    def alone(self, path: Path) -> Iterator[None]:
        """Lock a copy for this process. A process that dies leaves no lock behind."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.lock").acquire()
        except OSError as error:
            raise FetchError(
                f"data.cache: {self.folder} cannot be written ({error.strerror}); name another "
                "folder"
            ) from None
        with lock:
            yield

    def add(self, path: Path, fetch: Callable[[Path], None]) -> None:
        """Make a copy: `fetch` writes a partial file, which then gets the copy's name."""
        # The lock on room is released after the copy has its name: exits run in reverse.
        with ExitStack() as room, whole_file(path) as partial:
            fetch(partial)
            if self.limit is not None and path.suffix == SHARD_SUFFIX:
                room.enter_context(self.alone(self.folder / "room"))
                self._make_room(partial.stat().st_size, self.limit)

    def read(self, path: Path, offset: int, size: int, whole: int) -> bytes | None:
        """Read bytes of a copy and mark it as used; None if there is none of `whole` bytes."""
        try:
            with open(path, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != whole:
                    return None
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def _make_room(self, size: int, limit: int) -> None:
        """Remove the least recently used copies until `size` more bytes fit."""
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

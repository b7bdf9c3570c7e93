"""Copies of remote files on the disk of this machine."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from vlds.data.errors import FetchError
from vlds.runtime.files import half_made

SHARD_SUFFIX = ".tar"
"""The limit counts these copies; the files beside shards are small and stay."""
OURS = re.compile(rf"[0-9a-f]{{64}}{re.escape(SHARD_SUFFIX)}")
"""Names that `_name` gives; nothing else is removed, whoever put it into the folder."""
GONE = (errno.ENOENT, errno.ESTALE)
SLOTS = 16
TOUCH_S = 0.5
"""Seconds in which reads set a copy's time once."""
IDLE_S = 3600.0
"""On a full disk, copies that were not read for so long make room; a run may still want others."""


@dataclass(frozen=True)
class ShardCache:
    """Copies of remote files, in a folder that the processes of a machine share.

    A copy is there whole or not at all. One process fetches a file while the others wait for it.
    A read opens the copy and sets its modification time, so that the least recently used copies
    make room for new ones. A copy that is removed while it is read stays readable to the end; a
    removed copy is fetched again. So removing is never wrong, only slow if the limit is too small.
    """

    # Read when a cache is made: the variable may be set after the import.
    folder: Path = field(
        default_factory=lambda: (
            Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlds"
        )
    )
    limit: int | None = None
    """Most bytes of shards; downloads in progress are not counted."""

    def path(self, url: str, version: str = "") -> Path:
        """Path of a file's copy.

        Its name is a hash of the whole URL, because data sets may have shards of one name, and of
        the file's `version`, because the file at a URL may change.
        """
        return self.folder / _name(url, version)

    @contextmanager
    def alone(self, path: Path, *, wait: bool = True) -> Iterator[bool]:
        """Lock a copy for this process; False if another one has it, and this one does not `wait`.
        A process that dies leaves no lock behind."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.lock").acquire(blocking=wait)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise FetchError(
                f"data.cache: {self.folder} cannot be written ({error.strerror}); name another "
                "folder"
            ) from None
        with lock:
            yield True

    @contextmanager
    def slot(self) -> Iterator[bool]:
        """A turn among the few downloads that this machine makes at once in the background; False
        if there are as many. More would share the line, and all come late."""
        for number in range(SLOTS):
            with self.alone(self.folder / f"slot-{number}", wait=False) as is_mine:
                if is_mine:
                    yield True
                    return
        yield False

    def add(self, path: Path, fetch: Callable[[Path], None]) -> None:
        """Make a copy: `fetch` writes a partial file, which then gets the copy's name."""
        # Not flushed to disk: after a power failure, the sums of its samples tell that a copy is
        # not what it was, and it is fetched again. The lock on room is released after the copy has
        # its name: exits run in reverse.
        with ExitStack() as room, half_made(path) as partial:
            fetch(partial)
            if self.limit is not None and path.suffix == SHARD_SUFFIX:
                room.enter_context(self.alone(self.folder / "room"))
                self._make_room(partial.stat().st_size, self.limit)
            os.replace(partial, path)

    def read(self, path: Path, offset: int, size: int, whole: int) -> bytes | None:
        """Read bytes of a copy and mark it as used; None if there is none of `whole` bytes. No
        bytes: as a copy that will be read soon, so that it does not make room before."""
        try:
            with open(path, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if status.st_size != whole:
                    return None
                # Not at each read: a change of time may wait for the disk.
                now = time.time_ns()
                if abs(now - status.st_mtime_ns) > TOUCH_S * 1e9:
                    # By descriptor: the name may be another copy's by now, with its own time.
                    os.utime(file.fileno(), ns=(now, now))
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def free(self, size: int) -> bool:
        """Remove copies of `size` bytes together that nobody has read for IDLE_S; True if there
        were as many."""
        oldest = time.time_ns() - int(IDLE_S * 1e9)
        with self.alone(self.folder / "room"):
            for time_ns, bytes, path in self._copies():
                if size <= 0 or time_ns > oldest:
                    break
                path.unlink(missing_ok=True)
                size -= bytes
        return size <= 0

    def _make_room(self, size: int, limit: int) -> None:
        """Remove the least recently used copies until `size` more bytes fit."""
        copies = self._copies()
        total = size + sum(bytes for _, bytes, _ in copies)
        for _, bytes, path in copies:
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= bytes

    def _copies(self) -> list[tuple[int, int, Path]]:
        """(time, size, path) of all copies of shards, the least recently used first."""
        copies = []
        for path in self.folder.iterdir():
            if not OURS.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_mtime_ns, status.st_size, path))
        return sorted(copies)


# Cached: every read of a sample asks for the path of its shard.
@lru_cache(maxsize=4096)
def _name(url: str, version: str) -> str:
    return sha256(f"{url}\n{version}".encode()).hexdigest() + Path(url.partition("?")[0]).suffix

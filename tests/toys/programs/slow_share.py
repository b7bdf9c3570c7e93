"""A folder as a host sees it over a network: `slow_share.py FOLDER MOUNT STALE_S SEED [nolocks]`.

Another mount of the same folder is another host. As NFS promises, creating a file that must be new,
making a folder and renaming happen once for all; what a process has written others see when it has
flushed or closed the file and they open it afterwards. Worse than that:

- Names, missing names and attributes are what they were up to STALE_S seconds ago.
- Each answer takes a while that SEED draws, and a renaming much longer, before and after.
- Locks of processes (`fcntl`) do not reach other mounts; with `nolocks`, there are none at all.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import mfusepy

LATENCY_S = 0.004
RENAME_S = 0.2
UTIME_NOW = (1 << 30) - 1
OPERATIONS = [
    *("access", "chmod", "create", "flush", "fsync", "getattr", "link", "mkdir", "open", "read"),
    *("readdir", "readlink", "release", "rename", "rmdir", "statfs", "truncate", "unlink"),
    *("utimens", "write"),
]
FIELDS = ("st_gid", "st_ino", "st_mode", "st_nlink", "st_size", "st_uid")
TIMES = ("st_atime", "st_ctime", "st_mtime")


class SlowShare(mfusepy.Operations):  # type: ignore[misc]
    """What FUSE asks, by path below the mount."""

    use_ns = True

    def __init__(self, folder: str, seed: int, *, has_locks: bool) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        self.pending: dict[int, list[tuple[int, bytes]]] = {}
        """Inode -> offsets and bytes that are still on this host."""
        self.guard = Lock()
        for name in OPERATIONS:
            setattr(self, name, self.slow(name, getattr(self, name)))
        if not has_locks:
            self.lock = self.refuse

    def slow(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        """An operation on the path below the folder; it takes a while."""

        # A file that has lost its name has no path.
        def run(path: str | None, *args: Any) -> Any:
            with self.guard:
                wait = self.draw.uniform(0, RENAME_S if name == "rename" else LATENCY_S)
            time.sleep(wait)
            result = operation(self.folder + (path or ""), *args)
            if name == "rename":
                time.sleep(wait)
            return result

        return run

    def refuse(self, path: str, *args: object) -> int:
        raise mfusepy.FuseOSError(errno.ENOTSUP)

    def getattr(self, path: str, fi: Any = None) -> dict[str, Any]:
        stat = os.lstat(path)
        found = {key: getattr(stat, key) for key in FIELDS}
        found |= {key: getattr(stat, f"{key}_ns") for key in TIMES}
        with self.guard:
            ends = [at + len(data) for at, data in self.pending.get(stat.st_ino, [])]
        found["st_size"] = max([stat.st_size, *ends])
        return found

    def access(self, path: str, mode: int) -> int:
        return 0

    def readdir(self, path: str, fi: Any) -> list[str]:
        return [".", "..", *os.listdir(path)]

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def create(self, path: str, mode: int, fi: Any) -> int:
        # With O_EXCL if the program says so: the file may be there, and unknown to this host.
        flags = fi.flags & ~os.O_ACCMODE & ~os.O_APPEND
        fi.fh = os.open(path, flags | os.O_RDWR | os.O_CREAT, mode)
        return 0

    def open(self, path: str, fi: Any) -> int:
        fi.fh = os.open(path, os.O_RDWR)
        return 0

    def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
        self.store(fi.fh)
        return os.pread(fi.fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:
        with self.guard:
            self.pending.setdefault(os.fstat(fi.fh).st_ino, []).append((offset, bytes(data)))
        return len(data)

    def store(self, fh: int) -> None:
        """Pass on what this host has kept of a file."""
        with self.guard:
            for offset, data in self.pending.pop(os.fstat(fh).st_ino, []):
                os.pwrite(fh, data, offset)

    def flush(self, path: str, fi: Any) -> int:
        self.store(fi.fh)
        return 0

    def fsync(self, path: str, datasync: int, fi: Any) -> int:
        self.store(fi.fh)
        return 0

    def release(self, path: str, fi: Any) -> int:
        self.store(fi.fh)
        os.close(fi.fh)
        return 0

    def truncate(self, path: str, length: int, fi: Any = None) -> int:
        descriptor = os.open(path, os.O_RDWR)
        self.store(descriptor)
        os.ftruncate(descriptor, length)
        os.close(descriptor)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        # By the server's clock if the program names no time.
        os.utime(path, ns=times if times and times[1] != UTIME_NOW else (time.time_ns(),) * 2)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(path, mode)
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(old, self.folder + new)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self.folder + source, target)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(path, mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(path)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(path)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(path)
        keys = "f_bavail f_bfree f_blocks f_bsize f_favail f_ffree f_files f_frsize f_namemax"
        return {key: getattr(found, key) for key in keys.split()}


def main() -> None:
    folder, mount, stale, seed, *rest = sys.argv[1:]
    share = SlowShare(folder, int(seed), has_locks=not rest)
    ages = dict.fromkeys(["attr_timeout", "entry_timeout", "negative_timeout"], float(stale))
    mfusepy.FUSE(share, mount, foreground=True, raw_fi=True, use_ino=True, hard_remove=True, **ages)


if __name__ == "__main__":
    main()

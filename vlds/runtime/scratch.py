"""Temporary folders that go, however their processes end.

A process that is killed cannot remove its folder. So each folder holds a lock, which the system
releases when its maker and all that it has forked have ended; whoever makes a folder, or has seen a
run end, removes those that nobody holds any more. It serves the sockets of loader workers, files
between a supervisor and its ranks, and outputs of programs that vlds calls.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

PREFIX, LOCK = ".vlds-scratch-", "lock"
"""A short name: paths of sockets may have 107 bytes."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder among the system's temporary ones, which is gone afterwards."""
    remove_abandoned()
    folder, descriptor = _made()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned() -> None:
    """Remove this user's folders that no process holds."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with suppress(OSError):
                stat = folder.lstat()
                if S_ISDIR(stat.st_mode) and stat.st_uid == os.getuid():
                    _remove_if_free(folder)


def _remove_if_free(folder: Path) -> None:
    """Errors: OSError if somebody holds it, or no lock can be had."""
    descriptor = _opened(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _made() -> tuple[Path, int]:
    """A folder, and the descriptor that holds it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            descriptor = _opened(folder)
            if _is_held(descriptor) and (folder / LOCK).exists():
                return folder, descriptor
            os.close(descriptor)
        # Somebody took it for abandoned before it was locked.


def _opened(folder: Path) -> int:
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _is_held(descriptor: int) -> bool:
    """Lock a folder; False if somebody else holds it. Where there are no locks, nobody does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True

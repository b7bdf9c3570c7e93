"""Who does which part of a sweep: at most one process on all hosts does a part at a time.

A claim is a folder that its process has made, which every file system does for one process alone,
and holds (`folder_lock`). The system releases the claim of a dead process of this host; that of
another host is taken over when it has given no sign of life for a while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vlds.runtime.disk import CannotWrite, make_folder, writable
from vlds.runtime.folder_lock import ABANDONED_S, NAME, FolderInUse, folder_lock

POLL_S = 0.1


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a part of a sweep for this process.

    Errors: FolderInUse if another process holds it; CannotWrite.
    """
    try:
        with ExitStack() as held:
            while not is_taken(folder, held):
                pass  # another process has just released it
            yield
    finally:
        with suppress(OSError):  # it is not empty if another process holds it
            folder.rmdir()


def is_taken(folder: Path, held: ExitStack) -> bool:
    """Take a claim; False if its folder was removed meanwhile. Errors as `claim` has them."""
    with writable(folder):
        make_folder(folder.parent)
        is_new = made(folder)
    if not is_new:
        wait_for_maker(folder)
    try:
        held.enter_context(folder_lock(folder))
    except CannotWrite:
        if folder.exists():
            raise
        return False
    return True


def made(folder: Path) -> bool:
    """Make a folder; False if it is there already."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def wait_for_maker(folder: Path) -> None:
    """Wait while a process may have made the folder and not locked it yet; it may be dead, too. The
    folder's date tells neither: clocks of hosts differ."""
    deadline = time.monotonic() + ABANDONED_S
    while folder.exists() and not (folder / NAME).exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def is_claimed(folder: Path) -> bool:
    """True if a claim was taken and not released: its process works on it, or is dead."""
    return folder.exists()


def wait_until_free(folder: Path, seconds: float) -> None:
    """Wait until nobody writes into a run's folder: the ranks of a sweep that was killed save and
    end by themselves.

    Errors: FolderInUse if somebody still writes after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while folder.is_dir():
        try:
            with folder_lock(folder):
                return
        except FolderInUse:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)

"""One writer per folder: a second program that would write there is refused, naming the first.

The lock is a file in the folder that says who writes: host, process, start, command. Its writer
holds a POSIX record lock on it, which ends with the process, however that ends. File systems that
do not carry such locks from one host to another are the reason for the second sign of life: the
writer touches the file every few seconds, and a lock of another host counts as abandoned only after
nobody has touched it for a while. POSIX locks belong to the process, so that forked workers do not
inherit them; but closing any descriptor of the file releases them, so this module alone opens it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlds.runtime.credentials import without_credentials
from vlds.runtime.disk import make_folder, writable
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import check_file
from vlds.runtime.terminal import tell

NAME = ".vlds.lock"
BEAT_S = 5.0
"""Seconds between the signs of life of a writer."""
ABANDONED_S = 4 * BEAT_S
"""Seconds without a sign of life after which another host's lock is abandoned."""

_held: set[tuple[int, int]] = set()
"""Device and inode of the files that this process holds: POSIX locks do not stop their own
process."""


class FolderInUse(ValueError):
    """Another program writes into the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, which is created where it is missing, for this process alone.

    Errors: FolderInUse that names the folder and the program that writes there; CannotWrite where
    the folder cannot be written; NotAFile where the lock file's name is that of something else.
    """
    path = folder / NAME
    with writable(folder):
        make_folder(folder)
        descriptor = _open_locked(path)
    key = _identity(descriptor)
    ended = threading.Event()
    try:
        _held.add(key)
        with writable(folder):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_own_record()).encode(), 0)
        beat = threading.Thread(target=_beat, args=(descriptor, ended), daemon=True)
        beat.start()
        yield
    finally:
        ended.set()
        with suppress(OSError):
            path.unlink()
        _held.discard(key)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """A descriptor of the lock file that this process holds."""
    while True:
        with suppress(FileNotFoundError):
            check_file(path)
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in _held:
                raise FolderInUse(_refusal(path, _own_record()))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(path, descriptor):
                _wait_for_other_host(path, descriptor)
                return descriptor
        except OSError as error:
            record = _read(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise FolderInUse(_refusal(path, record)) from None
            raise
        os.close(descriptor)  # its holder has just removed the file: try the new one


def _wait_for_other_host(path: Path, descriptor: int) -> None:
    """Where the record is another host's, the lock may not have reached us: look for signs of life.

    Errors: FolderInUse where there are some.
    """
    record = _read(descriptor)
    if record.get("host", socket.gethostname()) == socket.gethostname():
        return
    before = os.fstat(descriptor).st_mtime_ns
    tell(
        f"{path.parent} was written by {_words(record)}; waiting {ABANDONED_S:.0f} s for a sign of "
        "life",
        error=True,
        flush=True,
    )
    time.sleep(ABANDONED_S)
    if os.stat(path).st_mtime_ns != before:
        os.close(descriptor)
        raise FolderInUse(_refusal(path, record))


def _beat(descriptor: int, ended: threading.Event) -> None:
    """Touch the file until the writer has ended."""
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(descriptor)


def _is_current(path: Path, descriptor: int) -> bool:
    """False where the file was removed between opening and locking it."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == _identity(descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _own_record() -> dict[str, str]:
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:]]
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "start": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": without_credentials(" ".join(words))[:200],
    }


def _read(descriptor: int) -> dict[str, str]:
    """What the lock file says; nothing where its writer has not come so far."""
    try:
        record = parse_json(os.pread(descriptor, 1 << 12, 0))
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in record.items()} if isinstance(record, dict) else {}


def _words(record: dict[str, str]) -> str:
    """Who writes, in words."""
    if not record:
        return "another program that has just started"
    return (
        f"process {record.get('pid')} on {record.get('host')}, started {record.get('start')} "
        f"({record.get('command')})"
    )


def _refusal(path: Path, record: dict[str, str]) -> str:
    return (
        f"{path.parent} is being written by {_words(record)}; wait until that has ended, or name "
        "another folder"
    )

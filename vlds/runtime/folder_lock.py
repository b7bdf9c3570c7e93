"""One writer per folder: a second program is refused, with the name of the first.

The lock is a file in the folder that names its writer: host, process, start and command. The writer
holds a POSIX record lock on it, which the system releases when the process ends. Some file systems
do not pass such locks on to other hosts, so the writer also touches the file every few seconds; a
lock of another host counts as abandoned if nobody touches it for a while. POSIX locks belong to a
process, so forked workers do not inherit them. But closing any descriptor of the file releases
them, so no other module may open it.
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
"""Seconds between a writer's signs of life."""
ABANDONED_S = 4 * BEAT_S
"""Seconds without a sign of life after which another host's lock is abandoned."""

_held: set[tuple[int, int]] = set()
"""Device and inode of the files that this process has locked: POSIX locks do not keep a process
from locking a file twice."""


class FolderInUse(ValueError):
    """Another program writes into the folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; it is created if missing.

    Errors: FolderInUse that names the folder and the program that writes there; CannotWrite if the
    folder cannot be written; NotAFile if the lock's path is not a regular file.
    """
    path = folder / NAME
    with writable(folder):
        make_folder(folder)
        descriptor = _open_locked(path)
    key = _identity(os.fstat(descriptor))
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
    """Lock the file; its descriptor."""
    while True:
        with suppress(FileNotFoundError):
            check_file(path)
            if _identity(os.stat(path)) in _held:
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
        os.close(descriptor)  # its holder has just removed the file: try again with a new one


def _wait_for_other_host(path: Path, descriptor: int) -> None:
    """Wait for a sign of life if another host wrote the file: its lock may not reach this host.

    Errors: FolderInUse if there is one.
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
    """Touch the file until the writer has finished."""
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(descriptor)


def _is_current(path: Path, descriptor: int) -> bool:
    """False if the file was removed between opening and locking it."""
    try:
        return _identity(os.stat(path)) == _identity(os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _own_record() -> dict[str, str]:
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:]]
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "start": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": without_credentials(" ".join(words))[:200],
    }


def _read(descriptor: int) -> dict[str, str]:
    """What the lock file says; nothing if its writer has only just created it."""
    try:
        record = parse_json(os.pread(descriptor, 1 << 12, 0))
        return {str(key): str(value) for key, value in record.items()}
    except (ValueError, AttributeError):
        return {}


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
        f"{path.parent} is being written by {_words(record)}; wait until it has ended, or name "
        "another folder"
    )

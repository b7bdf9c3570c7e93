"""Unfinished outputs: their temporary names, and who removes them.

`.NAME@HOST-PID-N.partial`, next to the final path, belongs to process PID on HOST. That process
removes it if the work fails or a signal ends it. After a kill or a crash, the next command that
writes into the folder removes it; it never touches the files of a living process.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from vlds.runtime.process_end import on_signals

NAME = re.compile(r"\..*@([^@/]*)-(\d+)-\d+\.partial", re.DOTALL)
"""Host and process."""
MOST_OF_NAME = 100
"""Characters of the output's name that are kept: file systems allow 255 bytes."""
FOREIGN_S = 24 * 3600.0
"""Seconds without a change after which another host's files are abandoned: its processes cannot be
checked from here."""

_open: dict[Path, int] = {}
"""Unfinished path -> process that writes it, because forked processes inherit this table."""
_swept: set[Path] = set()
_numbers = itertools.count()


@contextmanager
def half_made(target: Path) -> Iterator[Path]:
    """A temporary path next to `target`, whose folder must exist. Whatever is there at the end is
    removed, so rename it before."""
    sweep(target.parent)
    owner = f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
    partial = target.with_name(f".{target.name[:MOST_OF_NAME]}@{owner}.partial")
    with _removed_by_signals():
        _open[partial] = os.getpid()
        try:
            yield partial
        finally:
            remove(partial)
            _open.pop(partial, None)


def maker_of(target: Path) -> str | None:
    """Another process that is writing `target`, in words; None if there is none."""
    for path in target.parent.glob(f".{escape(target.name[:MOST_OF_NAME])}@*.partial"):
        match = NAME.fullmatch(path.name)
        if match is not None and int(match[2]) != os.getpid() and not _is_abandoned(path, False):
            return f"process {match[2]} on {match[1]}"
    return None


def remove_half_made() -> None:
    """Remove this process's unfinished outputs before it ends: a signal may have arrived before a
    `finally` was reached."""
    for partial, process in list(_open.items()):
        if process == os.getpid():
            remove(partial)


atexit.register(remove_half_made)


@contextmanager
def _removed_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP remove unfinished outputs before they end the process, unless they
    have another handler."""
    numbers: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        wanted = (signal.SIGTERM, signal.SIGHUP)
        numbers = [n for n in wanted if signal.getsignal(n) is signal.SIG_DFL]
    with on_signals(_end, numbers):
        yield


def _end(number: int) -> None:
    remove_half_made()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def sweep(folder: Path, *, alone: bool = False) -> None:
    """Remove the unfinished outputs of dead processes from a folder; a process looks only once.
    `alone`: no other process writes there, so all others' outputs are abandoned."""
    folder = Path(os.path.realpath(folder))
    if folder in _swept and not alone:
        return
    _swept.add(folder)
    with suppress(OSError):
        for path in folder.glob(".*.partial"):
            if _is_abandoned(path, alone):
                remove(path)


def _is_abandoned(path: Path, alone: bool) -> bool:
    match = NAME.fullmatch(path.name)
    if match is None or _open.get(path) == os.getpid():
        return False
    if alone:
        return True
    host, process = match[1], int(match[2])
    if host != socket.gethostname():
        return time.time() - path.lstat().st_mtime > FOREIGN_S
    # Not in _open, so an earlier process had the same number: containers reuse them.
    return process == os.getpid() or not _is_alive(process)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; of a link, delete the link only."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)

"""Reads regular files only, and writes files and folders whole or not at all.

Files that users or data name may be anything: opening a named pipe would wait for a writer forever,
reading a device may never end, and opening some devices has side effects.

What is written gets a temporary name next to its path, is flushed to disk and renamed; then the
parent folder is flushed. So every reader, also after a power failure, finds the old or the new one.
`.NAME@HOST-PID-N.partial` belongs to process PID on HOST. That process removes it if the work fails
or a signal ends it. After a kill or a crash, the next command that writes into the folder removes
it; it never touches the files of a living process.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from io import BufferedReader
from pathlib import Path

from vlds.runtime.disk import finish, make_folder, sync, writable
from vlds.runtime.process import ASKING, on_signals

LARGEST_FILE = 1 << 30
"""Bytes; the default limit of a file that is read as a whole."""
KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
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


class CannotOpen(OSError, ValueError):
    """A file exists, but cannot be read."""

    def __init__(self, path: str | Path, reason: str, message: str = "") -> None:
        super().__init__(message or f"{path}: {reason}; look at the file, or name another")
        self.filename, self.strerror = str(path), reason

    def __str__(self) -> str:
        return str(self.args[0])


class NotAFile(CannotOpen):
    """A folder, pipe, socket or device where a file is expected."""

    def __init__(self, path: str | Path, kind: str) -> None:
        reason = f"{kind}, not a regular file"
        super().__init__(path, reason, f"{path} is {reason}; name a file")


def check_file(path: str | Path) -> int:
    """Check a file that a library will open by its name; its size.

    Errors: FileNotFoundError; NotAFile; CannotOpen for any other reason.
    """
    with _named(path):
        return _size_of(path, os.stat(path))


def open_descriptor(path: str | Path) -> int:
    """Open a regular file for reading; its descriptor.

    Errors: as `check_file`.
    """
    # Before opening it, which has side effects on some devices; and again on what was opened.
    check_file(path)
    with _named(path):
        # Not blocking: it may have become a pipe since the check.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _size_of(path, os.fstat(descriptor))
    except NotAFile:
        os.close(descriptor)
        raise
    return descriptor


def open_file(path: str | Path) -> BufferedReader:
    """Open a regular file for reading bytes.

    Errors: as `check_file`.
    """
    return os.fdopen(open_descriptor(path), "rb")


def read_file(path: str | Path, largest: int = LARGEST_FILE) -> bytes:
    """The bytes of a regular file.

    Errors: as `check_file`; ValueError if it has more than `largest` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{path}: {size:,} bytes; at most {largest:,} are read")
        # With a limit here too: the file may grow, and those of /proc state no size at all.
        return file.read(largest)


def read_text(
    path: str | Path,
    largest: int = LARGEST_FILE,
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
) -> str:
    """The text of a regular file, its line ends as `\\n`.

    Errors: as `read_file`; UnicodeDecodeError.
    """
    text = read_file(path, largest).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Inside, an error of the system becomes CannotOpen, except for a missing file."""
    try:
        yield
    except (FileNotFoundError, CannotOpen):
        raise
    except OSError as error:
        raise CannotOpen(path, error.strerror or str(error)) from None


def _size_of(path: str | Path, status: os.stat_result) -> int:
    for is_kind, kind in KINDS:
        if is_kind(status.st_mode):
            raise NotAFile(path, kind)
    return status.st_size


@contextmanager
def half_made(target: Path) -> Iterator[Path]:
    """A temporary path next to `target`, whose folder must exist. Whatever is there at the end is
    removed, so rename it before."""
    sweep(target.parent)
    # The number tells apart outputs of one name that threads of this process write at once.
    owner = f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
    partial = target.with_name(f".{target.name[:MOST_OF_NAME]}@{owner}.partial")

    def end(number: int) -> None:
        remove_half_made()
        # Die of the same signal, as without a handler: parents read that from the exit status.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # Other signals than Ctrl-C would end the process without its `finally`, unless they have a
    # handler; only the main thread can give them one.
    numbers: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        numbers = [n for n in ASKING if signal.getsignal(n) is signal.SIG_DFL]
    with on_signals(end, numbers):
        _open[partial] = os.getpid()
        try:
            yield partial
        finally:
            remove(partial)
            _open.pop(partial, None)


def remove_half_made() -> None:
    """Remove this process's unfinished outputs before it ends: a signal may have arrived before a
    `finally` was reached."""
    for partial, process in list(_open.items()):
        if process == os.getpid():
            remove(partial)


atexit.register(remove_half_made)


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
    if process == os.getpid():
        return True
    # Signal 0 is not sent: the system only says whether the process exists.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; of a link, delete the link only."""
    # First as a file: rmtree refuses links, and a folder makes unlink raise.
    with suppress(OSError):
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)


class Taken(ValueError):
    """The path exists, or another process is writing it."""


@contextmanager
def whole_file(path: Path, *, new: bool = False, stream: bool = False) -> Iterator[Path]:
    """A temporary path to write; it replaces `path` if the block succeeds, and is removed if not.
    `new`: `path` must not exist. `stream`: write a device or pipe such as /dev/stdout directly; for
    files that users name on the command line.

    Errors: CannotWrite, Taken; NotAFile for a device or pipe without `stream`: it could block
    forever.
    """
    target = target_of(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        if not stream:
            check_file(path)
        yield path
        return
    with _unfinished(path, target, new) as partial:
        yield partial
        # Bytes first, then the name, then the folder that holds it: after a power failure the name
        # never stands for half a file.
        finish(partial)
        _check_free(path, target, new)
        os.replace(partial, target)
        sync(target.parent)


def write_whole(path: Path, content: str | bytes, *, stream: bool = False) -> None:
    """Write bytes or text (UTF-8) whole or not at all; `stream` and errors as in `whole_file`."""
    with whole_file(path, stream=stream) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: Path, *, new: bool = False) -> Iterator[Path]:
    """An empty folder to fill; it replaces `path` if the block succeeds, and is removed if not.
    `new`: `path` must not exist.

    A folder that is not empty cannot be replaced in one step. If that is interrupted, the old or
    the new folder is whole, and `finish_replacing` moves it to `path`. Errors: as `whole_file`.
    """
    target = target_of(path)
    with _unfinished(path, target, new) as partial:
        partial.mkdir()
        yield partial
        finish(partial)
        _check_free(path, target, new)
        # Two renames, in between which the path is missing: what is left of an earlier attempt goes
        # first, and whatever happens, the older folder comes back or goes.
        finish_replacing(target)
        try:
            if os.path.lexists(target):
                os.replace(target, _older(target))
            os.replace(partial, target)
            sync(target.parent)
        finally:
            with suppress(OSError):
                finish_replacing(target)


@contextmanager
def _unfinished(path: Path, target: Path, new: bool) -> Iterator[Path]:
    with writable(path, target):
        make_folder(target.parent)
        with suppress(FileNotFoundError):
            os.lstat(target)  # fails early for an impossible name
    for other in (
        target.parent.glob(f".{escape(target.name[:MOST_OF_NAME])}@*.partial") if new else ()
    ):
        match = NAME.fullmatch(other.name)
        if match is not None and int(match[2]) != os.getpid() and not _is_abandoned(other, False):
            maker = f"process {match[2]} on {match[1]}"
            raise Taken(f"{path} is being written by {maker}; name another place")
    with half_made(target) as partial, writable(path, partial, target):
        yield partial


def target_of(path: Path) -> Path:
    """The path behind all links, so that writing keeps a link and replaces its target."""
    return Path(os.path.realpath(path))


def _check_free(path: Path, target: Path, new: bool) -> None:
    """Errors: Taken if another program has created `path` in the meantime."""
    if new and os.path.lexists(target):
        raise Taken(f"{path} exists by now: another program has written it; name another place")


def finish_replacing(path: Path) -> None:
    """Complete an interrupted replacement of a folder: move the old one back if `path` is missing,
    else delete it. No other process may be writing there."""
    target = target_of(path)
    older = _older(target)
    if os.path.lexists(older) and not os.path.lexists(target):
        os.replace(older, target)
        sync(target.parent)
    remove(older)


def _older(target: Path) -> Path:
    """Where `whole_folder` keeps the old folder until the new one has its name."""
    return target.with_name(f".{target.name}.older")

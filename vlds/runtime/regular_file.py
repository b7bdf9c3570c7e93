"""Opens files that users or data name, but only regular files.

Opening a named pipe would wait for a writer forever, reading a device may never end, and opening
some devices has side effects.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

LARGEST_FILE = 1 << 30
"""Bytes; the default limit of a file that is read as a whole."""
KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


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

    Errors: as above.
    """
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

    Errors: as above.
    """
    return os.fdopen(open_descriptor(path), "rb")


def read_file(path: str | Path, largest: int = LARGEST_FILE) -> bytes:
    """The bytes of a regular file.

    Errors: as above; ValueError if it has more than `largest` bytes.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{path}: {size:,} bytes; at most {largest:,} are read")
        return file.read(largest)


def read_text(
    path: str | Path,
    largest: int = LARGEST_FILE,
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
) -> str:
    """The text of a regular file, its line ends as `\\n`.

    Errors: as above; UnicodeDecodeError.
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

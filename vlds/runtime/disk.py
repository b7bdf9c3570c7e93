"""Writing to disk: one error with path, reason and cure for whatever the system refuses, and
flushes, so that a power failure loses nothing."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE

ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CURES = {
    **dict.fromkeys(ROOM, "make room there, or "),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable, or "),
    errno.EIO: "check that disk, or ",
}
REFUSED = {*CURES, errno.ENAMETOOLONG}
"""Errnos that mean that nothing can be written."""
RUST_ERROR = re.compile(r"\(os error (\d+)\)")


class CannotWrite(ValueError):
    """The system refuses to write an output; what was there before is unchanged."""

    def __init__(self, path: Path, refused: OSError) -> None:
        super().__init__(path, refused)
        self.path, self.refused = path, refused

    def __str__(self) -> str:
        reason = self.refused.strerror or str(self.refused)
        cure = CURES.get(self.refused.errno or 0, "")
        return f"cannot write {self.path}: {reason}; {cure}name another place"


@contextmanager
def writable(path: Path, *places: Path) -> Iterator[None]:
    """Inside, an error of the system that keeps `path` from being written becomes CannotWrite, even
    if a library wraps it in its own class. `places`: where `path` is written before it is renamed.
    Errors of reading other files stay as they are.

    Errors: CannotWrite.
    """
    try:
        yield
    except Exception as error:  # safetensors raises its own class
        refused = None if isinstance(error, ValueError) else system_error(error)
        if refused is None:
            raise
        # An int: the error came from a call with a descriptor.
        if refused.filename is None or isinstance(refused.filename, int):
            # Libraries often leave the file name out; then only the reason tells.
            is_ours = refused.errno in REFUSED
        else:
            name = Path(os.fsdecode(refused.filename))
            # Both ways: a missing parent of the output stops it as well as a file inside it.
            is_ours = any(
                name.is_relative_to(place) or place.is_relative_to(name)
                for place in places or (path,)
            )
        if not is_ours:
            raise
        raise CannotWrite(path, refused) from error


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind an exception; None if there is none. Libraries written in
    Rust mention it only in their message."""
    if isinstance(error, CannotWrite):
        return error.refused
    if isinstance(error, OSError):
        return error
    match = RUST_ERROR.search(str(error))
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


def check_writable(folder: Path, option: str) -> None:
    """Create a folder and test that it can be written to, before long work; `option` named it.

    Errors: ValueError that begins with `option`.
    """
    try:
        with writable(folder):
            make_folder(folder)
            # Only writing tells: rights may say yes where quotas or mounts say no.
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"vlds")
    except CannotWrite as error:
        raise ValueError(f"{option}: {error}") from error


def check_own(folder: Path, option: str, ours: re.Pattern[str], what: str) -> None:
    """Check that a folder to write holds only files whose names match `ours`, so that nothing is
    mixed with other files or overwrites them.

    Errors: ValueError that begins with `option`, and says `what` would be written.
    """
    if folder.is_dir():
        check_names_own((path.name for path in folder.iterdir()), str(folder), option, ours, what)


def check_names_own(
    names: Iterable[str], folder: str, option: str, ours: re.Pattern[str], what: str
) -> None:
    """As `check_own`, of a folder that holds these files."""
    foreign = sorted(name for name in names if name[0] != "." and not ours.fullmatch(name))
    if foreign:
        more = f" and {len(foreign) - 2:,} more" if len(foreign) > 2 else ""
        raise ValueError(
            f"{option}: {folder} holds other files ({', '.join(foreign[:2])}{more}), and {what} "
            "would mix with them; name a new folder"
        )


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, on disk when this returns."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # A new folder is a name in its parent, so that is what must reach the disk.
    for path in missing:
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def finish(path: Path) -> None:
    """Flush a file that was just written, or everything in a new folder and the folder last.

    Who may read them follows from the umask: some libraries, such as safetensors, write files for
    their owner alone.
    """
    # Contents before the folder: a name must not reach the disk before what it names.
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            if not inner.is_symlink():
                finish(inner)
    elif not path.is_file():
        return
    # Not from os.umask, which would change it for all threads for a moment.
    status = Path("/proc/self/status").read_text()
    (line,) = re.findall(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    mode = path.stat().st_mode
    wanted = mode | ((0o777 if path.is_dir() else 0o666) & ~int(line, 8))
    if wanted != mode:
        path.chmod(S_IMODE(wanted))
    sync(path)


def append(path: Path, text: str) -> None:
    """Append text to a file, all of it or nothing; on disk when this returns.

    Errors: CannotWrite.
    """
    with writable(path):
        size = path.stat().st_size if path.exists() else None
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if size is None:
                sync(path.parent)
        except OSError:
            # A full disk may have taken the beginning.
            with suppress(OSError):
                os.truncate(path, size or 0)
            raise


@contextmanager
def names_fit() -> Iterator[None]:
    """Inside, a path that is too long for the system becomes a ValueError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"{error.filename}: {error.strerror}; name another place") from None

"""Writes files and folders whole or not at all, for every reader and after a power failure.

Each is written under a temporary name next to its path, flushed to disk and renamed; then the
parent folder is flushed. If that fails, what was there before stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlds.runtime.disk import finish, make_folder, sync, writable
from vlds.runtime.half_made import half_made, maker_of, remove
from vlds.runtime.regular_file import check_file


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
    if _is_stream(path):
        if not stream:
            check_file(path)
        yield path
        return
    with _unfinished(path, target, new) as partial:
        yield partial
        finish(partial)
        check_free(path, target, new)
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
        check_free(path, target, new)
        _replace(partial, target)


@contextmanager
def _unfinished(path: Path, target: Path, new: bool) -> Iterator[Path]:
    with writable(path, target):
        make_folder(target.parent)
        with suppress(FileNotFoundError):
            os.lstat(target)  # fails early for an impossible name
    if new and (maker := maker_of(target)):
        raise Taken(f"{path} is being written by {maker}; name another place")
    with half_made(target) as partial, writable(path, partial, target):
        yield partial


def _is_stream(path: Path) -> bool:
    """True for a device or a pipe, such as /dev/stdout, which stores nothing."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def target_of(path: Path) -> Path:
    """The path behind all links, so that writing keeps a link and replaces its target."""
    return Path(os.path.realpath(path))


def check_free(path: Path, target: Path, new: bool) -> None:
    """Errors: Taken if another program has created `path` in the meantime."""
    if new and os.path.lexists(target):
        raise Taken(f"{path} exists by now: another program has written it; name another place")


def _replace(partial: Path, target: Path) -> None:
    finish_replacing(target)
    older = _older(target)
    try:
        if os.path.lexists(target):
            os.replace(target, older)
        os.replace(partial, target)
        sync(target.parent)
    finally:
        with suppress(OSError):
            finish_replacing(target)


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
    """Where the old folder is kept until the new one has replaced it."""
    return target.with_name(f".{target.name}.older")

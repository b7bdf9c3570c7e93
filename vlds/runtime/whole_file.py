"""Files and folders that are whole or not there at all, for every reader and after any loss of
power.

Each is made beside its place under another name, flushed to disk and renamed; then the folder that
has the name is flushed. Where that fails, what was there before stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlds.runtime.disk import make_folder, sync, sync_tree, writable
from vlds.runtime.half_made import half_made, maker_of, remove
from vlds.runtime.regular_file import check_file


class Taken(ValueError):
    """Something is there that must not be."""


@contextmanager
def whole_file(path: Path, *, new: bool = False, stream: bool = False) -> Iterator[Path]:
    """The name of a file that takes the place of `path` if all goes well, and vanishes if not.
    With `new`, nothing may be there. With `stream`, a device or pipe such as /dev/stdout is
    written as it is: for files that users name on the command line.

    Errors: CannotWrite, Taken; NotAFile for other devices and pipes, where writing could wait for
    ever.
    """
    place = place_of(path)
    if _is_stream(path):
        if not stream:
            check_file(path)
        yield path
        return
    with _made_beside(path, place, new) as partial:
        yield partial
        sync(partial)
        check_free(path, place, new)
        os.replace(partial, place)
        sync(place.parent)


def write_whole(path: Path, content: str | bytes, *, stream: bool = False) -> None:
    """Write a file in one piece, text as UTF-8; `stream` and errors as in `whole_file`."""
    with whole_file(path, stream=stream) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: Path, *, new: bool = False) -> Iterator[Path]:
    """An empty folder that takes the place of `path` if all goes well, and vanishes if not. With
    `new`, nothing may be there.

    A folder that is not empty cannot be replaced in one step: wherever that is interrupted, one of
    the two is whole, and `finish_replacing` puts it into its place. Errors: as `whole_file`.
    """
    place = place_of(path)
    with _made_beside(path, place, new) as partial:
        partial.mkdir()
        yield partial
        sync_tree(partial)
        check_free(path, place, new)
        _replace(partial, place)


@contextmanager
def _made_beside(path: Path, place: Path, new: bool) -> Iterator[Path]:
    with writable(path, place):
        make_folder(place.parent)
        with suppress(FileNotFoundError):
            os.lstat(place)  # a name that cannot be is said at once
    if new and (maker := maker_of(place)):
        raise Taken(f"{path} is being written by {maker}; name another place")
    with half_made(place) as partial, writable(path, partial, place):
        yield partial


def _is_stream(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout: these keep nothing."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def place_of(path: Path) -> Path:
    """The one place that a name means, its links followed: a link stays one."""
    return Path(os.path.realpath(path))


def check_free(path: Path, place: Path, new: bool) -> None:
    """Errors: Taken where another program has been here meanwhile."""
    if new and os.path.lexists(place):
        raise Taken(f"{path} exists by now, another program has made it; name another place")


def _replace(partial: Path, place: Path) -> None:
    finish_replacing(place)
    older = _older(place)
    try:
        if os.path.lexists(place):
            os.replace(place, older)
        os.replace(partial, place)
        sync(place.parent)
    finally:
        with suppress(OSError):
            finish_replacing(place)


def finish_replacing(path: Path) -> None:
    """Where a folder's replacement was interrupted: the older one comes back if its place is empty,
    and goes if not. Whoever else writes there must have ended."""
    place = place_of(path)
    older = _older(place)
    if os.path.lexists(older) and not os.path.lexists(place):
        os.replace(older, place)
        sync(place.parent)
    remove(older)


def _older(place: Path) -> Path:
    """Where a folder waits until the one that replaces it is there."""
    return place.with_name(f".{place.name}.older")

"""The pictures that rows name: one file is one picture, however its name is spelled.

`a.jpg`, `./a.jpg`, `x/../a.jpg`, `x\\..\\a.jpg`, `a` and a link to it are the same file; on a disk
that ignores case, so is `A.JPG`. Counted as several pictures, they could be in train and in test.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
"""A row may leave out the ending."""


@dataclass(frozen=True)
class NamedPicture:
    """A file that rows name; it need not exist."""

    id: str
    """Its path below the folder of pictures; of several, the first by the alphabet."""
    path: Path


def find_pictures(folder: Path, names: Iterable[str]) -> dict[str, NamedPicture]:
    """Each name -> its picture; all names of a file get the same picture."""
    groups: dict[Hashable, list[tuple[str, Path, str]]] = {}
    root = Path(os.path.realpath(folder))
    for name in dict.fromkeys(names):
        path, file = _find(folder, name)
        picture_id = _path_below(path, folder, root)
        key = file or _without_ending(picture_id)
        groups.setdefault(key, []).append((picture_id, path, name))
    pictures = {}
    for spellings in groups.values():
        picture_id, path, _ = min(spellings)
        for *_, name in spellings:
            pictures[name] = NamedPicture(picture_id, path)
    return pictures


def _find(folder: Path, name: str) -> tuple[Path, Hashable]:
    """The path and identity of a file; the identity is None if it does not exist."""
    spellings = dict.fromkeys((name, name.replace("\\", "/")))  # Windows writes backslashes
    for spelling in spellings:
        for ending in ENDINGS:
            path = folder / f"{spelling}{ending}"
            if file := _file_identity(path):
                return path, file
    return folder / name, None


def is_there(path: Path) -> bool:
    """True if a path leads to a regular file.

    Errors: PermissionError if a folder on the way is not readable.
    """
    return _file_identity(path) is not None


def _file_identity(path: Path) -> Hashable:
    """Device and inode of a regular file, links followed; None if there is none."""
    try:
        status = os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):  # missing, or a name that is too long or contains a zero byte
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    # Some network disks have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _path_below(path: Path, folder: Path, root: Path) -> str:
    """The path relative to the folder; the whole path if it leads out of it."""
    named = path.relative_to(folder) if path.is_relative_to(folder) else path
    if ".." in named.parts:
        path = Path(os.path.realpath(path.parent)) / path.name
    for base in (folder, root):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)


def _without_ending(picture_id: str) -> str:
    """The identity of a missing picture: stored features are found by the name without ending."""
    stem, ending = os.path.splitext(picture_id)
    return stem if ending in ENDINGS else picture_id

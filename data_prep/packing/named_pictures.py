"""The pictures that rows name: one file is one picture, however its name is spelled.

`a.jpg`, `./a.jpg`, `x/../a.jpg`, `x\\..\\a.jpg`, `a` and a link to it are the same file, and on a
disk that does not tell case apart `A.JPG` is, too. Taken for several pictures, they could lie in
train and in test.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
"""A row may leave the ending out."""


@dataclass(frozen=True)
class NamedPicture:
    """A file that rows name, be it there or not."""

    id: str
    """Its path below the folder of pictures, of several the first by the alphabet."""
    path: Path


def find_pictures(folder: Path, names: Iterable[str]) -> dict[str, NamedPicture]:
    """Each name -> its picture; names of one file get the same picture."""
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
    """The path and what tells the file from others; None where there is none."""
    spellings = dict.fromkeys((name, name.replace("\\", "/")))  # as Windows writes paths
    for spelling in spellings:
        for ending in ENDINGS:
            path = folder / f"{spelling}{ending}"
            if file := _file_identity(path):
                return path, file
    return folder / name, None


def is_there(path: Path) -> bool:
    """Whether a path leads to a regular file.

    Errors: PermissionError where nobody may know.
    """
    return _file_identity(path) is not None


def _file_identity(path: Path) -> Hashable:
    """Device and number of a regular file, links followed; None where there is none."""
    try:
        found = os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):  # a name that is too long, or holds a zero, is no file's
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    # Some network disks number no files.
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def _path_below(path: Path, folder: Path, root: Path) -> str:
    """Where a path leads from the folder; the whole path where it leads out of it."""
    if (
        ".." in path.relative_to(folder).parts
        if path.is_relative_to(folder)
        else ".." in path.parts
    ):
        path = Path(os.path.realpath(path.parent)) / path.name
    for base in (folder, root):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)


def _without_ending(picture_id: str) -> str:
    """Stored features are found by a name without ending, so missing pictures are told apart by
    it."""
    stem, ending = os.path.splitext(picture_id)
    return stem if ending in ENDINGS else picture_id

"""What a loss of power would leave on a disk, at every point of some work in a folder.

A file keeps the bytes of its last flush; a file that was never flushed is empty. A folder keeps the
names of its last flush, so that later names and renames are undone; or, as some file systems do, it
has its present names, over bytes that may never have been flushed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

Image = Mapping[str, bytes]
"""Path below the folder -> content of each file; empty folders are left out."""
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open"}


class Entry(NamedTuple):
    """A name in a folder that was flushed."""

    inode: int
    is_folder: bool


class Ledger:
    """Records the flushes and names of one folder while a test works in it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.undone: list[Image] = []
        """Images in which unflushed names are undone; equal successive images appear once."""
        self.named: list[Image] = []
        """Images with the present names over the flushed bytes."""
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, Entry]] = {}
        self._held: list[int] = []
        """Open descriptors, so that no inode is reused for another file."""
        self._watching = False
        self._one_at_a_time = threading.Lock()
        """A background thread writes states."""
        self._looking = threading.local()
        for place in [self.root, *self.root.rglob("*")]:
            descriptor = os.open(place, os.O_RDONLY)
            self._flushed(descriptor)
            os.close(descriptor)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, record everything that happens in the folder."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        sys.addaudithook(self._hook)
        with mock.patch.object(os, "fsync", self._fsync(os.fsync)):
            self._watching = True
            try:
                yield
            finally:
                self._watching = False
        self._take()
        for descriptor in self._held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def fsync(descriptor: int) -> None:
            with self._one_at_a_time:
                real(descriptor)
                self._flushed(descriptor)
                self._take()

        return fsync

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Runs before a name appears or disappears."""
        if not self._watching or event not in EVENTS or getattr(self._looking, "now", False):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
            return
        with self._one_at_a_time:
            self._take()

    def _flushed(self, descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not place.is_relative_to(self.root):
            return
        status = os.fstat(descriptor)
        self._held.append(os.dup(descriptor))
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(place) as entries:
                self._names[status.st_ino] = {
                    entry.name: Entry(entry.inode(), entry.is_dir(follow_symlinks=False))
                    for entry in entries
                }
        else:
            self._content[status.st_ino] = place.read_bytes()

    def _take(self) -> None:
        self._looking.now = True
        for images, image in (
            (self.undone, dict(self._by_flush(self.root.stat().st_ino, ""))),
            (self.named, dict(self._by_name(self.root, ""))),
        ):
            if not images or images[-1] != image:
                images.append(image)
        self._looking.now = False

    def _by_flush(self, folder: int, path: str) -> Iterator[tuple[str, bytes]]:
        for name, entry in self._names.get(folder, {}).items():
            if entry.is_folder:
                yield from self._by_flush(entry.inode, f"{path}{name}/")
            else:
                yield f"{path}{name}", self._content.get(entry.inode, b"")

    def _by_name(self, folder: Path, path: str) -> Iterator[tuple[str, bytes]]:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._by_name(folder / entry.name, f"{path}{entry.name}/")
                else:
                    yield f"{path}{entry.name}", self._content.get(entry.inode(), b"")


def put(image: Image, folder: Path) -> None:
    """Write an image to a new folder."""
    folder.mkdir(parents=True)
    for name, content in image.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

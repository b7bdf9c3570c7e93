"""Results that are whole or do not exist: made beside their place under another name, renamed at
the end. Nothing that exists is overwritten."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from vlds.manifest import sync

Item = TypeVar("Item")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes `out` if all goes well, and vanishes if not.

    Errors: ValueError where `out` exists.
    """
    partial = place_beside(out, "folder")
    partial.mkdir(parents=True)
    try:
        yield partial
        check_absent(out, "folder")
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync(out.parent)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """The name of a file that becomes `out` if all goes well, and vanishes if not.

    Errors: ValueError where `out` exists.
    """
    partial = place_beside(out, "file")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        sync(partial)
        check_absent(out, "file")
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    sync(out.parent)


def place_beside(out: Path, kind: str) -> Path:
    """Where the result is made; two programs at once have two places."""
    check_absent(out, kind)
    whole = Path(os.path.abspath(out))
    partial = whole.with_name(f".{whole.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def check_absent(out: Path, kind: str) -> None:
    """Errors: ValueError where something, a dead link for instance, has the name, or a file stands
    in the way to it."""
    if os.path.lexists(out):
        raise ValueError(f"--out: {out} exists; name a new {kind}")
    for above in Path(os.path.abspath(out)).parents:
        if above.exists() and not above.is_dir():
            raise ValueError(f"--out: {above} is no folder; name a new {kind}")


def check_plain(name: str, what: str) -> str:
    """A name that becomes one of a file or folder inside the output, and of nothing else.

    Errors: ValueError where it would lead elsewhere.
    """
    if not name or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        raise ValueError(f"{what}: '{name}' cannot be a folder's name; rename it in the recipe")
    return name


def say(text: str) -> None:
    """Tell the user what is being done; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def follow(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar on a terminal and a line elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        say(f"{what} ({len(items)})")
    yield from track(items, what, console=console, transient=True, disable=not console.is_terminal)

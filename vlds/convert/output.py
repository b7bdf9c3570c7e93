"""What a conversion writes, and how it is told. Nothing that exists is overwritten."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from vlds.runtime import terminal
from vlds.runtime.disk import CannotWrite
from vlds.runtime.half_made import remove_half_made
from vlds.runtime.process_end import Interrupted, interruptible
from vlds.runtime.shown import visible
from vlds.runtime.whole_file import Taken, whole_file, whole_folder

if TYPE_CHECKING:  # importing it for good would make each help wait for torch
    from torch import Tensor

Item = TypeVar("Item")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes `out` if all goes well, and vanishes if not.

    Errors: ValueError if `out` exists or cannot be written.
    """
    check_absent(out, "folder")
    with named_out(), whole_folder(out, new=True) as partial:
        yield partial


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """The name of a file that becomes `out` if all goes well, and vanishes if not.

    Errors: ValueError if `out` exists or cannot be written.
    """
    check_absent(out, "file")
    with named_out(), whole_file(out, new=True) as partial:
        yield partial


@contextmanager
def named_out() -> Iterator[None]:
    """Inside, errors of writing say which option they are about."""
    try:
        yield
    except (CannotWrite, Taken) as error:
        raise ValueError(f"--out: {error}") from error


def check_absent(out: Path, kind: str) -> None:
    """Errors: ValueError if something, a dead link for instance, has the name, or a file stands
    in the way to it."""
    if not out.name or out.name == ".." or os.path.lexists(beside_others(out)):
        raise ValueError(f"--out: {out} exists; name a new {kind}")
    for above in beside_others(out).parents:
        if os.path.exists(above) and not os.path.isdir(above):
            raise ValueError(f"--out: {above} is not a folder; name a new {kind}")


def beside_others(out: Path) -> Path:
    """The one place that a name means, its links followed but the last."""
    return Path(os.path.realpath(out.parent)) / out.name


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal that asks for an end ends the program: what is half made vanishes, and one
    line says so.

    Errors: SystemExit, with the shell's code for the signal.
    """
    try:
        with interruptible():
            yield
    except Interrupted as end:
        remove_half_made()  # it may have come before anything was there to undo the work
        say("vlds convert: stopped; --out is there whole or not at all")
        raise SystemExit(end.exit_code) from None


def check_plain(name: str, what: str) -> str:
    """A name that becomes one of a file or folder inside the output, and of nothing else.

    Errors: ValueError if it would lead elsewhere.
    """
    if not name or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        raise ValueError(f"{what}: '{name}' cannot be a folder's name; rename it in the recipe")
    return name


def say(text: str) -> None:
    """Tell the user what is being done; stdout is for results."""
    terminal.tell(text, error=True, flush=True)


def save_torch(tensors: dict[str, Tensor], file: Path) -> None:
    """torch.save, whose own errors do not say what the system has refused.

    Errors: OSError where it refuses to write.
    """
    import torch

    try:
        with file.open("wb") as opened:
            torch.save(tensors, opened)
    except RuntimeError as error:
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def tell(text: str) -> None:
    """A result, on stdout. Nobody need read it: what is written is there all the same."""
    try:
        terminal.tell(text, flush=True)
    except BrokenPipeError:
        # Python would try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def follow(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, with a bar on a terminal and a line elsewhere."""
    console = Console(stderr=True)
    what = visible(what)
    if not console.is_terminal:
        say(f"{what} ({len(items)})")
    yield from track(
        items, escape(what), console=console, transient=True, disable=not console.is_terminal
    )

"""Results that are whole or do not exist: made beside their place under another name, renamed at
the end. Nothing that exists is overwritten."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from vlds.manifest import sync, system_error
from vlds.runtime import terminal
from vlds.runtime.shown import visible

if TYPE_CHECKING:  # importing it for good would make each help wait for torch
    from torch import Tensor

Item = TypeVar("Item")
REFUSED = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG, errno.ENOSPC,
    errno.EPERM, errno.EROFS,
}  # fmt: skip
"""What the system says where nothing can be written."""


class Stopped(SystemExit):
    """A signal has come."""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes `out` if all goes well, and vanishes if not.

    Errors: ValueError where `out` exists or cannot be written.
    """
    partial = place_beside(out, "folder")
    with writable(out, partial):
        partial.mkdir(parents=True)
        try:
            yield partial
            check_absent(out, "folder")
            os.replace(partial, place_of(out))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync(partial.parent)


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """The name of a file that becomes `out` if all goes well, and vanishes if not.

    Errors: ValueError where `out` exists or cannot be written.
    """
    partial = place_beside(out, "file")
    with writable(out, partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            sync(partial)
            check_absent(out, "file")
            os.replace(partial, place_of(out))
        finally:
            partial.unlink(missing_ok=True)
        sync(partial.parent)


@contextmanager
def writable(out: Path, partial: Path) -> Iterator[None]:
    """Inside, what keeps the result from being written is the user's error, also where a library
    has another class for it. What is read may fail too, and is not meant.

    Errors: ValueError that names `out` and the reason.
    """
    try:
        yield
    except Exception as error:  # safetensors has a class of its own
        refused = None if isinstance(error, ValueError) else system_error(error)
        if refused is None or not concerns(refused, partial):
            raise
        raise ValueError(
            f"--out: cannot write {out}: {refused.strerror}; make room there, or name another place"
        ) from error


def concerns(refused: OSError, partial: Path) -> bool:
    """Whether the system has refused to write a result; libraries do not say of which file."""
    if refused.filename is None:
        return refused.errno in REFUSED
    name = Path(os.fsdecode(refused.filename))
    return name.is_relative_to(partial) or partial.is_relative_to(name)


def place_beside(out: Path, kind: str) -> Path:
    """Where the result is made; two programs at once have two places."""
    check_absent(out, kind)
    whole = place_of(out)
    partial = whole.with_name(f".{whole.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def place_of(out: Path) -> Path:
    """The one place that a name means, its links followed but the last."""
    return Path(os.path.realpath(out.parent)) / out.name


def check_absent(out: Path, kind: str) -> None:
    """Errors: ValueError where something, a dead link for instance, has the name, or a file stands
    in the way to it."""
    if not out.name or out.name == ".." or os.path.lexists(place_of(out)):
        raise ValueError(f"--out: {out} exists; name a new {kind}")
    for above in place_of(out).parents:
        if os.path.exists(above) and not os.path.isdir(above):
            raise ValueError(f"--out: {above} is no folder; name a new {kind}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the program as Ctrl-C does: what is half made vanishes, and
    one line says so.

    Errors: SystemExit, with the shell's code for the signal.
    """

    def stop(number: int, frame: object) -> None:
        raise Stopped(128 + number)

    # nohup has SIGHUP ignored.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except (KeyboardInterrupt, Stopped) as end:
        say("vlds convert: stopped; --out is there whole or not at all")
        raise SystemExit(end.code if isinstance(end, Stopped) else 128 + signal.SIGINT) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_plain(name: str, what: str) -> str:
    """A name that becomes one of a file or folder inside the output, and of nothing else.

    Errors: ValueError where it would lead elsewhere.
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

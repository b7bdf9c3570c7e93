"""How a conversion writes its output and reports progress. Nothing that exists is overwritten.

`vlds convert --help` imports this module, so it must not wait for torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from vlds.runtime import terminal
from vlds.runtime.disk import CannotWrite
from vlds.runtime.files import Taken, remove_half_made, whole_file, whole_folder
from vlds.runtime.process import Interrupted, interruptible

Kind = Literal["file", "folder"]
"""What a conversion writes."""


@contextmanager
def new_output(out: Path, kind: Kind) -> Iterator[Path]:
    """An empty folder, or the name of a file, that becomes `out` if all goes well, and vanishes if
    not.

    Errors: ValueError if `out` exists or cannot be written.
    """
    check_absent(out, kind)
    whole = whole_folder(out, new=True) if kind == "folder" else whole_file(out, new=True)
    try:
        with whole as partial:
            yield partial
    except (CannotWrite, Taken) as error:
        raise ValueError(f"--out: {error}") from error


def check_absent(out: Path, kind: Kind) -> None:
    """Errors: ValueError if the path exists, as a dead link for instance, or leads through a
    file."""
    # Resolve all links but the last, which may be dead: lexists sees it, exists would not.
    place = Path(os.path.realpath(out.parent)) / out.name
    if not out.name or out.name == ".." or os.path.lexists(place):
        raise ValueError(f"--out: {out} exists; name a new {kind}")
    for above in place.parents:
        if os.path.exists(above) and not os.path.isdir(above):
            raise ValueError(f"--out: {above} is not a folder; name a new {kind}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal that asks for an end removes unfinished outputs, and ends the program with
    one line.

    Errors: SystemExit, with the shell's code for the signal.
    """
    try:
        with interruptible():
            yield
    except Interrupted as end:
        remove_half_made()  # the signal may have arrived before a `finally` was reached
        say("vlds convert: stopped; --out is there whole or not at all")
        raise SystemExit(end.exit_code) from None


def check_plain(name: str, what: str) -> str:
    """A name that is to be a folder's inside the output.

    Errors: ValueError if it would lead elsewhere.
    """
    if not name or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        raise ValueError(f"{what}: '{name}' cannot be a folder's name; rename it in the recipe")
    return name


def first_names(names: Sequence[str], most: int) -> str:
    """The first names of tensors, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more tensors" if more > 0 else "")


def say(text: str) -> None:
    """Report progress on stderr; stdout is for results."""
    terminal.tell(text, error=True, flush=True)


def save_torch(tensors: Mapping[str, object], file: Path) -> None:
    """torch.save, whose own errors hide the system's.

    Errors: OSError if the file cannot be written.
    """
    import torch

    try:
        with file.open("wb") as opened:
            torch.save(tensors, opened)
    except RuntimeError as error:
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

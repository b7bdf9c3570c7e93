"""Prints to the terminal, through vlds.runtime.shown: nothing else in vlds prints."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from vlds.runtime.shown import visible

if TYPE_CHECKING:
    from rich.console import Console


def tell(text: object, *, end: str = "\n", error: bool = False, flush: bool = False) -> None:
    """Print text to stdout, or with `error` to stderr."""
    print(visible(text), end=end, file=sys.stderr if error else sys.stdout, flush=flush)


def open_console(*, error: bool = False, quiet: bool = False) -> Console:
    """The console of stdout, or with `error` of stderr.

    Only a terminal gets colours and lines that are drawn again. Notebooks and build servers set
    FORCE_COLOR and the like for all programs, and rich takes them for a terminal.
    """
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    return Console(
        stderr=error,
        quiet=quiet,
        force_terminal=stream.isatty(),
        force_jupyter=False,
        highlight=False,
    )


def can_redraw(console: Console) -> bool:
    """True if lines on the console can be drawn again, as a progress bar is."""
    return console.is_terminal and not console.is_dumb_terminal


def tell_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """`sys.excepthook` of vlds: a traceback may quote data."""
    tell("".join(traceback.format_exception(kind, error, trace)), end="", error=True, flush=True)

"""Prints to the terminal, through vlds.runtime.shown: nothing else in vlds prints."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

from vlds.runtime.shown import visible


def tell(text: object, *, end: str = "\n", error: bool = False, flush: bool = False) -> None:
    """Print text to stdout, or with `error` to stderr."""
    print(visible(text), end=end, file=sys.stderr if error else sys.stdout, flush=flush)


def tell_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """`sys.excepthook` of vlds: a traceback may quote data."""
    tell("".join(traceback.format_exception(kind, error, trace)), end="", error=True, flush=True)

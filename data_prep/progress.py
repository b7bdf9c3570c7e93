"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item", covariant=True)
SECONDS_BETWEEN_LINES = 10.0


class Countable(Iterable[Item], Sized, Protocol[Item]):
    """Something to walk through whose length is known."""


def follow(items: Countable[Item], what: str) -> Iterator[Item]:
    """Yield the items and say on stderr how far we are."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _with_lines(items, what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=len(items), description=what)


def _with_lines(items: Countable[Item], what: str) -> Iterator[Item]:
    """Nothing for the first seconds: short work needs no report."""
    last = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{what}: {number:,} of {len(items):,}", file=sys.stderr, flush=True)
        yield item

"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlds.runtime.shown import visible
from vlds.runtime.terminal import tell

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def follow(items: Iterable[Item], what: str, done: int, total: int) -> Iterator[Item]:
    """Yield the items, `done` of `total` being behind us, and say on stderr how far we are."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _with_lines(items, what, done, total)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(visible(what), total=total, completed=done)
        for item in items:
            yield item
            progress.advance(bar)


def _with_lines(items: Iterable[Item], what: str, done: int, total: int) -> Iterator[Item]:
    """Nothing for the first seconds: short work needs no report."""
    last = time.monotonic()
    for number, item in enumerate(items, done):
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            tell(f"{what}: {number:,} of {total:,}", error=True, flush=True)
        yield item

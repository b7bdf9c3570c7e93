"""Progress of long work, for a user who waits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlds.runtime.shown import visible
from vlds.runtime.terminal import can_redraw, open_console, tell

SECONDS_BETWEEN_LINES = 10.0
Item = TypeVar("Item")


class Pace:
    """Says when the next line about long work is due. The first seconds have none, since short work
    needs no report."""

    def __init__(self) -> None:
        self._started = self._last_line = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._started

    def line_is_due(self) -> bool:
        """True once in every `SECONDS_BETWEEN_LINES`."""
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def follow(items: Iterable[Item], what: str, total: int, done: int = 0) -> Iterator[Item]:
    """Yield the items and show progress on stderr: a bar on a terminal, else a line now and then.
    `done` of the `total` items were finished before."""
    console = open_console(error=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    pace = Pace()
    with Progress(
        *columns, console=console, transient=True, disable=not can_redraw(console)
    ) as progress:
        bar = progress.add_task(visible(what), total=total, completed=done)
        for count, item in enumerate(items, done):
            if progress.disable and pace.line_is_due():
                tell(f"{what}: {count:,} of {total:,}", error=True, flush=True)
            yield item
            progress.advance(bar)

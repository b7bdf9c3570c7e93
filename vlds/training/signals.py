"""A polite stop: SIGTERM, SIGINT or a vanished launcher ask the run to save and end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Set from a signal handler or the launcher's watchdog, read by the loop."""

    reason: str | None = None
    exit_code: int = 0

    def ask(self, reason: str, exit_code: int) -> None:
        """The first reason counts."""
        if self.reason is None:
            self.reason, self.exit_code = reason, exit_code


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, SIGTERM and SIGINT only ask for a stop; the previous handlers come back
    afterwards."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        request.ask(signal.Signals(number).name, 128 + number)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

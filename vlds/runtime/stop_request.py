"""A polite stop: SIGTERM, SIGINT, SIGHUP or a vanished launcher ask the run to save and end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vlds.runtime.process_end import heard, on_signals, signal_name


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
    """Inside, SIGTERM, SIGINT and SIGHUP only ask for a stop; the previous handlers come back
    afterwards. A SIGHUP that is ignored (nohup) stays ignored."""
    request = StopRequest()

    def ask(number: int) -> None:
        request.ask(signal_name(number), 128 + number)

    # torchrun passes a SIGHUP on to the ranks, and a SIGINT even where they inherit to ignore it.
    with on_signals(ask, {signal.SIGTERM, signal.SIGINT, *heard()}):
        yield request

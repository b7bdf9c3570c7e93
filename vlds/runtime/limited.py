"""Runs what a stranger's file asks for, such as a chat template or a pattern, within limits.

It runs in a copy of this process, since nothing in Python bounds the time and memory of a single
operation: one pattern may backtrack for years, and one product of a text and a number may ask for
all memory. The copy makes a text, which must not need threads or devices.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from typing import NoReturn

SECONDS = 2
"""Of computing."""
PATIENCE = 60
"""Seconds on the clock, which pass more quickly than those where a machine is busy."""
MEMORY = 512 << 20
"""Bytes beyond those of this process."""
LARGEST = 4 << 20
"""Bytes of the text."""
MADE, FAILED = b"+", b"-"
"""What the copy writes before the text, or before the text of an error."""


class OverLimit(ValueError):
    """It took more time or memory than it may."""


def limited(make: Callable[[], str]) -> str:
    """What `make` gives in a copy of this process.

    Errors: OverLimit; ValueError with the text of whatever `make` raises.
    """
    reader, writer = os.pipe()
    if (copy := os.fork()) == 0:
        os.close(reader)
        _answer(make, writer)
    os.close(writer)
    answer = None
    try:
        answer = _read(reader)
    finally:
        os.close(reader)
        if answer is None:
            os.kill(copy, signal.SIGKILL)
        _, status = os.waitpid(copy, 0)
    if answer and status == 0:
        text = answer[1:].decode("utf-8", "surrogatepass")
        if answer[:1] == MADE:
            return text
        raise ValueError(text)
    raise OverLimit(f"it takes more than {SECONDS} seconds, or more than {MEMORY >> 20} MiB")


def _answer(make: Callable[[], str], writer: int) -> NoReturn:
    """In the copy: write what is made, or why it is not."""
    # The copy must neither run what its parent would at a signal or its end, nor outlive a limit.
    try:
        gc.disable()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _limit()
        try:
            answer = MADE + make().encode("utf-8", "surrogatepass")
        except MemoryError:
            answer = b""
        except BaseException as error:
            answer = FAILED + (str(error) or type(error).__name__).encode("utf-8", "replace")
        if len(answer) > LARGEST:
            answer = FAILED + f"it writes more than {LARGEST >> 20} MiB".encode()
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with suppress(OSError):  # the file is Linux's
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _read(reader: int) -> bytes | None:
    """All that the copy writes until it ends; None if it does not."""
    answer, end = b"", time.monotonic() + PATIENCE
    with DefaultSelector() as ready:
        ready.register(reader, EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if ready.select(left):
                if not (more := os.read(reader, 1 << 16)):
                    return answer
                answer += more
    return None

"""A cable between two network devices, by which each frame arrives later: `slow_cable.py DEVICE
DEVICE MILLISECONDS`. It makes the devices (TAP), says `ready`, and runs until its input is closed,
so that it does not outlive the test that started it.

The kernel's own delay (`tc ... netem`) is a module that many kernels lack.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

TUNSETIFF = 0x400454CA
TAP, NO_HEADER = 0x0002, 0x1000
LONGEST = 65_536
"""Bytes of a frame at most."""


def device(name: str) -> int:
    """Make a network device; what the kernel sends by it is read here."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_HEADER))
    return file


def carry(ends: list[int], delay: float) -> None:
    """Carry frames from each end to the other, `delay` seconds late."""
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([*ends, sys.stdin], [], [], wait)
        if sys.stdin in readable:
            return
        now = time.monotonic()
        for file in readable:
            other = ends[1 - ends.index(file)]
            # All that waits (the kernel keeps few frames, and drops others); none if it is down.
            with suppress(OSError):
                while True:
                    under_way.append((now + delay, other, os.read(file, LONGEST)))
        while under_way and under_way[0][0] <= now:
            _, file, frame = under_way.popleft()
            with suppress(OSError):  # a frame to a device that is down is lost
                os.write(file, frame)


if __name__ == "__main__":
    ends = [device(name) for name in sys.argv[1:3]]
    print("ready", flush=True)
    carry(ends, float(sys.argv[3]) / 1000)

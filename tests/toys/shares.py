"""Hosts that share a folder over a network file system: each has a name and a mount of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.toys.files import ROOT

SHARE = ROOT / "tests/toys/programs/slow_share.py"


class Host:
    """A host: a name, and a view of the folder that no other host has."""

    def __init__(
        self, name: str, folder: Path, mount: Path, *, stale: float, seed: int, locks: bool = True
    ) -> None:
        words = [sys.executable, "-W", "ignore", SHARE, folder, mount, stale, seed]
        serve = " ".join(map(str, words + ([] if locks else ["nolocks"])))
        script = f"hostname {name} && exec {serve}"
        self.mount = mount
        # In a session of its own: what starts inside is found by its namespace.
        self.server = subprocess.Popen(["unshare", "--mount", "--uts", "sh", "-c", script])
        self.programs: list[subprocess.Popen[str]] = []
        deadline = time.monotonic() + 20
        while self.run("mountpoint", "-q", str(mount)).wait() != 0:
            assert self.server.poll() is None, "no FUSE here"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.place = namespace(self.server.pid)

    def run(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program on this host."""
        inside = ["nsenter", "-t", str(self.server.pid), "--mount", "--uts", f"--wd={ROOT}"]
        process = subprocess.Popen([*inside, *words], text=True, cwd=ROOT, **options)
        self.programs.append(process)
        return process

    def die(self) -> None:
        """As if its plug was pulled: what it has kept for itself is lost."""
        # First its mount, so that none of its programs can write any more.
        self.server.kill()
        self.server.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if namespace(process.pid) == self.place:
                    process.kill()
        for program in self.programs:
            with suppress(subprocess.TimeoutExpired):
                program.wait(timeout=20)


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/uts")


@contextmanager
def share_hosts(
    number: int, folder: Path, *, stale: float, seed: int, locks: bool = True
) -> Iterator[list[Host]]:
    """So many hosts that share a folder; all see it under one path. What still runs there is killed
    in the end.

    Skips the test where that cannot be made.
    """
    pytest.importorskip("mfusepy", exc_type=(ImportError, OSError))  # it needs libfuse
    found = all(map(shutil.which, ["unshare", "nsenter", "mountpoint"]))
    if os.geteuid() or not found or not Path("/dev/fuse").exists():
        pytest.skip("no file systems can be mounted here: that takes Linux, root and /dev/fuse")
    backing, mount = folder / "server", folder / "share"
    backing.mkdir()
    mount.mkdir()
    hosts: list[Host] = []
    try:
        for n in range(number):
            name = f"host{n}"
            hosts.append(Host(name, backing, mount, stale=stale, seed=seed + n, locks=locks))
        yield hosts
    finally:
        for host in hosts:
            host.die()

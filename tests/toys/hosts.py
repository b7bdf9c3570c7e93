"""Two hosts, which are network namespaces with a slow cable between them, and runs on both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.toys.files import ROOT
from tests.toys.recipes import train_words
from vlds.recipe.config import Recipe

ADDRESSES = ("10.97.31.1", "10.97.31.2")
DELAY_MS = 10
"""One way, so that an answer takes 20 milliseconds."""
RATE_MBIT = 100
HEADERS = 14 + 20 + 32
"""Bytes of a frame that are no program's: Ethernet, IP, TCP with time stamps. A frame holds 1,448
of a program's at most, and one without any, in return, says that two have come."""
CABLE = ROOT / "tests/toys/programs/slow_cable.py"


def ip(*words: str) -> bool:
    """True if `ip WORDS` succeeded."""
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Names of two network namespaces that see each other alone, by a device `eth0` each. Whatever
    still runs there is killed in the end.

    Skips the test where that cannot be made.
    """
    names = [f"vlds{os.getpid()}{letter}" for letter in "ab"]
    devices = [f"v{os.getpid()}{letter}" for letter in "ab"]
    needed = "that takes Linux, root, iproute2 (ip, tc) and /dev/net/tun"
    if os.geteuid() or not all([shutil.which("ip"), shutil.which("tc")]):
        pytest.skip(f"no network namespaces can be made here: {needed}")
    words = [sys.executable, str(CABLE), *devices, str(DELAY_MS)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as cable:
        try:
            assert cable.stdout is not None
            made = cable.stdout.readline() == "ready\n"
            if not made or not all(ip("netns", "add", name) for name in names):
                pytest.skip(f"no network namespaces can be made here: {needed}")
            for name, device, address in zip(names, devices, ADDRESSES, strict=True):
                assert ip("link", "set", device, "netns", name, "name", "eth0")
                assert ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
                rate = f"rate {RATE_MBIT}mbit burst 64kb latency 400ms"
                tc = ["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *rate.split()]
                subprocess.run(tc, check=True)
                for up in ("lo", "eth0"):
                    assert ip("-n", name, "link", "set", up, "up")
            yield names
        finally:
            for name in names:
                listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True)
                for pid in listed.stdout.split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                ip("netns", "del", name)
            cable.kill()


class Sent(NamedTuple):
    """Bytes that a host has put on the cable."""

    whole: int
    program: int
    """Without the headers of frames."""


def sent(hosts: list[str]) -> list[Sent]:
    """What each host has sent so far, by the counters of its device."""
    found = []
    for host in hosts:
        words = ["ip", "-n", host, "-s", "-j", "link", "show", "eth0"]
        (counted,) = json.loads(subprocess.check_output(words))
        out = counted["stats64"]["tx"]
        found.append(Sent(out["bytes"], out["bytes"] - HEADERS * out["packets"]))
    return found


def start(hosts: list[str], recipe: Recipe, folder: Path, *words: str) -> list[psutil.Popen]:
    """`vlds train` once on every host, one rank each, as docs/launching.md says."""
    (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    started = []
    for number, host in enumerate(hosts):
        launcher = (
            f"--hostfile {folder / 'hosts'} --no_ssh --node_rank {number} "
            f"--master_addr {ADDRESSES[0]} --master_port 29500"
        )
        program = ["-m", "vlds", *train_words(recipe, *words)]
        log = folder / f"{number}.log"
        started.append(start_on(host, program, log, VLDS_LAUNCHER_ARGS=launcher))
    return started


def start_torchrun(
    hosts: list[str], program: list[str], folder: Path, ranks: int
) -> list[psutil.Popen]:
    """So many ranks on every host, as docs/launching.md says."""
    started = []
    for number, host in enumerate(hosts):
        launcher = (
            f"-m torch.distributed.run --nnodes 2 --node_rank {number} --nproc_per_node {ranks} "
            f"--master_addr {ADDRESSES[0]} --master_port 29500"
        )
        words = [*launcher.split(), *program]
        started.append(start_on(host, words, folder / f"{number}.log", DS_ACCELERATOR="cpu"))
    return started


def start_on(host: str, words: list[str], log: Path, **environment: str) -> psutil.Popen:
    """Start Python in a network namespace."""
    common = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        return psutil.Popen(
            ["ip", "netns", "exec", host, sys.executable, *words],
            env={**os.environ, **common, **environment},
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )


def end(started: list[psutil.Popen], seconds: float) -> list[int]:
    """Exit codes; nothing of a host is left."""
    below = [process for host in started for process in host.children(recursive=True)]
    codes = [host.wait(seconds) for host in started]
    assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return codes

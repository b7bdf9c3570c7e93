"""Two hosts, each a network namespace of its own with a cable between them: they train together,
and a cable that is pulled ends both."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import command
from tests.rank_pool import ROOT
from tests.training.launched import last_step
from vlds.config import Recipe
from vlds.training.states import newest

pytestmark = [pytest.mark.launcher, pytest.mark.slow]
ADDRESSES = ("10.97.31.1", "10.97.31.2")
STATE = "state/step-00000010/state.safetensors"


def ip(*words: str) -> bool:
    """Whether `ip WORDS` could be done."""
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two network namespaces that see each other alone."""
    names = [f"vlds{os.getpid()}{letter}" for letter in "ab"]
    cables = [f"v{os.getpid()}{letter}" for letter in "ab"]
    try:
        made = shutil.which("ip") is not None and all(ip("netns", "add", name) for name in names)
        made = made and ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        if not made:
            pytest.skip("no network namespaces can be made here (that takes iproute2 and root)")
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            assert ip("link", "set", cable, "netns", name, "name", "eth0")
            assert ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                assert ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def start(hosts: list[str], recipe: Recipe, folder: Path, *words: str) -> list[psutil.Popen]:
    """`vlds train` once on every host, as docs/launching.md says."""
    (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    started = []
    for number, host in enumerate(hosts):
        launcher = (
            f"--hostfile {folder / 'hosts'} --no_ssh --node_rank {number} "
            f"--master_addr {ADDRESSES[0]} --master_port 29500"
        )
        environment = {"VLDS_LAUNCHER_ARGS": launcher, "GLOO_SOCKET_IFNAME": "eth0"}
        with (folder / f"{number}.log").open("w") as log:
            words_here = [sys.executable, "-m", "vlds", *command(recipe, *words)]
            started.append(
                psutil.Popen(
                    ["ip", "netns", "exec", host, *words_here],
                    env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                )
            )
    return started


def end(started: list[psutil.Popen], seconds: float) -> list[int]:
    """Exit codes; nothing of a host is left."""
    below = [process for host in started for process in host.children(recursive=True)]
    codes = [host.wait(seconds) for host in started]
    assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return codes


def kill(started: list[psutil.Popen]) -> None:
    """End what a failed test has left."""
    for host in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            host.kill()


def test_two_hosts(hosts: list[str], undisturbed: Callable[[int], Recipe], tmp_path: Path) -> None:
    whole = undisturbed(2)
    training = replace(whole.training, collective_timeout=15)
    recipe = replace(whole, output=str(tmp_path / "run"), training=training)
    run = tmp_path / "run"
    started = start(hosts, recipe, tmp_path)
    try:
        deadline = time.monotonic() + 150
        while last_step(run) < 3:
            assert all(host.poll() is None for host in started), (tmp_path / "0.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert ip("-n", hosts[0], "link", "set", "eth0", "down")
        codes = end(started, 120)
    finally:
        kill(started)
    logs = [(tmp_path / f"{number}.log").read_text() for number in (0, 1)]
    assert 0 not in codes, logs
    assert "has waited training.collective_timeout seconds" in "".join(logs)
    found, complaints = newest(run / "state")
    assert found is not None
    assert complaints == []
    for log in logs:
        assert f"--resume goes on from {found}" in log.splitlines()[-1]

    assert ip("-n", hosts[0], "link", "set", "eth0", "up")
    started = start(hosts, recipe, tmp_path, "--resume", "auto")
    try:
        assert end(started, 200) == [0, 0], (tmp_path / "0.log").read_text()
    finally:
        kill(started)
    assert f"resuming from {found}" in (tmp_path / "0.log").read_text()
    assert (run / STATE).read_bytes() == (Path(whole.output) / STATE).read_bytes()

"""Two hosts, each a network namespace of its own with a cable between them: they train together,
and a cable that is pulled ends both. Started by DeepSpeed's launcher and by torchrun."""

from __future__ import annotations

import contextlib
import json
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

from tests.toys.files import ROOT
from tests.toys.launched_run import last_step
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import short_recipe, train_words
from vlds.recipe.config import Recipe
from vlds.runtime.rank_environment import RankPlace, read_place
from vlds.training.loop import train
from vlds.training.states import newest

pytestmark = [pytest.mark.launcher, pytest.mark.slow]
ADDRESSES = ("10.97.31.1", "10.97.31.2")
STATE = "state/step-00000010/state.safetensors"


def ip(*words: str) -> bool:
    """True if `ip WORDS` succeeded."""
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
        program = ["-m", "vlds", *train_words(recipe, *words)]
        log = folder / f"{number}.log"
        started.append(start_on(host, program, log, VLDS_LAUNCHER_ARGS=launcher))
    return started


def start_torchrun(hosts: list[str], program: list[str], folder: Path) -> list[psutil.Popen]:
    """Two ranks on every host, as docs/launching.md says."""
    started = []
    for number, host in enumerate(hosts):
        launcher = (
            f"-m torch.distributed.run --nnodes 2 --node_rank {number} --nproc_per_node 2 "
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
        assert f"--resume continues from {found}" in log.splitlines()[-1]

    assert ip("-n", hosts[0], "link", "set", "eth0", "up")
    started = start(hosts, recipe, tmp_path, "--resume", "auto")
    try:
        assert end(started, 200) == [0, 0], (tmp_path / "0.log").read_text()
    finally:
        kill(started)
    assert f"resuming from {found}" in (tmp_path / "0.log").read_text()
    assert (run / STATE).read_bytes() == (Path(whole.output) / STATE).read_bytes()


def train_on_rank(recipe: Recipe) -> int:
    """What `vlds train` does on a rank."""
    return train(recipe)


def places(folder: Path) -> list[RankPlace]:
    """What acting_rank.py has reported of its four ranks."""
    reports = [json.loads((folder / f"{number}.json").read_text()) for number in range(4)]
    return [read_place(report["environment"]) for report in reports]


def test_two_hosts_under_torchrun(
    hosts: list[str], world: Path, ranks4: RankPool, tmp_path: Path
) -> None:
    program = str(ROOT / "tests/toys/programs/acting_rank.py")
    started = start_torchrun(hosts, [program, str(tmp_path), "end"], tmp_path)
    try:
        assert end(started, 60) == [0, 0], (tmp_path / "0.log").read_text()
    finally:
        kill(started)
    assert places(tmp_path) == [RankPlace(n, 4, n % 2, 2) for n in range(4)]

    whole = short_recipe(world, tmp_path / "whole", 2)
    ranks4.run(train_on_rank, whole, timeout=120)
    recipe, run = replace(whole, output=str(tmp_path / "run")), tmp_path / "run"
    started = start_torchrun(hosts, ["-m", "vlds", *train_words(recipe)], tmp_path)
    try:
        deadline = time.monotonic() + 150
        while last_step(run) < 3:
            assert all(host.poll() is None for host in started), (tmp_path / "0.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started[1].terminate()
        codes = end(started, 60)
    finally:
        kill(started)
    logs = [(tmp_path / f"{number}.log").read_text() for number in (0, 1)]
    assert codes == [1, 1], logs
    why = "because another rank was told to"
    assert f"after step {last_step(run)} {why}; --resume continues" in logs[0]
    found, complaints = newest(run / "state")
    assert (found, complaints) == (run / f"state/step-{last_step(run):08d}", [])

    again = ["-m", "vlds", *train_words(recipe, "--resume", "auto")]
    started = start_torchrun(hosts, again, tmp_path)
    try:
        assert end(started, 200) == [0, 0], (tmp_path / "0.log").read_text()
    finally:
        kill(started)
    assert f"resuming from {found}" in (tmp_path / "0.log").read_text()
    assert (run / STATE).read_bytes() == (Path(whole.output) / STATE).read_bytes()

"""Claims on a network file system: hosts whose mounts show each other's work late."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.toys.files import ROOT
from tests.toys.shares import share_hosts
from vlds.cli.sweep import shares
from vlds.cli.sweep_work import claim
from vlds.runtime.folders import NAME, FolderInUse

PARTS = 8
WORK = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
from vlds.runtime import folders
folders.ABANDONED_S, folders.BEAT_S = 4.0, 1.0
from vlds.runtime.folders import FolderInUse, folder_lock
folder, parts, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    left = [n for n in range(parts) if not (folder / f"done-{n}").exists()]
    if not left:
        break
    for n in left:
        done = folder / f"done-{n}"
        if done.exists():
            continue
        with suppress(FolderInUse), folder_lock(folder / "claims" / str(n), keep=True):
            if done.exists():
                continue
            # Each says itself when it begins and ends, in a file that is its own.
            with open(sys.argv[4], "a") as log:
                log.write(f"{time.monotonic()} begin {n}\\n")
                log.flush()
                time.sleep(0.3)
                done.write_text(name)
                log.write(f"{time.monotonic()} end {n}\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_hosts_that_race_do_each_part_once(seed: int, tmp_path: Path) -> None:
    """Three hosts, two with two processes; one dies in the middle, and the others begin its part
    again."""
    draw = random.Random(seed)
    with share_hosts(3, tmp_path, stale=1.5, seed=seed, locks=seed % 3 != 2) as hosts:
        names = [0, 0, 1, 1, 2]
        logs = [tmp_path / f"{n}.log" for n in range(len(names))]
        programs = [
            hosts[host].run(
                sys.executable, "-c", WORK, str(hosts[host].mount), str(PARTS), f"host{host}",
                str(log),
            )
            for host, log in zip(names, logs, strict=True)
        ]  # fmt: skip
        dead = draw.choice([0, 1, 2])
        deadline = time.monotonic() + 60
        while not any(log.exists() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.5))
        hosts[dead].die()
        for host, program in zip(names, programs, strict=True):
            if host != dead:
                assert program.wait(timeout=120) == 0
        lines = [
            (float(when), word, int(part), names[n] == dead)
            for n, log in enumerate(logs)
            if log.exists()
            for when, word, part in map(str.split, log.read_text().splitlines())
        ]
        ends = [part for _, word, part, _ in lines if word == "end"]
        begun = [part for _, word, part, is_dead in lines if word == "begin" and not is_dead]
        # A part that the dead host has begun without a trace is done once more.
        assert sorted(set(ends)) == list(range(PARTS))
        assert len(begun) == len(set(begun)), f"begun twice: {sorted(lines)}"
        print(seed, "host", dead, "died;", len(ends), "ends")


# At most one process holds a part of a sweep; what a dead one held is free again.

HOLD = """
import sys, time
from pathlib import Path
from vlds.cli.sweep_work import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_process_claims_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path / "part")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse), claim(tmp_path / "part"):
            raise AssertionError("claimed twice")
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "part").exists()
    for _ in range(2):  # the claim's file stays, and keeps nobody of this host away
        with claim(tmp_path / "part"):
            pass
        assert (tmp_path / "part" / NAME).is_file()


# The share of the machine that each run has, if several run at a time.


def test_processes_share_the_gpus() -> None:
    def visible(num: int, ranks: int, environment: dict[str, str]) -> list[str]:
        return [s["CUDA_VISIBLE_DEVICES"] for s in shares(num, ranks, 4, environment)]

    assert visible(2, 1, {}) == ["0,1", "2,3"]
    assert visible(4, 1, {"CUDA_VISIBLE_DEVICES": "7,6,5,4"}) == ["7", "6", "5", "4"]
    with pytest.raises(ValueError, match="--at-once 3: 6 GPUs are asked for, and this machine has"):
        shares(3, 2, 4, {})

"""Claims on a network file system: hosts whose mounts show each other's work late."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

from tests.toys.shares import share_hosts

pytestmark = pytest.mark.slow
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

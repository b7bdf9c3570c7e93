"""Starts through torchrun: the environment of the ranks, signals, exit codes, and no orphans."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.toys.files import ROOT
from tests.toys.launched_run import TORCHRUN
from tests.toys.processes import gone, until
from vlds.runtime.rank_environment import RankPlace, read_place

pytestmark = pytest.mark.launcher
PROGRAM = ROOT / "tests/toys/programs/acting_rank.py"


def command(folder: Path, action: str) -> list[str]:
    """Two ranks of acting_rank.py."""
    return [sys.executable, *TORCHRUN, str(PROGRAM), str(folder), action]


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def reports(folder: Path) -> list[dict[str, Any]]:
    """What both ranks wrote when they were ready."""
    files = [folder / "0.json", folder / "1.json"]
    until(lambda: all(file.exists() for file in files), 60)
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
def test_ranks_heed_torchrun_and_not_the_shell_above(tmp_path: Path) -> None:
    """The shell has "deepspeed" among its words, as a job script may, and ends before them."""
    script = f"{shlex.join(command(tmp_path, 'save'))} & echo $!; read line"
    shell = start(["sh", "-c", script, "deepspeed_job"])
    assert shell.stdin is not None
    assert shell.stdout is not None
    torchrun = psutil.Process(int(shell.stdout.readline()))
    found = reports(tmp_path)
    places = [read_place(report["environment"]) for report in found]
    assert places == [RankPlace(0, 2, 0, 2), RankPlace(1, 2, 1, 2)]
    ranks = [psutil.Process(report["pid"]) for report in found]
    shell.stdin.close()
    shell.wait(10)
    with pytest.raises(psutil.TimeoutExpired):
        ranks[0].wait(1.5)
    torchrun.terminate()
    until(lambda: all(map(gone, [torchrun, *ranks])), 60)
    assert sorted(file.name for file in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    shell.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("action", ["save", pytest.param("deaf", marks=pytest.mark.slow)])
def test_ranks_without_torchrun_end(action: str, tmp_path: Path) -> None:
    run = start(command(tmp_path, action))
    ranks = [psutil.Process(report["pid"]) for report in reports(tmp_path)]
    run.send_signal(signal.SIGKILL)
    until(lambda: all(map(gone, ranks)), 30)
    assert len(list(tmp_path.glob("saved*"))) == (2 if action == "save" else 0)
    run.communicate(timeout=10)

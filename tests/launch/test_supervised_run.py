"""Real starts of two ranks: arguments, exit codes, signals, and no orphans."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.toys.files import ROOT
from tests.toys.launched_run import TORCHRUN
from tests.toys.processes import gone, until
from tests.toys.recipes import short_recipe, train_words
from vlds.runtime.process import signal_name
from vlds.runtime.rank_environment import RankPlace, read_place

pytestmark = pytest.mark.launcher
PROGRAMS = ROOT / "tests/toys/programs"


class Run:
    """A supervised run of acting_rank.py on two ranks."""

    def __init__(self, folder: Path, action: str, *words: str, grace_s: float = 20) -> None:
        self.folder = folder
        start = str(PROGRAMS / "supervise_two.py")
        self.supervisor = subprocess.Popen(
            [sys.executable, start, str(grace_s), str(folder), action, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def reports(self) -> list[dict[str, Any]]:
        """What both ranks wrote when they were ready."""
        files = [self.folder / "0.json", self.folder / "1.json"]
        until(lambda: all(file.exists() for file in files), 60)
        return [json.loads(file.read_text()) for file in files]

    def processes(self) -> list[psutil.Process]:
        """Everything below the supervisor: the launcher and both ranks."""
        found = psutil.Process(self.supervisor.pid).children(recursive=True)
        assert len(found) == 3
        return found

    def end(self) -> tuple[int, str]:
        """Exit code and output."""
        output, _ = self.supervisor.communicate(timeout=60)
        return self.supervisor.returncode, output


def test_arguments_and_environment_arrive(tmp_path: Path) -> None:
    words = ["two words", "it's $HOME", '--a="b c"', "*", "--"]
    run = Run(tmp_path, "end", *words)
    assert run.end() == (0, "")
    for number, report in enumerate(run.reports()):
        assert report["words"] == words
        assert report["environment"]["RANK"] == str(number)
        assert report["environment"]["WORLD_SIZE"] == "2"
        assert report["environment"]["DS_ACCELERATOR"] == "cpu"


def test_a_failing_rank_ends_the_run_with_its_code(tmp_path: Path) -> None:
    run = Run(tmp_path, "fail")
    code, output = run.end()
    assert code == 3, output
    assert all(not psutil.pid_exists(report["pid"]) for report in run.reports())


def test_a_signal_lets_the_ranks_save(tmp_path: Path) -> None:
    run = Run(tmp_path, "save")
    run.reports()
    processes = run.processes()
    run.supervisor.send_signal(signal.SIGTERM)
    code, output = run.end()
    assert code == 128 + signal.SIGTERM, output
    assert sorted(file.name for file in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    assert all(map(gone, processes))


@pytest.mark.slow
def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path, "deaf", grace_s=1)
    run.reports()
    processes = run.processes()
    run.supervisor.send_signal(signal.SIGINT)
    code, output = run.end()
    assert code == 128 + signal.SIGINT
    assert "Ctrl-C again" in output
    assert "did not end within 1 s" in output
    assert all(map(gone, processes))


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_before_the_recipe_is_read(
    number: signal.Signals, ranks: int, world: Path, tmp_path: Path
) -> None:
    # Its mistakes, and files that are missing, would end the command before anything starts.
    words = train_words(short_recipe(world, tmp_path / "run", 2), "--ranks", str(ranks))
    run = subprocess.Popen(
        [sys.executable, "-m", "vlds", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (number, signal.SIGINT)],
    )
    below = partial(psutil.Process(run.pid).children, recursive=True)
    until(lambda: len(below()) == 1 + ranks, 30)
    processes = below()
    run.send_signal(number)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    what = f"the run ended by {signal_name(number)} before its recipe was read"
    assert output == f"vlds: {what}: start it again\n"
    assert all(map(gone, processes))


@pytest.mark.parametrize("action", ["save", pytest.param("deaf", marks=pytest.mark.slow)])
def test_ranks_without_supervisor_end(tmp_path: Path, action: str) -> None:
    run = Run(tmp_path, action)
    run.reports()
    processes = run.processes()
    run.supervisor.kill()
    until(lambda: all(map(gone, processes)), 30)
    assert len(list(tmp_path.glob("saved*"))) == (2 if action == "save" else 0)
    run.end()


# Starts through torchrun: the environment of the ranks, signals, exit codes, and no orphans.

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

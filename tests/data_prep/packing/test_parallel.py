"""Many processes, one order, and a quiet end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.cli import INCOMPLETE, KEPT
from tests.toys.files import write
from tests.toys.processes import gone, until
from vlds.runtime.process import ASKING, KILLED

PROGRAM = """
from vlds.runtime.workers import ordered_map

def double(number):
    if number == {bad}:
        raise ValueError("bad number")
    return 2 * number

if __name__ == "__main__":
    done = ordered_map(double, range(100), workers=2, chunk=3, pieces=1000)
    print([next(done) for _ in range({taken})] == [2 * n for n in range({taken})])
    done.close()
"""


def hear_all() -> None:
    """Tests that a shell runs in the background inherit that Ctrl-C is ignored."""
    for number in ASKING:
        signal.signal(number, signal.SIG_DFL)


def started(command: list[str], root: Path, **more: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(command, env=env, preexec_fn=hear_all, **pipes, **more)


def program(folder: Path, text: str) -> list[str]:
    """The command that runs this program."""
    return [sys.executable, str(write(folder / "program.py", text))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "taken", "code"), [(-1, 100, 0), (-1, 10, 0), (5, 3, 0), (5, 50, 1)]
)
def test_a_program_ends_as_if_it_had_one_process(
    bad: int, taken: int, code: int, root: Path, tmp_path: Path
) -> None:
    """Read to the end, left early, and after an error: nothing on stderr but the error."""
    process = started(program(tmp_path, PROGRAM.format(bad=bad, taken=taken)), root)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if code == 0:
        assert (output, errors) == ("True\n", "")
    else:
        assert errors.rstrip().endswith("ValueError: bad number")
        assert "Exception ignored" not in errors


SLOW_START = """
import os, time
from vlds.runtime.workers import ordered_map

def double(number):
    return 2 * number

if __name__ == "__main__":
    try:
        list(ordered_map(double, range(100), workers=2, chunk=3, pieces=1000))
    except KeyboardInterrupt:
        raise SystemExit(7)
else:
    open(f"{os.path.dirname(__file__)}/started-{os.getpid()}", "w").close()
    time.sleep(2)
"""


@pytest.mark.slow
def test_ctrl_c_while_the_processes_start(root: Path, tmp_path: Path) -> None:
    """The program hears it, and not each of them."""
    process = started(program(tmp_path, SLOW_START), root, start_new_session=True)
    until(lambda: len(list(tmp_path.glob("started-*"))) >= 2, 60)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (7, "")


BUSY = """
import os, sys, time
from vlds.runtime.cluster import LostWorker
from vlds.runtime.process import Interrupted, interruptible
from vlds.runtime.workers import ordered_map

def work(number):
    open(f"{os.path.dirname(__file__)}/busy-{os.getpid()}", "w").close()
    time.sleep(60)

if __name__ == "__main__":
    try:
        with interruptible():
            list(ordered_map(work, range(8), workers=2, chunk=1, pieces=1000))
    except (LostWorker, Interrupted) as error:
        print(repr(error))
"""


class Busy:
    """A program whose two workers are busy."""

    def __init__(self, command: list[str], folder: Path, root: Path) -> None:
        self.process = started(command, root)
        # The demo's go on to write more.
        until(lambda: len([*folder.glob("busy-*"), *folder.glob("official/*")]) >= 2, 60)
        self.below = psutil.Process(self.process.pid).children(recursive=True)
        # Without Python's own helper.
        self.workers = [p for p in self.below if "spawn_main" in " ".join(p.cmdline())]

    def end(self) -> tuple[int, str, str]:
        """Exit code and what was said; nothing is left."""
        output, errors = self.process.communicate(timeout=30)
        until(lambda: all(map(gone, self.below)), 10)
        return self.process.returncode, output, errors


@pytest.fixture
def busy(root: Path, tmp_path: Path) -> Busy:
    return Busy(program(tmp_path, BUSY), tmp_path, root)


@pytest.mark.slow
@pytest.mark.parametrize("number", ASKING)
def test_busy_workers_end_at_once_with_a_program_that_is_told_to(
    number: signal.Signals, busy: Busy
) -> None:
    busy.process.send_signal(number)
    assert busy.end() == (0, f"Interrupted({int(number)})\n", "")


@pytest.mark.slow
def test_busy_workers_end_with_a_program_that_is_killed(busy: Busy) -> None:
    busy.process.kill()
    code, _, said = busy.end()
    assert code == -signal.SIGKILL
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGKILL, f"was {KILLED}; give fewer --workers"),
        (signal.SIGSEGV, "was ended by SIGSEGV; start again"),
        (signal.SIGTERM, "was ended by SIGTERM; start again"),
    ],
)
def test_a_killed_worker_is_named(number: signal.Signals, how: str, busy: Busy) -> None:
    lost = busy.workers[1]
    lost.send_signal(number)
    code, said, errors = busy.end()
    assert (code, errors) == (0, "")
    said_of = {1, 2} if number == signal.SIGTERM else {2}  # the pool ends the others by it
    assert said in [
        f"LostWorker('worker {n} of 2 (process {busy.workers[n - 1].pid}) {how}')\n"
        for n in said_of
    ]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["program", "worker"])
def test_the_demo_says_how_to_go_on(target: str, root: Path, tmp_path: Path) -> None:
    run = Busy([sys.executable, "-m", "data_prep", "demo", "--out", str(tmp_path)], tmp_path, root)
    if target == "program":
        run.process.terminate()
        code, _, said = run.end()
        assert (code, said) == (143, f"interrupted by SIGTERM{INCOMPLETE}\n")
    else:
        run.workers[1].kill()
        code, _, said = run.end()
        assert (code, said.count("\n")) == (2, 1)
        assert said.startswith(f"error: worker 2 of 2 (process {run.workers[1].pid}) was killed")
        assert said.endswith(f"give fewer --workers{KEPT}\n")

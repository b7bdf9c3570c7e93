"""Many processes, one order, and a quiet end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
from data_prep.parallel import ordered_map

def double(number):
    if number == {bad}:
        raise ValueError("bad number")
    return 2 * number

if __name__ == "__main__":
    done = ordered_map(double, range(100), workers=2, chunk=3, fewest=2)
    print([next(done) for _ in range({taken})] == [2 * n for n in range({taken})])
    done.close()
"""


@pytest.mark.parametrize(
    ("bad", "taken", "code"), [(-1, 100, 0), (-1, 10, 0), (5, 3, 0), (5, 50, 1)]
)
def test_a_program_ends_as_if_it_had_one_process(
    bad: int, taken: int, code: int, root: Path, tmp_path: Path
) -> None:
    """Read to the end, left early, and after an error: nothing on stderr but the error."""
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(bad=bad, taken=taken), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)],
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    if code == 0:
        assert (done.stdout, done.stderr) == ("True\n", "")
    else:
        assert done.stderr.rstrip().endswith("ValueError: bad number")
        assert "Exception ignored" not in done.stderr


SLOW_START = """
import os, time
from data_prep.parallel import ordered_map

def double(number):
    return 2 * number

if __name__ == "__main__":
    try:
        list(ordered_map(double, range(100), workers=2, chunk=3, fewest=2))
    except KeyboardInterrupt:
        raise SystemExit(7)
else:
    open(f"{os.path.dirname(__file__)}/started-{os.getpid()}", "w").close()
    time.sleep(2)
"""


def test_ctrl_c_while_the_processes_start(root: Path, tmp_path: Path) -> None:
    """The program hears it, and not each of them."""
    file = tmp_path / "program.py"
    file.write_text(SLOW_START, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(file)],
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("started-*"))) < 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (7, b"")

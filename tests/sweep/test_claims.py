"""At most one process holds a part of a sweep; what a dead one held is free again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys.files import ROOT
from vlds.cli.sweep_work import claim, wait_until_free
from vlds.runtime.folders import NAME, FolderInUse

TAKE_ALL = """
import sys, time
from contextlib import suppress
from pathlib import Path
from vlds.runtime.folders import FolderInUse
from vlds.cli.sweep_work import claim
folder = Path(sys.argv[1])
deadline = time.monotonic() + 60
while time.monotonic() < deadline and len(list(folder.glob("done-*"))) < 12:
    for number in range(12):
        done = folder / f"done-{number}"
        with suppress(FolderInUse), claim(folder / "claims" / str(number)):
            if not done.exists():
                with (folder / "log").open("a") as log:
                    log.write(f"{number}\\n")
                time.sleep(0.02)
                done.touch()
"""
HOLD = """
import sys, time
from pathlib import Path
from vlds.cli.sweep_work import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_no_part_is_done_twice(tmp_path: Path) -> None:
    words = [sys.executable, "-c", TAKE_ALL, str(tmp_path)]
    processes = [subprocess.Popen(words, cwd=ROOT) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(12))


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


@pytest.mark.slow
def test_a_run_is_free_when_its_writer_has_ended(tmp_path: Path) -> None:
    wait_until_free(tmp_path / "missing", 0)
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(FolderInUse, match=f"process {process.pid} "):
            wait_until_free(tmp_path / "run", 0)
        process.kill()
        wait_until_free(tmp_path / "run", 30)

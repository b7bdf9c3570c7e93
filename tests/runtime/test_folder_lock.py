"""One writer per folder, in real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.toys.processes import HOLDER, holder
from vlds.runtime import folders as module
from vlds.runtime.folders import NAME, FolderInUse, folder_lock


def test_a_second_program_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as process:
        started = time.strftime("%Y-%m-%d")
        message = rf"{folder} is being written by process {process.pid} on .*, started {started}"
        for _ in range(2):  # being refused does not release the other's lock
            with pytest.raises(FolderInUse, match=message), folder_lock(folder):
                raise AssertionError("two programs hold one folder")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_program_holds_nothing(number: int, tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(number)
        process.wait()
        assert (tmp_path / NAME).is_file()
        with folder_lock(tmp_path):
            record = json.loads((tmp_path / NAME).read_text())
            assert record["pid"] == str(os.getpid())


def test_the_record_holds_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://user:hunter2@host/" + "x" * 200
    monkeypatch.setattr(sys, "argv", ["vlds", "train", "--data", url])
    with folder_lock(tmp_path):
        told = (tmp_path / NAME).read_text()
    assert "--data https://host/xxx" in told
    assert "hunter2" not in told


def test_forked_workers_do_not_keep_the_lock(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        assert not (tmp_path / NAME).exists()
        with holder(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_process_cannot_hold_a_folder_twice(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} "), folder_lock(tmp_path):
            raise AssertionError("held twice")
        # The refusal has not let go of it.
        words = [sys.executable, "-c", HOLDER, str(tmp_path)]
        assert "FolderInUse" in subprocess.run(words, capture_output=True, text=True).stderr
    with folder_lock(tmp_path):
        pass


@pytest.mark.parametrize("command", ["vlds", "vlds train --output caf\udce9"])
@pytest.mark.parametrize("alive", [True, False])
def test_a_lock_of_another_host_is_watched_for_signs_of_life(
    alive: bool,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a file system that does not carry locks from host to host. A command's words may not be
    UTF-8."""
    monkeypatch.setattr(module, "ABANDONED_S", 0.3)
    record = {
        "host": f"not-{socket.gethostname()}",
        "pid": "7",
        "start": "then",
        "command": command,
    }
    (tmp_path / NAME).write_text(json.dumps(record))
    if alive:
        touch = f"import os, time; time.sleep(.1); os.utime({str(tmp_path / NAME)!r})"
        toucher = subprocess.Popen([sys.executable, "-S", "-c", touch])
        with pytest.raises(FolderInUse, match="process 7 on not-"), folder_lock(tmp_path):
            raise AssertionError("its writer lives")
        toucher.wait()
    else:
        with folder_lock(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == str(os.getpid())
    assert "waiting 0 s for a sign of life" in capsys.readouterr().err


def test_a_writer_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    with folder_lock(tmp_path):
        lock = tmp_path / NAME
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lock.stat().st_mtime > 0


def test_what_is_in_the_file_may_be_anything(tmp_path: Path) -> None:
    for text in ("", "[]", "{", "null", "5", '"x"'):
        (tmp_path / NAME).write_text(text)
        with folder_lock(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == str(os.getpid())

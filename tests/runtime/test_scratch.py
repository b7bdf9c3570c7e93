"""Temporary folders go with the last process that holds them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.own_data.chat import scratch_beside
from tests.toys.files import ROOT
from vlds.runtime import folders
from vlds.runtime.folders import PREFIX, scratch_folder

HOLD = """
import os, time
from vlds.runtime.folders import scratch_folder
with scratch_folder() as folder:
    (folder / "content").touch()
    # In one write: two processes share the pipe.
    os.write(1, f"{os.fork() or os.getpid()} {folder}\\n".encode())
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's folder of temporary files. Pytest's own have longer paths than sockets may."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_a_long_path_leaves_room_for_sockets(temp: Path) -> None:
    long = temp / ("a" * 80)
    long.mkdir()
    for folder, parent in ((temp, temp), (long, Path("/tmp"))):
        tempfile.tempdir = str(folder)
        with scratch_folder() as scratch, socket.socket(socket.AF_UNIX) as opened:
            assert scratch.parent == parent
            opened.bind(str(scratch / "listener-12345678"))
        assert not scratch.exists()


def test_a_killed_process_keeps_none(temp: Path) -> None:
    """Its children hold it as long as they live."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, env=os.environ | {"TMPDIR": str(temp)},
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        told = [process.stdout.readline().split() for _ in range(2)]
        (child,) = {int(number) for number, _ in told} - {process.pid}
        (folder,) = {Path(folder) for _, folder in told}
        for number in (process.pid, child):
            with scratch_folder():
                assert (folder / "content").exists()
            os.kill(number, signal.SIGKILL)
        process.stdout.read()  # to the end, which is that of both
    with scratch_folder():
        assert not folder.exists()


def test_a_killed_command_keeps_none_beside_its_output(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from data_prep.own_data.chat import scratch_beside\n"
        "with scratch_beside(pathlib.Path(sys.argv[1])) as f: (f / 'a').touch(); os.kill(0, 9)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    killed = subprocess.run(words, cwd=ROOT, start_new_session=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]
    with scratch_beside(tmp_path / "out") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_no_other_code_makes_temporary_files() -> None:
    """Of those with a name, which would stay if a process is killed."""
    named = re.compile(r"mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile")
    files = [file for part in ("vlds", "data_prep") for file in (ROOT / part).rglob("*.py")]
    assert [f.name for f in files if named.search(f.read_text())] == ["folders.py"]


def test_one_that_was_taken_before_it_was_locked_is_not_used(
    temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes it for abandoned in between."""
    lock, taken = folders._open_lock, list[Path]()

    def lose(folder: Path) -> int:
        descriptor = lock(folder)
        if not taken:
            shutil.rmtree(folder)
            taken.append(folder)
        return descriptor

    monkeypatch.setattr(folders, "_open_lock", lose)
    with scratch_folder() as folder:
        assert folder.is_dir()
        assert [folder] != taken
    assert list(temp.iterdir()) == []


def test_other_folders_stay(temp: Path) -> None:
    (temp / "vlds-mine").mkdir()
    (temp / "elsewhere").mkdir()
    (temp / f"{PREFIX}link").symlink_to(temp / "elsewhere")
    (temp / f"{PREFIX}file").touch()
    before = set(temp.iterdir())
    with scratch_folder() as folder:
        assert set(temp.iterdir()) == {*before, folder}
    assert set(temp.iterdir()) == before

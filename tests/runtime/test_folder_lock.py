"""One writer per folder, in real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.own_data.chat import scratch_beside
from tests.toys.files import ROOT
from tests.toys.processes import HOLDER, holder
from vlds.runtime import folders
from vlds.runtime import folders as module
from vlds.runtime.folders import NAME, PREFIX, FolderInUse, folder_lock, scratch_folder


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
    monkeypatch.setattr(module, "ABANDONED_S", 2.0 if alive else 0.3)
    record = {
        "host": f"not-{socket.gethostname()}",
        "pid": "7",
        "start": "then",
        "command": command,
    }
    (tmp_path / NAME).write_text(json.dumps(record))
    if alive:
        touch = f"import os, time\nwhile 1: time.sleep(.1); os.utime({str(tmp_path / NAME)!r}); "
        words = [sys.executable, "-S", "-c", touch + "print(flush=True)"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as toucher:
            assert toucher.stdout is not None
            toucher.stdout.readline()
            with pytest.raises(FolderInUse, match="process 7 on not-"), folder_lock(tmp_path):
                raise AssertionError("its writer lives")
            toucher.kill()
    else:
        with folder_lock(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == str(os.getpid())
    assert "s for a sign of life" in capsys.readouterr().err


def test_what_is_in_the_file_may_be_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer may have died before it wrote."""
    monkeypatch.setattr(module, "ABANDONED_S", 0.2)
    for text in ("", "[]", "{", "null", "5", '"x"'):
        (tmp_path / NAME).write_text(text)
        with folder_lock(tmp_path):
            assert json.loads((tmp_path / NAME).read_text())["pid"] == str(os.getpid())


TAKE = """
import sys, time
from pathlib import Path
from vlds.runtime import folders
folders.ABANDONED_S = folders.BEAT_S = 0.5
try:
    with folders.folder_lock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(5)
except folders.FolderInUse:
    print("refused")
"""


@pytest.mark.parametrize("half_way", [False, True])
def test_one_of_many_takes_over(half_way: bool, tmp_path: Path) -> None:
    """All find out at once that the writer is dead; so may be the first that has taken over."""
    other = {"host": "other", "boot": "other", "pid": "7", "start": "then", "command": "vlds"}
    (tmp_path / NAME).write_text(json.dumps(other | {"id": "one"}))
    if half_way:
        (tmp_path / f"{NAME}.after-one").write_text(json.dumps(other | {"id": "two"}))
        (tmp_path / f"{NAME}.after-gone").write_text(json.dumps(other | {"id": "three"}))
    words = [sys.executable, "-c", TAKE, str(tmp_path)]
    pipe = subprocess.PIPE
    programs = [
        subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) for _ in range(4)
    ]
    said = sorted(program.communicate()[0] for program in programs)
    assert said == ["held\n", "refused\n", "refused\n", "refused\n"]
    assert list(tmp_path.iterdir()) == []


def test_a_writer_whose_lock_was_taken_over_ends(tmp_path: Path) -> None:
    """Its host has slept, and another one has not seen a sign of life."""
    code = HOLDER.replace("with", "from vlds.runtime import folders; folders.BEAT_S = 0.1\nwith", 1)
    words = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (tmp_path / "new").write_text('{"id": "another"}')
        os.replace(tmp_path / "new", tmp_path / NAME)
        _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert "another host has taken it over, because this one gave no sign of life for 20 s" in said
    assert (tmp_path / NAME).read_text() == '{"id": "another"}'


# Temporary folders go with the last process that holds them.

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

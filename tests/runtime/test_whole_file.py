"""Files and folders that are whole or not there: errors, signals, leftovers, links, full disks."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.toys.files import ROOT
from tests.toys.small_disk import small_disk
from vlds.runtime.disk import CannotWrite, append
from vlds.runtime.files import (
    FOREIGN_S,
    Taken,
    finish_replacing,
    sweep,
    whole_file,
    whole_folder,
    write_whole,
)

NO_PROCESS = 1 << 22
"""No process of Linux has this number, or a larger one."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k") as place:
        yield place


def fill_file(path: Path, size: int) -> None:
    write_whole(path, bytes(size))


def fill_folder(path: Path, size: int) -> None:
    with whole_folder(path) as partial:
        (partial / "content").write_bytes(bytes(size))


def size_of(path: Path) -> int:
    return (path / "content" if path.is_dir() else path).stat().st_size


FILLERS = [fill_file, fill_folder]


@pytest.mark.parametrize("fill", FILLERS)
def test_a_full_disk_leaves_the_old_one(fill: Callable[..., None], disk: Path) -> None:
    out = disk / "out"
    fill(out, 3)
    with pytest.raises(CannotWrite) as error:
        fill(out, 100_000)
    reason = "No space left on device; make room there, or name another place"
    assert str(error.value) == f"cannot write {out}: {reason}"
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert size_of(out) == 3
    assert [path.name for path in disk.iterdir()] == ["out"]


def test_what_is_appended_is_there_or_not(disk: Path) -> None:
    append(disk / "log", "one\n")
    with pytest.raises(CannotWrite, match="log: No space left on device"):
        append(disk / "log", "two\n" * 50_000)
    append(disk / "log", "three\n")
    assert (disk / "log").read_text() == "one\nthree\n"


def make_late(make: Callable[..., Any], out: Path) -> None:
    with make(out, new=True) as partial:
        (partial / "x" if partial.is_dir() else partial).write_text("mine")
        out.write_text("theirs")


def test_new_ones_replace_nothing(tmp_path: Path) -> None:
    for make in (whole_file, whole_folder):
        with pytest.raises(Taken, match="out exists by now"):
            make_late(make, tmp_path / "out")
        assert (tmp_path / "out").read_text() == "theirs"
        (tmp_path / "out").unlink()
        assert list(tmp_path.iterdir()) == []


def test_what_another_program_is_making_is_not_made_twice(tmp_path: Path) -> None:
    name = f"@{socket.gethostname()}-{os.getppid()}-0.partial"
    for made in (".out", ".other"):
        (tmp_path / f"{made}{name}").mkdir()
    with pytest.raises(Taken, match=rf"out is being written by process {os.getppid()} on"):
        make_late(whole_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with whole_folder(tmp_path / "third", new=True):
        pass
    assert (tmp_path / "third").is_dir()


def test_a_link_stays_one(tmp_path: Path) -> None:
    for fill in FILLERS:
        folder = tmp_path / fill.__name__
        (folder / "elsewhere").mkdir(parents=True)
        (folder / "out").symlink_to(folder / "elsewhere" / "real")
        fill(folder / "out", 4)
        fill(folder / "out", 5)
        assert (folder / "out").is_symlink()
        assert size_of(folder / "elsewhere" / "real") == 5
        assert len(list(folder.rglob("*"))) in (3, 4)


def test_a_device_takes_what_it_is_given(tmp_path: Path) -> None:
    write_whole(Path("/dev/null"), "x", stream=True)
    words = (
        "from vlds.runtime.files import *; write_whole(Path('/dev/stdout'), 'told', stream=True)"
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("told", 0), done.stderr


def test_a_pipe_that_no_user_named_is_not_written(tmp_path: Path) -> None:
    """It would wait for a reader for ever."""
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(ValueError, match=r"/dataset\.json is a named pipe, not a regular file"):
        write_whole(tmp_path / "dataset.json", "x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_process_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    write_whole(tmp_path / "out", "old")
    program = f"""
import os, signal
from pathlib import Path
from vlds.runtime.files import whole_file, whole_folder
signal.signal({number}, signal.default_int_handler if {number} == 2 else signal.SIG_DFL)
with whole_folder(Path("folder")) as folder, whole_file(Path("out")) as file:
    (folder / "half").write_text("made")
    file.write_text("half")
    assert len(os.listdir()) == 3
    os.kill(os.getpid(), {number})
    print("lives")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-number, ""), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def left(folder: Path, host: str, process: int, age: float = 0) -> Path:
    """What a process has left half made."""
    path = folder / f".out@{host}-{process}-0.partial"
    path.mkdir()
    (path / "half").write_text("made")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_leftovers_of_the_dead_go_and_nothing_else(tmp_path: Path) -> None:
    here, alive = socket.gethostname(), os.getppid()
    dead = left(tmp_path, here, NO_PROCESS)
    recycled = left(tmp_path, here, os.getpid())
    abandoned = left(tmp_path, "elsewhere", 7, FOREIGN_S + 60)
    kept = [left(tmp_path, here, alive), left(tmp_path, "elsewhere", 8)]
    (tmp_path / ".mine.partial").write_text("somebody's own")
    write_whole(tmp_path / "other", "x")
    assert not dead.exists()
    assert not recycled.exists()
    assert not abandoned.exists()
    assert all(path.exists() for path in kept)
    with whole_file(tmp_path / "out") as partial:
        partial.write_text("half")
        sweep(tmp_path, alone=True)
        assert partial.exists(), "this process makes it"
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == [".mine.partial", "other", "out"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_replacement_that_fails_half_way(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder comes back."""
    fill_folder(tmp_path / "out", 3)
    replace, seen = os.replace, []

    def fail(*words: Any) -> None:
        seen.append(words)
        if len(seen) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(*words)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CannotWrite, match="Input/output error; check that disk"):
        fill_folder(tmp_path / "out", 5)
    assert size_of(tmp_path / "out") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_replacement_that_was_killed_half_way(tmp_path: Path) -> None:
    fill_folder(tmp_path / ".out.older", 3)
    finish_replacing(tmp_path / "out")
    assert size_of(tmp_path / "out") == 3
    fill_folder(tmp_path / ".out.older", 2)
    fill_folder(tmp_path / "out", 5)
    assert size_of(tmp_path / "out") == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_reads_them(umask: int, tmp_path: Path) -> None:
    """safetensors writes files that their owner alone can read."""
    tensors = {"weight": np.zeros(2)}
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as partial:
            save_file(tensors, partial)
        with whole_folder(tmp_path / "folder") as partial:
            save_file(tensors, partial / "weights")
            inner = Path(tempfile.mkdtemp(dir=partial)).rename(partial / "inner")
            save_file(tensors, inner / "weights")
            (inner / "program").touch(0o700)
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode for path in tmp_path.rglob("*")}
    assert {name: S_IMODE(mode) for name, mode in modes.items()} == {
        **dict.fromkeys(["file", "folder/weights", "folder/inner/weights"], 0o666 & ~umask),
        **dict.fromkeys(["folder", "folder/inner"], 0o777 & ~umask),
        "folder/inner/program": 0o700 | (0o666 & ~umask),
    }

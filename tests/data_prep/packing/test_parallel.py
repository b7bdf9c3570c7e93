"""Many processes, one order, and a quiet end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.cli import main
from data_prep.packing.source import Dropped
from data_prep.packing.writer import DatasetWriter, SampleRecord, ShardLimits
from tests.toys.files import write
from tests.toys.pictures import jpeg
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


# An interrupted preparation resumes, and gives the shards of an uninterrupted one.

NUM_RECORDS = 11
DROPPED = {0, 3, 4, 10}


def stream(start: int = 0, stop: int = NUM_RECORDS) -> Iterator[SampleRecord | Dropped]:
    """Some are dropped, first and last among them."""
    for number in range(start, stop):
        if number in DROPPED:
            yield Dropped(f"id-{number}", "odd")
            continue
        annotations = [{"id": str(number), "question": "why?"}]
        members = [("jpg", bytes([number]) * 70)]
        yield SampleRecord(id=f"id-{number}", members=members, json={"annotations": annotations})


def new_writer(out: Path, samples: int = 2, resume: bool = False) -> DatasetWriter:
    return DatasetWriter(
        out, name="n", kind="vqa", split="train", limits=ShardLimits(samples=samples), resume=resume
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def begin(out: Path, stop: int) -> None:
    """Write records until a Ctrl-C behind so many of them."""

    def stopped() -> Iterator[SampleRecord | Dropped]:
        yield from stream(stop=stop)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_writer(out).write(stopped())


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files that are written without a stop."""
    new_writer(tmp_path / "whole").write(stream())
    return files(tmp_path / "whole")


@pytest.mark.parametrize("stop", range(NUM_RECORDS))
def test_stopped_anywhere(stop: int, whole: dict[str, bytes], tmp_path: Path) -> None:
    begin(tmp_path / "parts", stop)
    writer = new_writer(tmp_path / "parts", resume=True)
    assert writer.start <= stop
    # The last shard again, two samples, one to see that they are two, and drops.
    assert stop - writer.start <= 7
    written = list(writer.finished)
    writer.write(stream(writer.start))
    assert files(tmp_path / "parts") == whole
    assert writer.finished[: len(written)] == written


def count_more_samples(journal: Path) -> None:
    identity, line, *lines = journal.read_text().splitlines()
    line = line.replace('"samples": 2', '"samples": 4')
    write(journal, "\n".join([identity, line, *lines, ""]))


def empty_the_index(journal: Path) -> None:
    index = journal.with_name("n-train-00000.tar.idx")
    index.write_bytes(bytes(index.stat().st_size))


def remove_the_shard(journal: Path) -> None:
    journal.with_name("n-train-00000.tar").unlink()


def change_the_shard(journal: Path) -> None:
    tar = journal.with_name("n-train-00000.tar")
    tar.write_bytes(tar.read_bytes().replace(bytes([1]) * 70, bytes([9]) * 70))


@pytest.mark.parametrize(
    "harm", [count_more_samples, empty_the_index, remove_the_shard, change_the_shard]
)
def test_the_journal_is_not_believed(
    harm: Callable[[Path], None], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """A shard that is not what the journal says is written again."""
    parts = tmp_path / "parts"
    begin(parts, 10)
    harm(parts / "n-train.progress")
    writer = new_writer(parts, resume=True)
    assert writer.start == 0
    writer.write(stream(writer.start))
    assert files(parts) == whole


def test_other_options_do_not_go_on(tmp_path: Path) -> None:
    begin(tmp_path, 8)
    with pytest.raises(ValueError, match=r"limits\.samples: 2 -> 3; give the same again"):
        new_writer(tmp_path, samples=3, resume=True)


def command(folder: Path, task: str, **fields: str) -> list[str]:
    """Pack six pictures, two a shard, to FOLDER/out."""
    for number in range(6):
        write(folder / f"{number}.jpg", jpeg())
    rows = [{"image": f"{number}.jpg", **fields} for number in range(6)]
    given = ["--annotations", str(write(folder / "rows.json", rows)), "--images", str(folder)]
    return ["jsonl", "--task", task, *given, "--shard-samples", "2", "--out", str(folder / "out")]


def test_other_pictures_under_the_same_names_do_not_go_on(
    tmp_path: Path, interrupted: Any, refused: Any
) -> None:
    given = command(tmp_path, "caption", caption="a picture")
    assert interrupted(given) == 130
    for picture in tmp_path.glob("*.jpg"):
        write(picture, jpeg(width=31))
    said = refused(main([*given, "--resume"]), "--resume: ")
    assert "rows-train-00000.tar comes out otherwise than before it was interrupted" in said
    assert "bring back those that it was begun with, or leave out --resume" in said


@pytest.mark.slow
def test_a_killed_command_with_many_workers_goes_on_with_one(root: Path, tmp_path: Path) -> None:
    """More pictures than one process opens alone; one of the files is not a picture."""
    rows = [{"image": f"{n}.jpg", "caption": f"picture {n}"} for n in range(700)]
    for row in rows:
        write(tmp_path / "images" / row["image"], jpeg(width=150, height=100))
    write(tmp_path / "images" / "77.jpg", b"GIF")
    annotations = write(tmp_path / "rows.json", rows)
    shared = ["jsonl", "--task", "caption", "--annotations", str(annotations), "--images",
              str(tmp_path / "images"), "--image-size", "32", "--shard-samples", "20"]  # fmt: skip
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    command = [sys.executable, "-m", "data_prep", *shared, "--out", str(parts), "--workers", "2"]
    with subprocess.Popen(command, cwd=root, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (parts / "rows-train-00004.tar").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (parts / "dataset.json").exists()
    assert len(list(parts.glob("*.tar"))) >= 5
    resumed = [*shared, "--out", str(parts), "--resume", "--workers", "1"]
    assert main(resumed) == 0
    assert main([*shared, "--out", str(whole), "--workers", "1"]) == 0
    tars = [name for name in files(whole) if name != "dataset.json"]
    assert len(tars) == 35 * 4
    assert {n: d for n, d in files(parts).items() if n in tars} == {
        n: d for n, d in files(whole).items() if n in tars
    }
    assert files(parts).keys() == files(whole).keys()

"""An interrupted preparation resumes, and gives the shards of an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from data_prep.packing.source import Dropped, Journal
from data_prep.packing.writer import DatasetWriter, SampleRecord, ShardLimits
from tests.toys.files import write
from tests.toys.pictures import jpeg
from vlds.runtime.process import Interrupted

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


@pytest.mark.parametrize("stop", range(NUM_RECORDS))
def test_stopped_anywhere(stop: int, tmp_path: Path) -> None:
    def stopped() -> Iterator[SampleRecord | Dropped]:
        yield from stream(stop=stop)
        raise KeyboardInterrupt

    new_writer(tmp_path / "whole").write(stream())
    with pytest.raises(KeyboardInterrupt):
        new_writer(tmp_path / "parts").write(stopped())
    writer = new_writer(tmp_path / "parts", resume=True)
    assert writer.start <= stop
    # The last shard again, two samples, one to see that they are two, and drops.
    assert stop - writer.start <= 7
    written = list(writer.finished)
    writer.write(stream(writer.start))
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert writer.finished[: len(written)] == written


def test_without_being_asked_everything_is_written_anew(tmp_path: Path) -> None:
    new_writer(tmp_path).write(stream())
    assert new_writer(tmp_path).start == 0
    assert new_writer(tmp_path, resume=True).start == 0  # it had ended


@pytest.mark.parametrize("lie", ["more samples", "another index"])
def test_a_line_of_the_journal_is_not_believed(lie: str, tmp_path: Path) -> None:
    def stopped() -> Iterator[SampleRecord | Dropped]:
        yield from stream(stop=10)
        raise KeyboardInterrupt

    new_writer(tmp_path / "whole").write(stream())
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        new_writer(parts).write(stopped())
    if lie == "more samples":
        identity, line, *lines = (parts / "n-train.progress").read_text().splitlines()
        line = line.replace('"samples": 2', '"samples": 4')
        write(parts / "n-train.progress", "\n".join([identity, line, *lines, ""]))
    else:
        index = parts / "n-train-00000.tar.idx"
        index.write_bytes(bytes(len(index.read_bytes())))
    writer = new_writer(parts, resume=True)
    writer.write(stream(writer.start))
    assert files(parts) == files(tmp_path / "whole")


def test_other_options_do_not_go_on(tmp_path: Path) -> None:
    def stopped() -> Iterator[SampleRecord | Dropped]:
        yield from stream(stop=8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_writer(tmp_path).write(stopped())
    with pytest.raises(ValueError, match=r"limits\.samples: 2 -> 3; give the same again"):
        new_writer(tmp_path, samples=3, resume=True)


def test_another_command_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same files, but another field of them: the samples would be others."""
    rows = [{"image": f"{n}.jpg", "q": "why?", "p": "how?", "answer": "so"} for n in range(6)]
    for row in rows:
        write(tmp_path / row["image"], jpeg())
    file = write(tmp_path / "rows.json", rows)
    given = ["jsonl", "--task", "vqa", "--annotations", str(file), "--images", str(tmp_path)]
    given += ["--shard-samples", "2", "--out", str(tmp_path / "out")]

    def interrupt(self: Journal, entry: object) -> None:
        add(self, entry)  # type: ignore[arg-type]
        raise Interrupted(signal.SIGINT)

    add = Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupt)
        assert main([*given, "--question-field", "q"]) == 130
    assert main([*given, "--question-field", "p", "--resume"]) == 2
    assert "belongs to a preparation with other files or options" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    elsewhere = [*given[:-1], "out", "--question-field", "q", "--resume"]  # the same folder
    assert main(elsewhere) == 0


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_shard_that_is_not_what_was_written_is_written_again(
    is_gone: bool, tmp_path: Path
) -> None:
    def stopped() -> Iterator[SampleRecord | Dropped]:
        yield from stream(stop=9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new_writer(tmp_path / "parts").write(stopped())
    tar = tmp_path / "parts" / "n-train-00000.tar"
    if is_gone:
        tar.unlink()
    else:  # as many bytes
        tar.write_bytes(tar.read_bytes().replace(bytes([1]) * 70, bytes([9]) * 70))
    writer = new_writer(tmp_path / "parts", resume=True)
    assert writer.start == 0
    writer.write(stream(writer.start))
    new_writer(tmp_path / "whole").write(stream())
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_other_pictures_under_the_same_names_do_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    rows = [{"image": f"{n}.jpg", "caption": f"picture {n}"} for n in range(6)]
    for row in rows:
        write(tmp_path / row["image"], jpeg())
    file = write(tmp_path / "rows.json", rows)
    given = ["jsonl", "--task", "caption", "--annotations", str(file), "--images", str(tmp_path),
             "--shard-samples", "2", "--out", str(tmp_path / "out")]  # fmt: skip

    def interrupt(self: Journal, entry: object) -> None:
        add(self, entry)  # type: ignore[arg-type]
        raise Interrupted(signal.SIGINT)

    add = Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupt)
        assert main(given) == 130
    for row in rows:
        write(tmp_path / row["image"], jpeg(width=31))
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

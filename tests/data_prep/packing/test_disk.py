"""Disks that are full or cannot be written: a small file system, mounted for the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.pictures import jpeg
from tests.toys.small_disk import remount, small_disk
from vlds.data.shards.store import open_dataset


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as place:
        yield place


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command's words for forty pictures of some 60 kB, four a shard."""
    place = tmp_path_factory.mktemp("rows")
    given = [{"image": f"{n}.jpg", "caption": f"number {n}"} for n in range(40)]
    for number, row in enumerate(given):
        write(place / "images" / row["image"], jpeg(width=900, height=700 + number))
    file = write(place / "rows.json", given)
    return ["jsonl", "--task", "caption", "--annotations", str(file), "--images",
            str(place / "images"), "--shard-samples", "4"]  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_loses_nothing(
    disk: Path, rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*rows, "--out", str(disk / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: cannot write {disk / 'out'}/rows-train-0000")
    assert told.endswith(
        ": No space left on device; make room there, or name another place; finished shards are "
        "kept: --resume continues from them\n"
    )
    there = {path.name for path in (disk / "out").iterdir()}
    assert "dataset.json" not in there
    assert not [name for name in there if name.startswith(".")]
    first = disk / "out" / "rows-train-00000.tar"
    written = first.stat().st_mtime_ns
    remount(disk, "size=20m")
    assert main([*rows, "--out", str(disk / "out"), "--resume"]) == 0
    assert first.stat().st_mtime_ns == written
    assert main([*rows, "--out", str(tmp_path / "whole")]) == 0
    for path in (tmp_path / "whole").glob("*.tar*"):
        assert (disk / "out" / path.name).read_bytes() == path.read_bytes()
    assert open_dataset(disk / "out").num_samples == 40

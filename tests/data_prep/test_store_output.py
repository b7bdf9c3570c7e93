"""Shards written to S3: the bytes of a folder, whatever the store and the command's end were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vlds.data.shards.download
from data_prep.cli import main
from tests.toys.pictures import noise
from tests.toys.store import BUCKET, Line, s3_server, use_store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def line(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The way to an empty bucket; `files` is its file system."""
    line = Line(server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    monkeypatch.setattr(vlds.data.shards.download, "PAUSES", (0.02, 0.02, 0.02))
    files = use_store(monkeypatch, line.port)
    if files.exists(BUCKET):
        files.rm(BUCKET, recursive=True)
    files.mkdir(BUCKET)
    yield line
    line.shutdown()
    line.server_close()


def stored(port: int) -> dict[str, bytes]:
    """Name -> content of everything in the bucket."""
    files = use_store(pytest.MonkeyPatch(), port)
    files.invalidate_cache()
    return {path.partition("/")[2]: files.cat_file(path) for path in files.find(BUCKET)}


def words(images: Path, out: str, *more: str) -> list[str]:
    place = ["imagefolder", "--images", str(images), "--out", out]
    return [*place, "--shard-samples", "3", "--workers", "1", *more]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 pictures of three classes."""
    for number in range(24):
        folder = tmp_path / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(noise(number))
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_place(files: dict[str, bytes]) -> dict[str, Any]:
    """The files, dataset.json without the record of where it was written."""
    info = json.loads(files["dataset.json"])
    del info["tool"]["arguments"]["out"]
    return files | {"dataset.json": info}


def test_a_store_gets_the_bytes_of_a_folder(line: Line, images: Path, tmp_path: Path) -> None:
    assert main(words(images, str(tmp_path / "out"))) == 0
    expected = without_place(contents(tmp_path / "out"))
    for _ in range(2):  # the second one replaces the first
        assert main(words(images, f"s3://{BUCKET}/pets")) == 0
        found = {name.removeprefix("pets/"): data for name, data in stored(line.port).items()}
        assert without_place(found) == expected
    left = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert left == []
    # Fewer pictures: the shards that the new version does not have go.
    for number in range(12, 24):
        (images / f"class{number % 3}" / f"{number}.png").unlink()
    assert main(words(images, f"s3://{BUCKET}/pets")) == 0
    assert len([name for name in stored(line.port) if name.endswith(".tar")]) == 4


def test_pictures_that_rows_hold_go_to_a_store(line: Line, tmp_path: Path) -> None:
    """They lie in a folder of this machine first, which is gone afterwards."""
    picture = b64encode(noise(0)).decode()
    table = f"index\timage\tquestion\tA\tB\tanswer\n0\t{picture}\twhy?\tso\tno\tA\n"
    (tmp_path / "marks.tsv").write_text(table)
    place = ["vlmevalkit", "--tsv", str(tmp_path / "marks.tsv"), "--workers", "1"]
    assert main([*place, "--out", str(tmp_path / "out")]) == 0
    assert main([*place, "--out", f"s3://{BUCKET}/marks"]) == 0
    found = {name.removeprefix("marks/"): data for name, data in stored(line.port).items()}
    assert without_place(found) == without_place(contents(tmp_path / "out"))
    assert [path for path in (tmp_path / "here").rglob("*") if path.is_file()] == []


def test_other_files_and_data_sets_are_safe(
    line: Line, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = use_store(pytest.MonkeyPatch(), line.port)
    files.pipe_file(f"{BUCKET}/thesis/chapter.txt", b"much work")
    assert main(words(images, f"s3://{BUCKET}/thesis")) == 2
    assert "s3://shards/thesis holds other files (chapter.txt)" in capsys.readouterr().err
    assert main(words(images, f"s3://{BUCKET}/pets", "--split", "test")) == 0
    assert main(words(images, f"s3://{BUCKET}/pets", "--split", "val")) == 2
    assert "s3://shards/pets holds another data set" in capsys.readouterr().err
    assert main(words(images, "s3://nowhere/pets")) == 2
    assert "s3://nowhere/pets: there is no such bucket; make it" in capsys.readouterr().err
    assert main(words(images, "https://example.org/pets")) == 2
    assert "a web server's folder cannot be listed or written" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_another_machine_resumes_what_was_killed(
    line: Line, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    assert main(words(images, str(tmp_path / "out"))) == 0
    command = words(images, f"s3://{BUCKET}/pets")
    code = "import sys; from data_prep.cli import main; sys.exit(main(sys.argv[1:]))"
    killed = subprocess.Popen(
        [sys.executable, "-c", code, *command], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    # Another number of files, journals included, has been stored at each kill.
    while line.puts <= 6 * seed and killed.poll() is None:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    begun = stored(line.port)
    assert "pets/dataset.json" not in begun
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert main([*command, "--resume"]) == 0
    found = {name.removeprefix("pets/"): data for name, data in stored(line.port).items()}
    assert without_place(found) == without_place(contents(tmp_path / "out"))

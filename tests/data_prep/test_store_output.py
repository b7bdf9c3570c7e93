"""Shards written to S3: the bytes of a folder, whatever the store and the command's end were."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
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
    monkeypatch.setattr(vlds.data.shards.download, "PAUSE_S", 0.02)
    monkeypatch.setattr(vlds.data.shards.download, "AWAY_S", 2.0)
    vlds.data.shards.download._troubles.clear()
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
    for word in ("out", "executor"):
        info["tool"]["arguments"].pop(word, None)
    return files | {"dataset.json": info}


def in_store(line: Line, name: str = "pets") -> dict[str, Any]:
    """The files below that name in the bucket, without the record of their place."""
    found = stored(line.port).items()
    return without_place({key.removeprefix(f"{name}/"): data for key, data in found})


def kept_here(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "here").rglob("*") if path.is_file()]


PROGRAM = "import sys; from data_prep.cli import main; sys.exit(main(sys.argv[1:]))"


def started(command: list[str], **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *command], cwd=ROOT, **more)


def wait_for_puts(line: Line, most: int, process: subprocess.Popen[bytes]) -> None:
    while line.puts <= most and process.poll() is None:
        time.sleep(0.001)


def test_a_store_gets_the_bytes_of_a_folder(line: Line, images: Path, tmp_path: Path) -> None:
    assert main(words(images, str(tmp_path / "out"))) == 0
    expected = without_place(contents(tmp_path / "out"))
    for _ in range(2):  # the second one replaces the first
        assert main(words(images, f"s3://{BUCKET}/pets")) == 0
        assert in_store(line) == expected
    assert kept_here(tmp_path) == []
    # Fewer pictures: the shards that the new version does not have go.
    for number in range(12, 24):
        (images / f"class{number % 3}" / f"{number}.png").unlink()
    assert main(words(images, f"s3://{BUCKET}/pets")) == 0
    assert len([name for name in stored(line.port) if name.endswith(".tar")]) == 4


COMMANDS = ("stats", "verify", "preview")


def test_other_files_and_data_sets_are_safe(line: Line, images: Path, refused: Any) -> None:
    files = use_store(pytest.MonkeyPatch(), line.port)
    files.pipe_file(f"{BUCKET}/thesis/chapter.txt", b"much work")
    code = main(words(images, f"s3://{BUCKET}/thesis"))
    refused(code, "s3://shards/thesis holds other files (chapter.txt)")
    assert main(words(images, f"s3://{BUCKET}/pets", "--split", "test")) == 0
    code = main(words(images, f"s3://{BUCKET}/pets", "--split", "val"))
    refused(code, "s3://shards/pets holds another data set")
    for command in (
        words(images, "s3://nowhere/pets"),
        *([c, "s3://nowhere/pets"] for c in COMMANDS),
    ):
        said = refused(main(command), "s3://nowhere/pets: there is no such bucket; make it")
        assert "finished shards are kept" not in said
    code = main(words(images, "https://example.org/pets"))
    refused(code, "a web server's folder cannot be listed or written")


PUTS = 8 * 6 + 2
"""Files that a data set of eight shards stores: each with its index and a new journal, and a
few more."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(18))
def test_another_machine_resumes_what_was_killed(
    line: Line, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    assert main(words(images, str(tmp_path / "out"))) == 0
    command = words(images, f"s3://{BUCKET}/pets")
    killed = started(command, stderr=subprocess.DEVNULL)
    # Another number of files, journals included, has been stored at each kill, and the next one
    # may be half stored.
    draw = random.Random(seed)
    most, wait = PUTS * seed // 18, draw.choice([0, draw.uniform(0, 0.02)])
    wait_for_puts(line, most, killed)
    time.sleep(wait)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    begun = stored(line.port)
    assert "pets/dataset.json" not in begun
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert main([*command, "--resume"]) == 0
    assert in_store(line) == without_place(contents(tmp_path / "out"))


def plain(text: str, place: str) -> str:
    """What a command has said, without the place of the data, which also decides where lines
    break."""
    return "".join(text.split()).replace(place, "PLACE")


def test_commands_that_inspect_say_of_a_store_what_they_say_of_a_folder(
    line: Line, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And keep nothing of it on this machine."""
    here, there = tmp_path / "out", f"s3://{BUCKET}/pets"
    for place in (str(here), there):
        assert main(words(images, place)) == 0
    files = use_store(pytest.MonkeyPatch(), line.port)

    def both(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        said = []
        for place in (str(here), there):
            before = dict(line.whole)
            assert main([word.replace("PLACE", place) for word in command]) == code
            said.append(plain(capsys.readouterr().out, place))
            # A command reads each shard once.
            again = {k: n - before.get(k, 0) for k, n in line.whole.items() if k.endswith(".tar")}
            assert max(again.values(), default=0) <= 1
            assert not list((tmp_path / "here").rglob("*.tar"))
        assert said[0] == said[1]
        return said[0]

    assert "classes" in both("stats", "PLACE")
    assert both("verify", "PLACE", "--workers", "1").endswith("alliswell")
    assert "class1" in both("preview", "PLACE")
    shard = next(path.name for path in here.glob("*-00003.tar"))
    assert both("preview", f"PLACE/{shard}:1") != both("preview", f"PLACE/{shard}:2")
    assert "idclass0/3.png" in both("preview", "PLACE", "--ids", "class0/3.png")

    # A bad picture: it is listed beside the shards, so that a run leaves it out.
    tar = here / shard
    data = bytearray(tar.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    tar.write_bytes(data)
    files.pipe_file(f"{BUCKET}/pets/{shard}", bytes(data))
    assert "1badsample" in both("verify", "PLACE", "--workers", "1", code=1)
    listing = stored(line.port)["pets/quarantine.jsonl"]
    assert listing == (here / "quarantine.jsonl").read_bytes()
    # Its index is made again, and the listing goes.
    both("index", "PLACE", "--name", "images", "--kind", "image_class", "--split", "train")
    (here / shard).rename(here / "lost")
    files.mv(f"{BUCKET}/pets/{shard}", f"{BUCKET}/pets/lost")
    assert "shardmissing" in both("verify", "PLACE", "--workers", "1", code=1)
    assert in_store(line) == without_place(contents(here))

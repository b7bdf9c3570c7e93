"""Packing on a real Dask cluster: the bytes of one machine, whatever dies in the meantime."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed", reason="Dask is missing: pip install 'vlds[dask]'")

from data_prep.cli import main
from data_prep.packing.pack import Options, pack
from data_prep.packing.source import RawPicture, SourceSample, SourceSet
from data_prep.packing.writer import ShardLimits
from tests.toys.class_folders import folders
from tests.toys.dask_processes import DaskProcesses, DeadlyPicture
from tests.toys.files import write
from tests.toys.official import write_vqav2
from tests.toys.own_rows import photos
from vlds.runtime.cluster import LostWorker, open_cluster

pytestmark = pytest.mark.slow
NUM, SIDE = 320, 32
SIZE = 3 * SIDE * SIDE
LIMITS = ShardLimits(samples=20)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """A scheduler and two workers."""
    cluster = DaskProcesses(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.stop()


@pytest.fixture
def own_dask(tmp_path: Path) -> Iterator[Callable[..., DaskProcesses]]:
    """Start a cluster of a test's own, which ends with the test."""
    with ExitStack() as stack:

        def start(*words: Any, **more: Any) -> DaskProcesses:
            cluster = DaskProcesses(tmp_path, *words, forks=False, **more)
            stack.callback(cluster.stop)
            return cluster

        yield start


def dataset(folder: Path, deadly: Mapping[int, Path | None]) -> SourceSet:
    """Pictures of noise, one of them damaged; those at the numbers in `deadly` kill who reads them,
    or the process that the file names."""
    file = folder / "pixels.bin"
    if not file.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (NUM, SIZE), dtype=np.uint8)
        file.write_bytes(pixels.tobytes())
        write(folder / "bad.jpg", b"no picture")
    samples = [SourceSample("bad", (folder / "bad.jpg",), [{"id": "bad", "question": "why?"}])]
    for number in range(NUM):
        picture = RawPicture(file, number * SIZE, SIDE, SIDE)
        if number in deadly:
            marker = folder / f"died-at-{number}-{len(list(folder.glob('died-at-*')))}"
            picture = DeadlyPicture(**vars(picture), marker=marker, victim=deadly[number])
        annotations = [{"id": f"q{number}", "question": "why?"}]
        samples.append(SourceSample(str(number), (), annotations, raw=(picture,)))
    return SourceSet("noise", "vqa", "train", (file,), samples)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def packed_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set as one process writes it, in OUT; its source beside it."""
    folder = tmp_path_factory.mktemp("here")
    pack(dataset(folder, {}), folder / "out", Options(limits=LIMITS))
    return folder


def pack_on(dask: DaskProcesses, source: SourceSet, out: Path, resume: bool = False) -> None:
    with open_cluster(dask.executor) as cluster:
        pack(source, out, Options(limits=LIMITS, cluster=cluster, resume=resume))


@pytest.mark.parametrize("kill", range(10))
def test_workers_that_die_in_a_shard(
    kill: int,
    dask: DaskProcesses,
    packed_here: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One, or two at once, each in the middle of a chunk."""
    draw = random.Random(kill)
    deadly = dict.fromkeys(draw.sample(range(NUM), 1 + kill % 2))
    for old in packed_here.glob("died-at-*"):
        old.unlink()
    pack_on(dask, dataset(packed_here, deadly), tmp_path / "out")
    assert len(list(packed_here.glob("died-at-*"))) == len(deadly)
    assert files(tmp_path / "out") == files(packed_here / "out")
    said = capsys.readouterr().err
    assert said.count(" is gone; ") == len(deadly), said
    assert "Traceback" not in said


@pytest.mark.parametrize("kill", range(3))
def test_a_scheduler_that_is_restarted(
    kill: int,
    own_dask: Callable[..., DaskProcesses],
    packed_here: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dask = own_dask()
    deadly = {random.Random(100 + kill).randrange(NUM): tmp_path / "scheduler.pid"}
    for old in packed_here.glob("died-at-*"):
        old.unlink()
    restart = dask.restart_when_dead()
    pack_on(dask, dataset(packed_here, deadly), tmp_path / "out")
    restart.join()
    assert files(tmp_path / "out") == files(packed_here / "out")
    said = capsys.readouterr().err
    assert said.count("the scheduler is gone; waiting up to 60 s for it") == 1
    assert said.count("the scheduler is back, with ") == 1
    assert "Traceback" not in said


def test_a_picture_that_kills_every_worker_is_not_tried_for_ever(
    dask: DaskProcesses, packed_here: Path, tmp_path: Path
) -> None:
    """What was written stays, and the same command goes on."""
    source = dataset(packed_here, {})
    (raw,) = source.samples[200].raw
    source.samples[200] = replace(source.samples[200], raw=(DeadlyPicture(**vars(raw)),))
    with pytest.raises(LostWorker, match="4 workers ended in the same task"):
        pack_on(dask, source, tmp_path / "out")
    pack_on(dask, dataset(packed_here, {}), tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == files(packed_here / "out")


def chat(folder: Path) -> None:
    photos(folder / "photos", "a.jpg", "b.jpg")
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "Bo"}]
    rows = [{"messages": turns, "images": [name]} for name in ("a.jpg", "b.jpg")]
    write(folder / "rows.json", rows)


COMMANDS: Mapping[str, tuple[Callable[[Path], object], list[str]]] = {
    "vqav2": (write_vqav2, ["--src", ".", "--split", "val"]),
    "chat": (chat, ["--annotations", "rows.json", "--images", "photos"]),
    "imagefolder": (
        lambda folder: folders(folder / "classes", {"ant": 4, "cat": 4}),
        ["--images", "classes", "--split-sizes", "test=0.5"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_form_gives_the_same_bytes(
    command: str, dask: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Checked and counted, too; with relative paths: workers look from the command's folder."""
    make, words = COMMANDS[command]
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    codes, found = [], []
    for name, more in (("here", ["--workers", "1"]), ("there", ["--executor", dask.executor])):
        codes.append(main([command, *words, "--out", "out", *more]))
        capsys.readouterr()
        codes[-1] += main(["verify", "out", *more]) + main(["stats", "out", *more])
        found.append(capsys.readouterr().out)
        (tmp_path / "out").rename(tmp_path / name)
    assert codes[0] == codes[1]
    assert found[0] == found[1]
    assert files(tmp_path / "here") == files(tmp_path / "there")
    assert any(name.endswith(".tar") for name in files(tmp_path / "there"))


@pytest.mark.parametrize("how", ["nobody", "no workers"])
def test_nobody_answers(
    how: str, own_dask: Callable[..., DaskProcesses], packed_here: Path, refused: Any
) -> None:
    dask = own_dask(0)
    if how == "nobody":
        dask.stop()
    begun = time.monotonic()
    code = main(["stats", str(packed_here / "out"), "--executor", dask.executor])
    assert time.monotonic() - begun < 60
    expected = {
        "nobody": "no Dask scheduler answers there (",
        "no workers": f"had no worker for 30 s; start some with `dask worker {dask.address}",
    }
    refused(code, expected[how])

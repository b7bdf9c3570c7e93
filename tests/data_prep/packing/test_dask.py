"""Packing on a real Dask cluster: the bytes of one machine, whatever dies in the meantime."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("distributed", reason="Dask is missing: pip install 'vlds[dask]'")

from data_prep.cli import main
from data_prep.packing.pack import Options, pack
from data_prep.packing.source import RawPicture, SourceSample, SourceSet
from data_prep.packing.writer import ShardLimits
from tests.toys.class_folders import folders
from tests.toys.dask_processes import DaskProcesses, DeadlyPicture
from tests.toys.files import write
from tests.toys.official import write_nlvr2, write_vqav2
from tests.toys.official_sets import write_refcoco
from tests.toys.own_rows import photos, questions
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


@pytest.mark.parametrize("kill", range(4))
def test_checking_and_counting_while_workers_die(
    kill: int,
    dask: DaskProcesses,
    packed_here: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A worker at a moment that the seed draws: the findings and numbers are those of one
    process."""
    out = tmp_path / "out"
    shutil.copytree(packed_here / "out", out)
    tar = out / "noise-train-00003.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    words = [["verify"], ["stats"]][kill % 2] + [str(packed_here / "out" if kill % 2 else out)]

    def printed(*more: str) -> tuple[int, str, dict[str, bytes]]:
        with redirect_stdout(StringIO()) as text:
            code = main([*words, *more])
        return code, text.getvalue(), files(out)

    expected = printed("--workers", "1")
    assert expected[0] == (0 if kill % 2 else 1)
    assert printed("--executor", dask.executor) == expected  # workers import what they need
    begun = time.monotonic()
    assert printed("--executor", dask.executor) == expected
    took = time.monotonic() - begun
    killed = []

    def kill_one() -> None:
        time.sleep(random.Random(kill).random() * took)
        with suppress(IndexError):
            worker = random.Random(kill).choice(dask.workers())
            killed.append(worker)
            worker.kill()

    thread = threading.Thread(target=kill_one)
    thread.start()
    assert printed("--executor", dask.executor) == expected
    thread.join()
    assert killed
    assert "Traceback" not in capsys.readouterr().err


def chat(folder: Path) -> None:
    photos(folder / "photos", "a.jpg", "b.jpg")
    turns = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "Bo"}]
    rows = [{"messages": turns, "images": [name]} for name in ("a.jpg", "b.jpg")]
    write(folder / "rows.json", rows)


def rows(folder: Path) -> None:
    photos(folder / "photos", "a.jpg", "b.jpg", "c.jpg")
    write(folder / "rows.csv", questions("a.jpg", "b.jpg", "c.jpg"))


COMMANDS: Mapping[str, tuple[Callable[[Path], object], list[str]]] = {
    "vqav2": (write_vqav2, ["--src", ".", "--split", "val"]),
    "nlvr2": (write_nlvr2, ["--src", ".", "--split", "dev"]),
    "refcoco": (write_refcoco, ["--src", ".", "--split", "testA"]),
    "jsonl": (rows, ["--task", "vqa", "--annotations", "rows.csv", "--images", "photos"]),
    "chat": (chat, ["--annotations", "rows.json", "--images", "photos"]),
    "imagefolder": (
        lambda folder: folders(folder / "classes", {"ant": 4, "cat": 4}),
        ["--images", "classes", "--split-sizes", "test=0.5"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_form_gives_the_same_bytes(
    command: str, dask: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With relative paths: workers look from the command's folder."""
    make, words = COMMANDS[command]
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    codes = []
    for name, more in (("here", ["--workers", "1"]), ("there", ["--executor", dask.executor])):
        codes.append(main([command, *words, "--out", "out", *more]))
        (tmp_path / "out").rename(tmp_path / name)
    assert codes[0] == codes[1]
    assert files(tmp_path / "here") == files(tmp_path / "there")
    assert any(name.endswith(".tar") for name in files(tmp_path / "there"))


def test_a_folder_that_a_worker_does_not_see(
    own_dask: Callable[..., DaskProcesses], packed_here: Path, refused: Any
) -> None:
    """A worker in a file system of its own, where the shards are not."""
    hide = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {packed_here} && exec sleep 0"]
    if subprocess.run(hide, capture_output=True).returncode:
        pytest.skip("this system lets no test mount a file system")
    dask, begun = own_dask(hidden=packed_here), time.monotonic()
    code = main(["verify", str(packed_here / "out"), "--executor", dask.executor])
    assert time.monotonic() - begun < 60
    told = f"does not see {packed_here}/out/dataset.json as this command does"
    assert "a shared file system" in refused(code, told)


def test_a_worker_of_another_version(
    own_dask: Callable[..., DaskProcesses], root: Path, packed_here: Path, tmp_path: Path,
    refused: Any,
) -> None:  # fmt: skip
    other = tmp_path / "other"
    for name in ("vlds", "data_prep"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, other / name, ignore=ignored)
    with (other / "vlds" / "schema.py").open("a") as file:
        file.write("# another version\n")
    dask = own_dask(1, {"PYTHONPATH": str(other)})
    code = main(["stats", str(packed_here / "out"), "--executor", dask.executor])
    refused(code, "has another software than this command (sources of vlds: ")


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


def test_a_file_of_a_scheduler(
    dask: DaskProcesses, packed_here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scheduler.json"
    words = ["stats", str(packed_here / "out"), "--executor", f"dask={file}"]
    for text, said in (
        (None, f"({file}: No such file or directory)"),
        ("{", f"({file} is not a scheduler's file: it tells no address)"),
        ('{"address": null}', f"({file} is not a scheduler's file: it tells no address)"),
    ):
        if text is not None:
            file.write_text(text)
        assert main(words) == 2
        assert said in capsys.readouterr().err
    file.write_text(json.dumps({"type": "Scheduler", "address": dask.address}))
    assert main(words) == 0


@pytest.mark.parametrize("frozen", ["scheduler", "worker"])
def test_who_is_frozen_is_named(
    frozen: str, dask: DaskProcesses, packed_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is there, and Dask itself would wait for it for ever."""
    process = psutil.Process(dask.processes[0].pid) if frozen == "scheduler" else dask.workers()[-1]
    process.suspend()
    try:
        assert main(["stats", str(packed_here / "out"), "--executor", dask.executor]) == 2
    finally:
        process.resume()
    said = capsys.readouterr().err
    assert "has not answered for 1" in said
    assert (
        "no Dask scheduler answers there" if frozen == "scheduler" else "the worker tcp"
    ) in said


def test_a_reader_that_is_busy_when_the_last_worker_ends(
    dask: DaskProcesses, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time in which one comes begins when the last one is missed, not when all were seen."""
    monkeypatch.setattr("vlds.runtime.cluster.RETURN_S", 20.0)
    with open_cluster(dask.executor) as cluster:
        assert cluster is not None
        results = cluster.map(time.sleep, [[0.1]] * 30)
        next(results)
        time.sleep(21)
        nannies = psutil.Process(dask.processes[1].pid)
        nannies.suspend()  # they would start workers again before the next look
        for worker in dask.workers():
            worker.kill()
        threading.Timer(4, nannies.resume).start()
        time.sleep(1)  # until the scheduler knows
        assert list(results) == [None] * 29
    assert "none came" not in capsys.readouterr().err


def test_a_task_that_takes_long_is_told_once(
    dask: DaskProcesses, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlds.runtime.cluster.QUIET_S", 2.0)
    with open_cluster(dask.executor) as cluster:
        assert cluster is not None
        assert list(cluster.map(time.sleep, [[6.0], [0.1]])) == [None, None]
    assert capsys.readouterr().err.count("a task has no result after 2 s; still waiting") == 1


def test_a_scheduler_that_is_frozen_meanwhile(
    dask: DaskProcesses, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler = psutil.Process(dask.processes[0].pid)
    with open_cluster(dask.executor) as cluster:
        assert cluster is not None
        timers = [
            threading.Timer(s, do) for s, do in ((1, scheduler.suspend), (14, scheduler.resume))
        ]
        for timer in timers:
            timer.start()
        assert list(cluster.map(time.sleep, [[0.1]] * 40)) == [None] * 40
        for timer in timers:
            timer.join()
    said = capsys.readouterr().err
    assert said.count("the scheduler is gone; waiting up to 60 s for it") == 1
    assert said.count("the scheduler is back, with ") == 1


@pytest.mark.parametrize("kill", range(3))
def test_a_scheduler_that_ends_while_it_hands_results_over(
    kill: int, own_dask: Callable[..., DaskProcesses], capsys: pytest.CaptureFixture[str]
) -> None:
    dask = own_dask()
    with open_cluster(dask.executor) as cluster:
        assert cluster is not None
        restart = dask.restart_when_dead()
        lengths = []
        for result in cluster.map(bytes, [[20_000_000 + n] for n in range(40)]):
            lengths.append(len(result) - 20_000_000)
            if len(lengths) == 5 + kill:
                threading.Timer(0.02 * kill, dask.processes[0].kill).start()
    restart.join()
    assert lengths == list(range(40))
    assert capsys.readouterr().err.count("the scheduler is back, with ") == 1

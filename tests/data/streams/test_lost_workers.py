"""Loader workers that are killed or hang: found in time, named in one line, and never left."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.packing.writer import write_dataset
from tests.toys.pictures import noise
from tests.toys.processes import gone, until
from tests.toys.streams import eval_streams, records, red_source, train_stream
from vlds.data.errors import ErrorPolicy
from vlds.data.streams.loader import WorkerLost, lost_worker
from vlds.data.streams.source import Source
from vlds.runtime.process import KILLED

TIMEOUT_S = 1.0
Workers = Callable[[], list[psutil.Process]]


@pytest.fixture
def workers() -> Workers:
    """Those of the test's loader, in their order."""
    before = psutil.Process().children()

    def started() -> list[psutil.Process]:
        new = [process for process in psutil.Process().children() if process not in before]
        return sorted(new, key=lambda process: process.pid)

    return started


def suspend(worker: psutil.Process) -> None:
    """Stop a worker that waits for work. One that is stopped while it asks torch whether the loader
    has ended would hold a lock that the loader waits for, without limit."""
    until(lambda: "poll" in Path(f"/proc/{worker.pid}/wchan").read_text("utf-8"), 10)
    worker.suspend()


def training(sources: list[Source]) -> Iterator[Any]:
    """Batches, for ever."""
    return iter(train_stream(sources, num_workers=2, worker_timeout=TIMEOUT_S))


def evaluation(sources: list[Source]) -> Iterator[Any]:
    """Many small batches."""
    (stream,) = eval_streams(sources[0], 1, 2, num_workers=2, worker_timeout=TIMEOUT_S)
    return iter(stream)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("stream", [training, evaluation])
def test_a_worker_that_hangs(
    stream: Callable[[list[Source]], Iterator[Any]], sources: list[Source], workers: Workers
) -> None:
    batches = stream(sources)
    next(batches)
    first, second = workers()
    suspend(second)
    started = time.monotonic()
    with pytest.raises(WorkerLost) as caught:
        list(islice(batches, 10))
    assert time.monotonic() - started < TIMEOUT_S + 10
    message = lost_worker(caught.value)
    assert message is not None
    assert message.startswith(f"its loader worker 2 of 2 (process {second.pid}) has given nothing")
    del batches, caught
    until(lambda: gone(first) and gone(second), 10)


def test_a_worker_that_is_slow_to_end(
    sources: list[Source], workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch stops waiting for it; the stream must not leave it, or Python would wait at exit."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    batches = training(sources)
    next(batches)
    slow, other = workers()
    suspend(slow)
    assert not gone(slow)
    assert not gone(other)
    del batches
    until(lambda: gone(slow) and gone(other), 10)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, f"was {KILLED}; a smaller data.num_workers takes less memory"),
        # It dies of a write to memory that is not there.
        (signal.SIGBUS, "found no room in /dev/shm"),
    ],
)
def test_a_worker_that_ends_by_a_signal(
    sources: list[Source], workers: Workers, number: signal.Signals, said: str
) -> None:
    batches = training(sources)
    next(batches)
    process = workers()[1]
    process.send_signal(number)
    with pytest.raises(RuntimeError) as caught:
        list(islice(batches, 10))
    message = lost_worker(caught.value) or ""
    assert message.startswith(f"its loader worker (process {process.pid}) {said}")
    if number == signal.SIGBUS:
        assert message.endswith("(docker run --shm-size 8g), or set data.num_workers to 0")
    else:
        of_torch = f"DataLoader worker (pid {process.pid}) is killed by signal: Killed. "
        assert lost_worker(RuntimeError(of_torch)) == message
    assert lost_worker(RuntimeError("another")) is None


def hold(sources: list[Source], ready: Any) -> None:
    """A rank that reads one batch and waits."""
    batches = training(sources)
    next(batches)
    ready.put([process.pid for process in psutil.Process().children()])
    time.sleep(60)


def started(target: Callable[..., None], sources: list[Source]) -> tuple[Any, list[int]]:
    """A process of its own, and the ids of its two workers."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Queue()
    process = fork.Process(target=target, args=(sources, ready))
    process.start()
    pids = ready.get(timeout=30)
    assert len(pids) == 2
    return process, pids


def test_workers_end_with_their_rank_also_where_they_hang(sources: list[Source]) -> None:
    rank, pids = started(hold, sources)
    below = [psutil.Process(pid) for pid in pids]
    below[0].suspend()
    assert not any(map(gone, below))
    os.kill(rank.pid, signal.SIGKILL)
    rank.join()
    until(lambda: all(map(gone, below)), 4)  # an idle one looks every five seconds by itself


KEPT: list[Iterator[Any]] = []


def keep(sources: list[Source], ready: Any) -> None:
    """A program that ends with a stream that nobody has ended."""
    KEPT.append(training(sources))
    next(KEPT[0])
    ready.put([process.pid for process in psutil.Process().children()])


def test_a_program_does_not_wait_for_workers_of_a_stream_that_it_keeps(
    sources: list[Source],
) -> None:
    program, pids = started(keep, sources)
    below = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # one that has ended already
            below.append(psutil.Process(pid))
    program.join(10)
    assert program.exitcode == 0
    until(lambda: all(map(gone, below)), 4)


def picture(format: str, number: int) -> bytes:
    """A picture of noise, a third of which is missing; in every second one nothing is."""
    data = noise(number, (32, 32), format)
    return data if number % 2 == 0 else data[: 2 * len(data) // 3]


FORMATS = ["BMP", "GIF", "PNG", "TIFF", "WEBP"]


@pytest.mark.parametrize(
    "format", ["JPEG", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMATS)]
)
def test_bad_samples_keep_no_files_open(format: str, tmp_path: Path, workers: Workers) -> None:
    """In a worker each piece of a batch is shared memory, with a descriptor: how many are open at a
    time depends on the machine, and does not grow."""
    made = records("hurt", 200, lambda number: picture(format, number))
    write_dataset(tmp_path, name="hurt", kind="vqa", split="train", records=made)
    lenient = ErrorPolicy(max_bad_fraction=1.0, max_in_a_row=1000)
    stream = train_stream([red_source(tmp_path)], num_workers=1, errors=lenient)
    gc.disable()  # the worker inherits it
    try:
        batches = iter(stream)
        most = []
        while stream.num_bad < 250:
            next(batches)
            (worker,) = workers()
            most.append(worker.num_fds())
    finally:
        gc.enable()
    half = len(most) // 2
    assert max(most[half:]) <= max(most[:half]) + 20


def test_a_killed_worker_leaves_no_folder(
    sources: list[Source],
    workers: Workers,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has a socket, through which it hands memory to the rank."""
    tmp_path = tmp_path_factory.mktemp("t")  # a socket's path is short
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    batches = training(sources)
    next(batches)
    (folder,) = tmp_path.iterdir()
    assert list(folder.glob("listener-*"))
    for worker in workers():
        worker.kill()
    with pytest.raises(WorkerLost):
        list(islice(batches, 10))
    assert list(tmp_path.iterdir()) == []

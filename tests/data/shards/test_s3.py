"""Data sets and shards in S3: moto's server in a process of its own, behind a line that fails on
demand."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import vlds.data.shards.cache
import vlds.data.shards.download
from data_prep.packing.writer import write_dataset
from tests.toys.processes import until
from tests.toys.small_disk import small_disk
from tests.toys.store import BUCKET, Line, s3_server, use_store
from tests.toys.streams import (
    ToyTask,
    cached_shards,
    epoch_rows,
    records,
    red_source,
    rows_of,
    stream_options,
    train_stream,
    wait_for_copies,
)
from vlds.data.errors import ShardError
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import open_dataset
from vlds.data.streams.sequential import SequentialStream, StreamedSource, open_streamed
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.runtime.terminal import Away

BIG = f"s3://{BUCKET}/big"
TARS = [f"big/big-train-{number:05d}.tar" for number in range(6)]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def line(server: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The way to a bucket that holds "big"."""
    line = Line(server)
    files = use_store(monkeypatch, line.port)
    monkeypatch.setattr(vlds.data.shards.download, "PAUSE_S", 0.02)
    if not files.exists(BUCKET):
        files.mkdir(BUCKET)
    files.put(str(folders["big"]), f"{BUCKET}/", recursive=True)
    vlds.data.shards.download._troubles.clear()
    yield line
    line.shutdown()
    line.server_close()


def stream_of_rank(source: Source, number: int, num_workers: int = 0) -> TrainStream:
    options = {"global_batch_size": 9, "window": 2, "num_workers": num_workers}
    return train_stream([source], world_size=3, global_rank=number, **options)


def rank(number: int, url: str, cache: ShardCache, start: Any, answers: Any) -> None:
    """A rank with two workers that reads an epoch, and a little more."""
    stream = stream_of_rank(red_source(url, cache), number, num_workers=2)
    start.wait()
    answers.put((number, [rows_of(batch) for batch in islice(stream, 22)]))


def test_ranks_and_workers_of_a_machine_fetch_each_shard_once(
    line: Line, folders: dict[str, Path], tmp_path: Path
) -> None:
    line.delay, line.slow = 0.3, 1.0  # all of them want the same shards at once
    start, answers = FORK.Barrier(3), FORK.Queue()
    given = (BIG, ShardCache(tmp_path / "cache"), start, answers)
    ranks = [FORK.Process(target=rank, args=(number, *given)) for number in range(3)]
    for process in ranks:
        process.start()
    parts = dict(answers.get(timeout=100) for _ in ranks)
    for process in ranks:
        process.join()
    for number in range(3):
        stream = stream_of_rank(red_source(folders["big"]), number)
        assert parts[number] == [rows_of(batch) for batch in islice(stream, 22)]
    assert {line.whole[tar] for tar in TARS} == {1}
    index = [f"{tar}.{kind}" for tar in TARS for kind in ("idx", "cnt", "crc")]
    assert {line.whole[name] for name in index} == {1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_flaky_store_changes_nothing(
    line: Line, folders: dict[str, Path], cache: ShardCache, num_workers: int
) -> None:
    line.errors, line.cuts, line.slow, line.delay = 0.05, 0.05, 0.05, 0.2
    expected = epoch_rows(folders["big"], window=2)
    stream = train_stream([red_source(BIG, cache)], window=2, num_workers=num_workers)
    begun = [rows_of(batch) for batch in islice(stream, 9)]
    state = stream.state()
    other = ShardCache(cache.folder.with_name("elsewhere"))
    resumed = train_stream([red_source(BIG, other)], window=2, num_workers=num_workers)
    resumed.load_state(state)
    assert [*begun, *(rows_of(batch) for batch in islice(resumed, 15))] == expected
    assert set(line.faults) == {"error", "cut", "slow"}


def test_a_request_is_tried_by_one_owner(
    line: Line, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3's client and s3fs would each try five times for one try of ours."""
    dataset = open_dataset(BIG, cache)
    monkeypatch.setattr(vlds.data.shards.download, "AWAY_S", 1.0)
    line.errors = 1.0
    with pytest.raises(Away, match=r"away for 1 s; request \d+ broke") as error:
        dataset.read(0)
    assert f"request {line.faults['error']} broke" in str(error.value)


def test_a_replaced_object_is_named(line: Line, cache: ShardCache) -> None:
    files = use_store(pytest.MonkeyPatch(), line.port)
    dataset = open_dataset(BIG, cache)
    whole = files.cat_file(f"{BUCKET}/{TARS[1]}")
    files.pipe_file(f"{BUCKET}/{TARS[1]}", whole[: len(whole) // 2])
    with pytest.raises(ShardError) as error:
        dataset.read(19)  # its last sample
    assert f"has {len(whole) // 2} bytes, dataset.json says {len(whole)}" in str(error.value)
    assert "it is not the file that was prepared (its ETag is now" in str(error.value)
    # The same size, other bytes: only the sums tell.
    files.pipe_file(f"{BUCKET}/{TARS[2]}", bytes(files.info(f"{BUCKET}/{TARS[2]}")["size"]))
    with pytest.raises(ShardError, match=r"came with sha256 .* it is not the file .*its ETag is"):
        dataset.read(20)


def test_a_full_disk_only_costs_speed(
    line: Line, folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shard = (folders["big"] / "big-train-00000.tar").stat().st_size
    # Pages of the small files, and three shards.
    with small_disk(tmp_path / "disk", f"{30 * 4 + shard * 3 // 1024}k") as disk:
        rows = epoch_rows(BIG, ShardCache(disk / "cache"))
        assert rows == epoch_rows(folders["big"])
        assert 0 < len(list((disk / "cache").glob("*.tar"))) < 6
    lines = [text for text in capfd.readouterr().err.splitlines() if "no space" in text]
    assert len(lines) == 1
    assert "data.cache" in lines[0]
    assert "its samples are read without a copy" in lines[0]


def test_what_is_not_there_is_named(
    line: Line, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=rf"s3://{BUCKET}/small/dataset\.json: there is no such f"):
        open_dataset(f"s3://{BUCKET}/small", cache)
    with pytest.raises(ShardError, match=r"s3://nowhere/x\.tar"):
        streamed("s3://nowhere/x.tar")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    vlds.data.shards.download._object_store.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match=r"dataset\.json: there are no credentials; give them as"):
        open_dataset(BIG, ShardCache(cache.folder / "new"))


def test_shards_to_come_are_fetched_ahead(
    line: Line, tmp_path: Path, cache: ShardCache, capfd: pytest.CaptureFixture[str]
) -> None:
    """When a window begins, its shards are there."""
    options = {"kind": "vqa", "split": "train", "shard_samples": 5}
    write_dataset(tmp_path / "long", name="long", records=records("long", 80), **options)
    files = use_store(pytest.MonkeyPatch(), line.port)
    files.put(str(tmp_path / "long"), f"{BUCKET}/", recursive=True)
    source = red_source(f"s3://{BUCKET}/long", cache)
    stream = train_stream([source], window=4)
    # 16 shards of 15 annotations: a window has 60.
    assert stream.assembler().ahead == 30
    batches = iter(stream)
    for _ in range(6):  # 48 examples, so that those up to 78 were expected
        next(batches)
    # Those of two windows, and the first one, from which the source has read a sample.
    wait_for_copies(cache, 9)
    before = sum(line.ranges.values())
    for _ in range(5):  # to 88: the twelfth would expect shards of the third window
        next(batches)
    assert sum(line.ranges.values()) == before
    assert len(cached_shards(cache)) == 9
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_streamed(line: Line, folders: dict[str, Path], num_workers: int) -> None:
    here = streamed(f"{folders['big']}/big-train-0000{{0..5}}.tar", num_workers)
    there = streamed(f"{BIG}/big-train-0000{{0..5}}.tar", num_workers)
    assert [b.ids for b in islice(there, 12)] == [b.ids for b in islice(here, 12)]


def streamed(place: str, num_workers: int = 0) -> SequentialStream:
    sources = [StreamedSource("red", ToyTask(), [open_streamed(place, ("vqa",), None)])]  # type: ignore[arg-type]
    options = {"reader": "sequential", "num_workers": num_workers, "shuffle_buffer": 20}
    cut = BatchCut(micro_batch_size=8)
    given = {"seed": 5, "cut": cut, "global_batch_size": 8}
    return SequentialStream(sources, *stream_options(options | given))


def test_threads_that_copy_end_with_their_data_set(line: Line, cache: ShardCache) -> None:
    """Though the store breaks each request, which they would try again for long."""
    dataset = open_dataset(BIG, cache)
    line.slow, line.delay = 1.0, 0.3
    dataset.expect(range(dataset.num_samples))
    names = {thread.name for thread in threading.enumerate()}
    assert any(name.endswith("(_work)") for name in names)
    del dataset
    gc.collect()  # an error that fsspec keeps names it: that there is no quarantine.jsonl
    until(lambda: not any(t.name.endswith("(_work)") for t in threading.enumerate()), 20)
    assert 0 < sum(line.whole[tar] for tar in TARS) < len(TARS)

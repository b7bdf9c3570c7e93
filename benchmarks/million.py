"""How order, index and states grow with the data: up to a million shards, a billion samples.

    python benchmarks/million.py --out runs/million
    python benchmarks/million.py --out runs/million --shards 1000 10000

One shard of a thousand small samples is written, and a dataset.json that names it as often as
asked. So each of its shards has an index of three files and samples that are really opened, read
and compared with their checksums, and a billion samples take no disk. A process is rank 0 of 1,024,
with a global batch of 4,096 and four loader workers, as in training; it seeks from the beginning to
the middle of the third epoch. Processor time includes the workers'. The table goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from data import TASK, WORDS, write_small

from vlds.data.config import DataConfig
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.info import DATASET_FILE, DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import ShardIndex, load_index
from vlds.data.shards.store import Dataset, LocalFiles
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.models.collate import JointCollator

SHARD, RANKS, BATCH, WORKERS = 1000, 1024, 4096, 4
SHARDS, LANES = (1_000, 10_000, 100_000, 1_000_000), (1, 64)
MB = 1e6


class OneShard(LocalFiles):
    """A data set whose shards have different names and are all the same file."""

    def __init__(self, folder: Path, only: Path) -> None:
        super().__init__(folder)
        self._only = LocalFiles(only)
        self._shard = DatasetInfo.load(only).shards[0]

    def index(self, info: DatasetInfo, number: int) -> ShardIndex:
        return load_index(self._only.folder, self._shard)

    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        return self._only.read(self._shard, offset, size)


@dataclass
class Measured:
    """What one process has measured."""

    shards: int
    lanes: int
    file: float
    """MB of dataset.json."""
    opened: float
    """Processor seconds until the data set is open; then the order."""
    ordered: float
    rank: float
    """MB that the rank has taken for the data, besides what every process has."""
    peak: float
    worker: float
    """MB of its own that each worker has at its first batch; then after 64 batches."""
    worker_later: float
    first: float
    """Seconds and processor seconds to the first batch of the workers."""
    first_processor: float
    seek: float
    """Processor seconds to a batch in the middle of the third epoch, in one process."""
    batch: float
    """Processor milliseconds of a batch that follows it."""
    state: int
    """Bytes."""
    saved: float
    """Processor milliseconds to make a state."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES)
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    only = args.out / "only"
    if args.one:
        print(json.dumps(vars(measure(args.out, only, *args.one))))
        return
    if not (only / DATASET_FILE).exists():
        write_small(only, SHARD, SHARD)
    print(HEAD)
    for shards in args.shards:
        for lanes in args.lanes:
            words = ["--out", args.out, "--one", shards, lanes]
            command = [sys.executable, __file__, *map(str, words)]
            line = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
            print(row(Measured(**json.loads(line[-1]))), flush=True)
        (args.out / str(shards) / DATASET_FILE).unlink()


def measure(out: Path, only: Path, shards: int, lanes: int) -> Measured:
    """Open a data set and read of it, in this process and its workers."""
    folder = out / str(shards)
    if not (folder / DATASET_FILE).exists():
        # In a process of its own: its memory is not the reader's.
        writer = multiprocessing.get_context("fork").Process(
            target=describe, args=(folder, only, shards)
        )
        writer.start()
        writer.join()
    process = psutil.Process()
    before = process.memory_full_info().uss
    began = processor()
    dataset = Dataset(OneShard(folder, only))
    opened = processor() - began
    began = processor()
    stream = stream_of(dataset, lanes, WORKERS)
    ordered = processor() - began
    clock, began = time.perf_counter(), processor()
    batches = stream.steps()
    next(batches)
    first = time.perf_counter() - clock
    loaders = process.children()
    worker = statistics.mean(child.memory_full_info().uss for child in loaders)
    for _ in range(64):
        next(batches)
    worker_later = statistics.mean(child.memory_full_info().uss for child in loaders)
    batches.close()  # waits for the workers, so that their time counts
    alone = stream_of(dataset, lanes, 0)
    middle = int(2.5 * shards * SHARD) // BATCH * BATCH
    state = {**alone.state(), "consumed": middle}
    started = processor()
    alone.load_state(state)
    rest = alone.steps()
    next(rest)
    seek = processor() - started
    batch = median(lambda: next(rest))
    saved = median(lambda: json.dumps(alone.state()))
    return Measured(
        shards, lanes, (folder / DATASET_FILE).stat().st_size / MB, opened, ordered,
        (process.memory_full_info().uss - before) / MB,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
        worker / MB, worker_later / MB, first, processor(children=True) - began, seek,
        1e3 * batch, len(json.dumps(alone.state())), 1e3 * saved,
    )  # fmt: skip


def stream_of(dataset: Dataset, lanes: int, workers: int) -> TrainStream:
    """Batches of rank 0."""
    config = DataConfig(global_batch_size=BATCH, lanes=lanes, num_workers=workers)
    collator = JointCollator(WORDS, features=True)
    setup = StreamSetup(collator=collator, image=None, cut=BatchCut(RANKS))
    return TrainStream([Source("vqa", TASK, [dataset])], config, setup)


def describe(folder: Path, only: Path, shards: int) -> None:
    """Write a dataset.json with so many shards."""
    folder.mkdir(parents=True, exist_ok=True)
    info = DatasetInfo.load(only)
    table = [replace(info.shards[0], name=f"many-train-{n:07d}.tar") for n in range(shards)]
    number = shards * SHARD
    replace(info, shards=table, samples=number, annotations=number).save(folder)


def processor(children: bool = False) -> float:
    """Seconds of processor time so far."""
    times = psutil.Process().cpu_times()
    own = times.user + times.system
    return own + (times.children_user + times.children_system if children else 0.0)


def median(work: Callable[[], object]) -> float:
    """Processor seconds of some work, median of nine."""
    seconds = []
    for _ in range(9):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


HEAD = """\
| shards | samples | lanes | `dataset.json`, MB | open, s | order, s | MB of a rank | peak, MB | \
MB of a worker | after 64 batches | first batch, s | processor s | seek, s | ms per batch | \
state, bytes | ms to make it |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def row(m: Measured) -> str:
    """A line of the table."""
    return (
        f"| {m.shards:,} | {m.shards * SHARD:.0e} | {m.lanes} | {m.file:,.1f} | {m.opened:.2f} "
        f"| {m.ordered:.2f} | {m.rank:,.0f} | {m.peak:,.0f} | {m.worker:,.0f} "
        f"| {m.worker_later:,.0f} | {m.first:.1f} | {m.first_processor:.1f} | {m.seek:.2f} "
        f"| {m.batch:.1f} | {m.state:,} | {m.saved:.2f} |"
    )


if __name__ == "__main__":
    main()

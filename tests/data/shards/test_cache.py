"""The cache of shards: its limit, its names, its folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

import vlds.data.shards.remote
from data_prep.packing.writer import write_dataset
from tests.toys.pictures import noise
from tests.toys.streams import cached_shards, epoch_rows, records, red_source, rows_of, train_stream
from tests.toys.web import Web
from vlds.data.errors import ShardError
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import check_cache_limit


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_cache_keeps_within_its_limit(
    web: Web, folders: dict[str, Path], tmp_path: Path, num_workers: int
) -> None:
    sizes = sorted(shard.bytes for shard in open_dataset(folders["big"]).info.shards)
    cache = ShardCache(tmp_path / "cache", limit=sum(sizes[-4:]))
    others = cache.folder / "thesis-backup.tar"
    others.parent.mkdir()
    others.write_bytes(bytes(100))
    os.utime(others, (0, 0))
    remote = red_source(web.url("big"), cache)
    stream = train_stream([remote], window=2, num_workers=num_workers)
    expected = epoch_rows(folders["big"], window=2)
    for number, batch in enumerate(islice(stream, 24)):
        assert rows_of(batch) == expected[number]
        with cache.alone(cache.folder / "room"):  # The workers read ahead and remove meanwhile.
            kept = sum(path.stat().st_size for path in {*cached_shards(cache)} - {others})
        assert kept <= sum(sizes[-4:])
    # The first shard to begin with, then each once; the next epoch has begun.
    tars = {name: n for name, n in web.requests.items() if name.endswith(".tar")}
    assert sum(tars.values()) <= 6 + 1 + 2
    assert others.exists()


def test_what_is_read_in_turns_must_fit(web: Web, folders: dict[str, Path], tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    big, small = red_source(web.url("big"), cache), red_source(web.url("small"), cache)
    sizes = sorted(shard.bytes for shard in big.datasets[0].info.shards)
    evaluated = sum(shard.bytes for shard in small.datasets[0].info.shards)
    need = sum(sizes[-4:]) + evaluated
    check_cache_limit(need, [big], [small], window=2)
    check_cache_limit(need, [big], [small], window=1, num_lanes=2)
    check_cache_limit(sum(sizes), [big], [big], window=64)
    check_cache_limit(1, [red_source(folders["big"])], [red_source(folders["small"])], window=64)
    with pytest.raises(ValueError, match=rf"got {need - 1}, but what .* has {need}: .* 2 lanes"):
        check_cache_limit(need - 1, [big], [small], window=1, num_lanes=2)
    # 4 machines of 2 ranks, with and without accumulation.
    assert BatchCut(8).lanes_read(64, 512, range(2, 4)) == 16
    assert BatchCut(8, 2).lanes_read(64, 512, range(2, 4)) == 16
    assert BatchCut(8).lanes_read(4, 512, range(2, 4)) == 1
    assert BatchCut(7).lanes_read(64, 512, range(2, 3)) == 10, "slots 146 to 218"
    assert BatchCut(8).lanes_read(1, 512, range(8)) == 1


def test_downloads_of_dead_processes_are_swept(web: Web, cache: ShardCache) -> None:
    cache.folder.mkdir()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           check=True, capture_output=True, text=True)  # fmt: skip
    dead, live = (
        cache.folder / f".a.tar@{socket.gethostname()}-{process}-0.partial"
        for process in (int(ended.stdout), os.getppid())
    )
    for partial in (dead, live):
        partial.write_bytes(b"half")
    open_dataset(web.url("small"), cache).read(0)
    assert list(cache.folder.glob(".*.partial")) == [live]


def test_a_limit_below_one_shard_is_named(web: Web, tmp_path: Path) -> None:
    dataset = open_dataset(web.url("big"), ShardCache(tmp_path, limit=1000))
    said = r"data.cache_bytes: got 1000, but http://.* has \d+; give"
    with pytest.raises(ShardError, match=said):
        dataset.read(0)


def test_what_goes_while_it_is_used_is_fetched_again(web: Web, cache: ShardCache) -> None:
    dataset = open_dataset(web.url("big"), cache)
    expected = dataset.read(0)
    (copy,) = cached_shards(cache)
    copy.unlink()
    assert dataset.read(0) == expected
    os.truncate(copy, 1000)
    assert dataset.read(0) == expected
    assert web.requests["big-train-00000.tar"] == 3


def test_equal_names_do_not_mix_nor_do_versions(
    tmp_path: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, seed in (("one", 0), ("two", 100)):
        made = records("same", 4, lambda n, seed=seed: noise(n + seed))  # type: ignore[misc]
        write_dataset(tmp_path / folder, name="same", kind="vqa", split="train", records=made)
    web = Web(tmp_path)
    one, two = open_dataset(web.url("one"), cache), open_dataset(web.url("two"), cache)
    assert one.shard_of(0) == two.shard_of(0)
    assert one.read(0).images[0] == noise(0)
    assert two.read(0).images[0] == noise(100)
    shutil.rmtree(tmp_path / "one")
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    monkeypatch.setattr(vlds.data.shards.remote, "FRESH_S", 0.0)
    assert open_dataset(web.url("one"), cache).read(0).images[0] == noise(100)
    web.shutdown()

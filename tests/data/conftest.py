"""A small data set on disk, a toy task and a toy tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.packing.writer import write_dataset
from tests.toys.streams import ToyTask, records
from tests.toys.web import Web
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data sets "big" (60 samples, 180 annotations, 6 shards) and "small" (7 samples, 2 shards)."""
    top = tmp_path_factory.mktemp("shards")
    for name, samples, per_shard in (("big", 60, 10), ("small", 7, 4)):
        options = {"kind": "vqa", "split": "train", "shard_samples": per_shard}
        write_dataset(top / name, name=name, records=records(name, samples), **options)
    return {name: top / name for name in ("big", "small")}


@pytest.fixture
def web(folders: dict[str, Path]) -> Iterator[Web]:
    """A server of "big" and "small"."""
    server = Web(folders["big"].parent)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    """An empty cache of shards."""
    return ShardCache(tmp_path / "cache")


@pytest.fixture
def sources(folders: dict[str, Path]) -> list[Source]:
    """Two tasks, weights 3 : 1."""
    return [
        Source("red", ToyTask(), [open_dataset(folders["big"])], 3.0),
        Source("blue", ToyTask(), [open_dataset(folders["small"])], 1.0),
    ]

"""Data sets and shards in S3, served on loopback by moto."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.toys.streams import COLLATOR, SPEC, ToyTask, train_stream
from vlds.data.config import DataConfig
from vlds.data.errors import ShardError
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.sequential import SequentialStream, StreamedSource, open_streamed
from vlds.data.streams.source import Source

pytestmark = pytest.mark.slow
BUCKET = "shards"


@pytest.fixture(scope="module", autouse=True)
def s3(folders: dict[str, Path]) -> Iterator[None]:
    """A server whose bucket holds "big"; everybody finds it by the environment, as users do."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        files = s3fs.S3FileSystem()
        files.mkdir(BUCKET)
        files.put(str(folders["big"]), f"{BUCKET}/big", recursive=True)
        yield
    server.stop()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_set_is_read_as_if_it_lay_here(
    folders: dict[str, Path], cache: ShardCache, num_workers: int
) -> None:
    here = Source("red", ToyTask(), [open_dataset(folders["big"])])
    there = Source("red", ToyTask(), [open_dataset(f"s3://{BUCKET}/big", cache)])
    expected = [batch.ids for batch in islice(train_stream([here]), 23)]
    ids = [b.ids for b in islice(train_stream([there], num_workers=num_workers), 23)]
    assert ids == expected
    assert len(list(cache.folder.glob("*.tar"))) == 6


def test_what_is_not_there_is_named(cache: ShardCache) -> None:
    with pytest.raises(ValueError, match=rf"s3://{BUCKET}/small/dataset\.json: there is no such f"):
        open_dataset(f"s3://{BUCKET}/small", cache)
    with pytest.raises(ShardError, match=r"s3://nowhere/x\.tar"):
        streamed("s3://nowhere/x.tar")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_streamed(folders: dict[str, Path], num_workers: int) -> None:
    here = streamed(f"{folders['big']}/big-train-0000{{0..5}}.tar", num_workers)
    there = streamed(f"s3://{BUCKET}/big/big-train-0000{{0..5}}.tar", num_workers)
    assert [b.ids for b in islice(there, 12)] == [b.ids for b in islice(here, 12)]


def streamed(place: str, num_workers: int = 0) -> SequentialStream:
    sources = [StreamedSource("red", ToyTask(), [open_streamed(place, ("vqa",), None)])]  # type: ignore[arg-type]
    config = DataConfig(
        reader="sequential", global_batch_size=8, num_workers=num_workers, shuffle_buffer=20
    )
    setup = StreamSetup(
        collator=COLLATOR,
        image=SPEC,
        seed=5,
        cut=BatchCut(micro_batch_size=8),
    )
    return SequentialStream(sources, config, setup)

"""A small data set on disk, a toy task and a toy tokenizer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.web import Web
from vlds.data.config import DataConfig
from vlds.data.order.batch_cut import BatchCut
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.schema import Example, ImageSpec, Sample

SPEC = ImageSpec(height=8, width=12)


@dataclass(frozen=True)
class ToyTask:
    """Question -> answer; training appends a drawn number to the prompt, to make draws visible."""

    unit: Literal["annotation", "sample"] = "annotation"
    max_prompt_tokens: int = 12
    max_target_tokens: int = 4

    def example(
        self, name: str, sample: Sample, annotation: int | None, rng: np.random.Generator | None
    ) -> Example:
        if annotation is None:
            ids = [a["id"] for a in sample.annotations]
            return Example(sample.id, name, f"{name}: describe", None, reference=ids)
        entry = sample.annotations[annotation]
        drawn = "" if rng is None else f" {rng.integers(10**6)}"
        return Example(
            id=entry["id"],
            task=name,
            prompt=f"{name}: {entry['question']}{drawn}",
            target=entry.get("answer"),
            reference=entry.get("answer") if rng is None else None,
        )


class ToyTokenizer:
    """One token for each word; 0 pads, 1 ends."""

    pad_token_id = 0

    def __call__(
        self, texts: list[str], add_special_tokens: bool, truncation: bool, max_length: int
    ) -> dict[str, list[list[int]]]:
        assert add_special_tokens
        assert truncation
        lines = [[2 + sum(word.encode()) for word in text.split()] for text in texts]
        return {"input_ids": [[*line[: max_length - 1], 1] for line in lines]}


def png(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A small picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def records(
    name: str, num_samples: int, pictures: Callable[[int], bytes] = png
) -> Iterator[SampleRecord]:
    """Samples with 1 to 5 annotations each."""
    for number in range(num_samples):
        annotations = [
            {
                "id": f"{name}-{number}-{q}",
                "question": f"what is {q} of {number}",
                "answer": f"a {q}",
            }
            for q in range(1 + number % 5)
        ]
        yield SampleRecord(
            id=f"{name}-{number}",
            members=[("png", pictures(number))],
            json={"annotations": annotations, "size": [[16, 16]]},
        )


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data sets "big" (60 samples, 180 annotations, 6 shards) and "small" (7 samples, 2 shards)."""
    top = tmp_path_factory.mktemp("shards")
    for name, samples, per_shard in (("big", 60, 10), ("small", 7, 4)):
        write_dataset(
            top / name,
            name=name,
            kind="vqa",
            split="train",
            records=records(name, samples),
            shard_samples=per_shard,
        )
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


def train_stream(
    sources: list[Source],
    *,
    world_size: int = 1,
    micro_batch_size: int | None = None,
    **changes: Any,
) -> TrainStream:
    """A stream of global batches of 8, unless told otherwise."""
    cut = BatchCut(world_size, micro_batch_size)
    return TrainStream(sources, *options({"seed": 5, "global_batch_size": 8, "cut": cut} | changes))


def options(given: dict[str, Any]) -> tuple[DataConfig, StreamSetup]:
    """Options of a stream, each where it belongs."""
    of_config = {field.name for field in fields(DataConfig)}
    config = {name: value for name, value in given.items() if name in of_config}
    setup = {name: value for name, value in given.items() if name not in of_config}
    return (
        DataConfig(**config),
        StreamSetup(**({"tokenizer": ToyTokenizer(), "image": SPEC, "seed": 0} | setup)),
    )


def all_ids(dataset: Dataset) -> list[str]:
    """Ids of all annotations, as they lie in the shards."""
    samples = (dataset.read(n) for n in range(dataset.num_samples))
    return [annotation["id"] for sample in samples for annotation in sample.annotations]

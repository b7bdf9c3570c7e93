"""A toy task and tokenizer, and the streams of batches that tests read with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep.packing.writer import SampleRecord
from tests.toys.pictures import noise
from vlds.data.config import DataConfig
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import EvalOrder, Source, survey
from vlds.data.streams.stream import EvalStream, TrainStream
from vlds.models.collate import JointCollator
from vlds.schema import Batch, Example, ImageSpec, Sample

SPEC = ImageSpec(height=8, width=12)


@dataclass(frozen=True)
class ToyTask:
    """Question -> answer; in training the prompt ends with a random number, to show the draws."""

    unit: Literal["annotation", "sample"] = "annotation"
    max_prompt_tokens: int = 12
    max_target_tokens: int = 4

    def num_others(self, *, evaluation: bool) -> int:
        return 0

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


COLLATOR = JointCollator(ToyTokenizer(), features=False)


def records(
    name: str, num_samples: int, pictures: Callable[[int], bytes] = noise
) -> Iterator[SampleRecord]:
    """Samples with 1 to 5 annotations each."""
    for index in range(num_samples):
        annotations = [
            {
                "id": f"{name}-{index}-{q}",
                "question": f"what is {q} of {index}",
                "answer": f"a {q}",
            }
            for q in range(1 + index % 5)
        ]
        yield SampleRecord(
            id=f"{name}-{index}",
            members=[("png", pictures(index))],
            json={"annotations": annotations, "size": [[16, 16]]},
        )


def train_stream(
    sources: list[Source],
    *,
    world_size: int = 1,
    micro_batch_size: int | None = None,
    **changes: Any,
) -> TrainStream:
    """A stream of global batches of 8 by default."""
    cut = BatchCut(world_size, micro_batch_size)
    return TrainStream(
        sources, *stream_options({"seed": 5, "global_batch_size": 8, "cut": cut} | changes)
    )


def stream_options(given: dict[str, Any]) -> tuple[DataConfig, StreamSetup]:
    """Split options of a stream into its config and its setup."""
    of_config = {field.name for field in fields(DataConfig)}
    config = {name: value for name, value in given.items() if name in of_config}
    setup = {name: value for name, value in given.items() if name not in of_config}
    setup = {"image": SPEC, "seed": 0} | setup
    collator = JointCollator(ToyTokenizer(), features=setup["image"] is None)
    return DataConfig(**config), StreamSetup(**({"collator": collator} | setup))


def all_ids(dataset: Dataset) -> list[str]:
    """Ids of all annotations, in the order of the shards."""
    samples = (dataset.read(n) for n in range(dataset.num_samples))
    return [annotation["id"] for sample in samples for annotation in sample.annotations]


Rows = list[tuple[str, list[int], int]]


def rows_of(batch: Batch) -> Rows:
    """Id, tokens (with the random number) and sum of the pixels of each row."""
    assert batch.images is not None
    sums = batch.images.sum((1, 2, 3))[batch.image_index[:, 0]]
    return list(zip(batch.ids, batch.input_ids.tolist(), sums.tolist(), strict=True))


def unpadded(rows: Rows) -> Rows:
    return [(id, [token for token in tokens if token], pixels) for id, tokens, pixels in rows]


def global_batches(
    sources: list[Source],
    steps: int,
    *,
    world_size: int = 1,
    micro: int | None = None,
    state: dict[str, object] | None = None,
    **options: object,
) -> tuple[list[Rows], dict[str, object]]:
    """The valid rows of each global batch, in order of ranks, and the state after them."""
    streams = [
        train_stream(
            sources, micro_batch_size=micro, world_size=world_size, global_rank=n, **options
        )
        for n in range(world_size)
    ]
    if state is not None:
        for stream in streams:
            stream.load_state(json.loads(json.dumps(state)))
    ranks = [stream.steps() for stream in streams]
    batches = []
    for _ in range(steps):
        shares = [next(rank) for rank in ranks]
        assert len({len(share) for share in shares}) == 1
        assert all(len(batch) <= (micro or len(batch)) for share in shares for batch in share)
        batches.append(
            unpadded([row for share in shares for batch in share for row in real(batch)])
        )
    states = [stream.state() for stream in streams]
    assert all(state == states[0] for state in states)
    return batches, states[0]


def real(batch: Batch) -> Rows:
    return [row for row, valid in zip(rows_of(batch), batch.valid.tolist(), strict=True) if valid]


def eval_order(source: Source, size: int) -> EvalOrder:
    counts = source.counts
    costs = survey(source, range(len(counts)), COLLATOR).costs
    return EvalOrder(counts, costs, size, whole_samples=source.task.unit == "sample")


def eval_streams(
    source: Source, world_size: int, size: int, *, worker_timeout: float = 0.0, **options: object
) -> list[EvalStream]:
    return [
        EvalStream(
            source,
            eval_order(source, size),
            StreamSetup(
                collator=COLLATOR,
                image=SPEC,
                cut=BatchCut(world_size),
                global_rank=n,
                worker_timeout=worker_timeout,
            ),
            **options,  # type: ignore[arg-type]
        )
        for n in range(world_size)
    ]


def wait_for_copies(cache: ShardCache, count: int) -> None:
    """Wait until the copies of so many shards are there, and no download is left."""
    until = time.monotonic() + 30
    while len(cached_shards(cache)) < count or list(cache.folder.glob(".*.partial")):
        assert time.monotonic() < until, f"{len(cached_shards(cache))} of {count} copies"
        time.sleep(0.01)


def cached_shards(cache: ShardCache) -> list[Path]:
    return sorted(cache.folder.glob("*.tar"))


def red_source(folder: str | Path, cache: ShardCache | None = None) -> Source:
    return Source("red", ToyTask(), [open_dataset(folder, cache)])


def epoch_rows(folder: str | Path, cache: ShardCache | None = None, **options: Any) -> list[Any]:
    """Rows of a little more than one epoch of "big"."""
    stream = train_stream([red_source(folder, cache)], **options)
    return [rows_of(batch) for batch in islice(stream, 24)]

"""Evaluation: every example once over the ranks, and the same number of batches on each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.conftest import SPEC, ToyTask, ToyTokenizer, all_ids
from vlds.data import EvalStream, Source, open_dataset
from vlds.schema import Batch


def streams(source: Source, world_size: int, micro: int, **options: object) -> list[EvalStream]:
    return [
        EvalStream(
            source,
            tokenizer=ToyTokenizer(),
            image=SPEC,
            micro_batch_size=micro,
            world_size=world_size,
            global_rank=n,
            **options,  # type: ignore[arg-type]
        )
        for n in range(world_size)
    ]


def valid_ids(batches: list[Batch]) -> list[str]:
    return [id for b in batches for id, ok in zip(b.ids, b.valid.tolist(), strict=True) if ok]


@pytest.mark.parametrize(
    ("world_size", "micro", "num_workers"), [(1, 7, 0), (2, 16, 0), (3, 5, 1), (4, 64, 0)]
)
def test_every_annotation_once(
    folders: dict[str, Path], world_size: int, micro: int, num_workers: int
) -> None:
    datasets = [open_dataset(folders["big"]), open_dataset(folders["small"])]
    source = Source("red", ToyTask(), datasets)
    found = streams(source, world_size, micro, num_workers=num_workers)
    batches = [list(stream) for stream in found]
    assert {len(own) for own in batches} == {len(found[0])}
    assert all(len(batch) == micro for own in batches for batch in own)
    ids = [id for own in batches for id in valid_ids(own)]
    # Two data sets may give their annotations equal ids.
    expected = [f"{dataset.label}/{id}" for dataset in datasets for id in all_ids(dataset)]
    assert sorted(ids) == sorted(expected)
    again = [id for stream in found for id in valid_ids(list(stream))]
    assert again == ids


def test_whole_samples_where_the_task_says_so(folders: dict[str, Path]) -> None:
    source = Source("red", ToyTask(unit="sample"), [open_dataset(folders["small"])])
    (stream,) = streams(source, 1, 4, task_index=3)
    batches = list(stream)
    assert valid_ids(batches) == [f"small-{n}" for n in range(7)]
    assert batches[0].references[1] == ["small-1-0", "small-1-1"]
    assert batches[0].labels is None
    assert batches[0].task_index.tolist() == [3] * 4


def test_evaluation_draws_nothing(folders: dict[str, Path]) -> None:
    source = Source("red", ToyTask(), [open_dataset(folders["small"])])
    (one,), (other,) = streams(source, 1, 32), streams(source, 1, 32)
    assert next(iter(one)).input_ids.tolist() == next(iter(other)).input_ids.tolist()
    assert next(iter(one)).references[2] == "a 1"


def test_limit_keeps_the_first(folders: dict[str, Path]) -> None:
    source = Source("red", ToyTask(), [open_dataset(folders["big"])])
    found = streams(source, 2, 4, limit=10)
    ids = {id for stream in found for id in valid_ids(list(stream))}
    assert ids == set(all_ids(source.datasets[0])[:10])
    assert [len(stream) for stream in found] == [2, 2]

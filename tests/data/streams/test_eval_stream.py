"""Evaluation: every example once, in batches that are the same on any number of ranks; like lengths
together, and one picture's questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toys.streams import ToyTask, all_ids, eval_streams, red_source
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import EvalOrder, Source, survey
from vlds.schema import Batch
from vlds.tasks.base import check_unique


def ids_of(batches: list[Batch]) -> list[str]:
    assert all(batch.valid.all() for batch in batches)
    return [id for batch in batches for id in batch.ids]


@pytest.mark.parametrize(
    ("world_size", "size", "num_workers"), [(1, 7, 0), (2, 16, 0), (3, 5, 1), (4, 64, 0), (1, 2, 0)]
)
def test_every_annotation_once(
    folders: dict[str, Path], world_size: int, size: int, num_workers: int
) -> None:
    datasets = [open_dataset(folders["big"]), open_dataset(folders["small"])]
    source = Source("red", ToyTask(), datasets)
    rank_streams = eval_streams(source, world_size, size, num_workers=num_workers)
    batches = [list(stream) for stream in rank_streams]
    assert [len(of_rank) for of_rank in batches] == [len(stream) for stream in rank_streams]
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert max(len(batch) for of_rank in batches for batch in of_rank) <= size
    ids = [id for of_rank in batches for id in ids_of(of_rank)]
    # Two data sets may give their annotations equal ids.
    expected = [f"{dataset.label}/{id}" for dataset in datasets for id in all_ids(dataset)]
    assert sorted(ids) == sorted(expected)
    assert survey(source, range(67)).ids == expected
    # The batches are those of one rank alone.
    (alone,) = eval_streams(source, 1, size)
    assert {tuple(batch.ids) for of_rank in batches for batch in of_rank} == {
        tuple(batch.ids) for batch in alone
    }


def test_whole_samples_where_the_task_says_so(folders: dict[str, Path]) -> None:
    source = Source("red", ToyTask(unit="sample"), [open_dataset(folders["small"])])
    (stream,) = eval_streams(source, 1, 4, task_index=3)
    batches = list(stream)
    assert ids_of(batches) == [f"small-{n}" for n in range(7)]
    assert batches[0].references[1] == ["small-1-0", "small-1-1"]
    assert batches[0].labels is None
    assert batches[0].task_index.tolist() == [3] * 4


def test_an_id_that_stands_for_two_is_refused(folders: dict[str, Path]) -> None:
    source = red_source(folders["small"])
    asked = survey(source, range(7))
    check_unique(asked.ids)
    asked.extend(survey(source, range(2)))
    said = r"3 ids appear twice in the data .*: small-0-0, small-1-0, "
    with pytest.raises(ValueError, match=said):
        check_unique(asked.ids)


@given(
    samples=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(0, 50)), max_size=40
    ),
    size=st.integers(1, 12),
)
def test_order(samples: list[tuple[int, int, int]], size: int) -> None:
    """Any samples (annotations, pictures, tokens): every position once, costs falling, no batch
    that is larger than it may be, no sample apart that fits into one."""
    counts = [count for count, _, _ in samples]
    costs = [(pictures, tokens) for _, pictures, tokens in samples]
    order = EvalOrder(counts, costs, size)
    assert order.num_examples == sum(counts)
    assert sorted(p for batch in order.batches for p in batch) == list(range(sum(counts)))
    assert all(0 < len(batch) <= size for batch in order.batches)
    flat = np.array([p for batch in order.batches for p in batch], np.int64)
    _, numbers, annotations = order.at(flat)
    assert all(0 <= a < counts[n] for n, a in zip(numbers, annotations, strict=True))
    paid = [costs[n] for n in numbers]
    assert paid == sorted(paid, reverse=True)
    for number, count in enumerate(counts):
        parts = [batch for batch in order.batches if number in order.at(np.array(batch))[1]]
        assert len(parts) <= max(1, -(-count // size))

"""Samples with another one beside them, for tasks that compare two."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.streams import noise
from vlds.data.shards.store import open_dataset
from vlds.data.streams.source import Source, fixed_example
from vlds.schema import SkipSample
from vlds.tasks import Matching

NUM_SAMPLES = 12


def source_of(folder: Path, num_samples: int) -> Source:
    """Captioned samples of a Matching task."""
    records = []
    for number in range(num_samples):
        captions = [{"id": f"c{number}", "caption": f"picture {number}"}]
        about = {"annotations": captions, "size": [[16, 16]]}
        members = [("png", noise(number))]
        records.append(SampleRecord(id=str(number), members=members, json=about))
    write_dataset(folder, name="toy", kind="caption", split="val", records=records)
    return Source("matching", Matching(), [open_dataset(folder)])


def test_every_other_sample_may_stand_beside_one(tmp_path: Path) -> None:
    source = source_of(tmp_path / "data", NUM_SAMPLES)
    sample = source.datasets[0].read(3)
    draws = [(number + 0.5) / NUM_SAMPLES for number in range(NUM_SAMPLES)]
    others = Counter(other.id for other in source.beside(sample, draws).others)
    assert others.keys() == {str(number) for number in range(NUM_SAMPLES)} - {"3"}
    assert others["4"] == 2, "what would be the sample itself is the next one"
    assert len(source.beside(sample, [1 - 1e-12]).others) == 1


def test_evaluation_asks_of_the_same_pairs(tmp_path: Path) -> None:
    source = source_of(tmp_path / "data", NUM_SAMPLES)
    samples = [source.datasets[0].read(number) for number in range(NUM_SAMPLES)]
    first, again = ([fixed_example(source, "toy-val", each, 0) for each in samples] for _ in "ab")
    assert first == again
    wrong = [example for example in first if example.target == "false"]
    assert 0 < len(wrong) < NUM_SAMPLES
    for example in wrong:
        assert example.prompt != f"{Matching().prompt}picture {example.id.removeprefix('c')}"


def test_a_sample_alone_has_no_other(tmp_path: Path) -> None:
    source = source_of(tmp_path / "data", 1)
    sample = source.datasets[0].read(0)
    with pytest.raises(SkipSample, match="no other one to compare it with"):
        source.beside(sample, [0.5])
    twin = replace(sample, id="twin")
    assert source.beside(twin, [0.5]).others == (sample,)

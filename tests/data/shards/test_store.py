"""Samples by number; damage is named, not passed over."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.packing.writer import SampleRecord, write_dataset
from vlds.data.errors import ShardError
from vlds.data.shards.sample import parse_sample
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import ImageStack
from vlds.schema import SkipSample


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def written(folder: Path, members: list[tuple[str, bytes]], **fields: object) -> Path:
    record = SampleRecord(id="x", members=members, json={"annotations": [{"id": "x-0"}], **fields})
    write_dataset(folder, name="one", kind="nlvr2", split="dev", records=[record])
    return folder


def test_samples_come_back_in_order(folders: dict[str, Path]) -> None:
    dataset = open_dataset(folders["big"])
    samples = [dataset.read(n) for n in range(dataset.num_samples)]
    assert [s.id for s in samples] == [f"big-{n}" for n in range(60)]
    assert sum(len(s.annotations) for s in samples) == dataset.num_annotations == 180
    last = samples[41]
    assert (last.key, last.dataset, last.kind) == ("000000041", "big", "vqa")
    assert last.extra == {"size": [[16, 16]]}
    assert dataset.shard_of(41) == "big-train-00004.tar"


def test_pairs_keep_the_order_of_the_json(tmp_path: Path) -> None:
    members = [("right.png", b"right"), ("left.jpg", b"left")]
    sample = open_dataset(written(tmp_path, members, images=["left.jpg", "right.png"])).read(0)
    assert sample.images == (b"left", b"right")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no array", "not a .npy file"),
        (npy(np.ones((2, 3), np.float16))[:-4], "buffer|reshape"),
        (npy(np.ones((2, 3), np.int32)), "array of floats"),
        (npy(np.ones((2, 3, 4), np.float16)), "expected"),
        (npy(np.ones((2, 3), "f2")).replace(b"{", b"["), "header of the .npy file is damaged"),
    ],
)
def test_wrong_features_are_a_bad_sample(tmp_path: Path, data: bytes, message: str) -> None:
    dataset = open_dataset(written(tmp_path, [("features.npy", data)]))
    with pytest.raises(SkipSample, match=message):
        dataset.read(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"q": "why?", "a": NaN}', "unexpected character"),
        ('{"q": "why?", "a": ["x", null]}', "answers is null"),
    ],
)
def test_numbers_that_are_none_are_a_bad_sample(text: str, message: str) -> None:
    fields = {"question": "json:q", "answer": "json:a"}
    with pytest.raises(ValueError, match=message):
        parse_sample("k", {"json": memoryview(text.encode())}, "n", "vqa", fields)


@pytest.mark.parametrize(
    "arrays",
    [
        {"features.npy": np.arange(6, dtype=np.float16).reshape(2, 3)},
        {"features.npy": np.ones((48, 4), np.float16)},  # no padding
        {"left.features.npy": np.ones((2, 3), np.float32),
         "right.features.npy": np.zeros((2, 3), np.float16)},
    ],
)  # fmt: skip
def test_features_are_stacked_as_float16(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    members = [(name, npy(array)) for name, array in arrays.items()]
    sample = open_dataset(written(tmp_path, members)).read(0)
    assert sample.images == ()
    stack = ImageStack(1)
    assert stack.add(sample.features) == range(len(arrays))
    tensor = stack.images()
    assert tensor is not None
    assert tensor.dtype == torch.float16
    np.testing.assert_array_equal(tensor.numpy(), np.stack(list(arrays.values())))


@pytest.mark.parametrize(
    ("place", "message"),
    [(0, "wrong checksum"), (3584, "wrong checksum"), (None, "the file ends at byte 2000")],
    ids=["first header", "second header", "cut"],
)
def test_damage_around_features_is_found(tmp_path: Path, place: int | None, message: str) -> None:
    dataset = open_dataset(written(tmp_path, [("features.npy", npy(np.ones((40, 32), "f2")))]))
    (shard,) = tmp_path.glob("*.tar")
    with open(shard, "r+b") as file:
        if place is None:
            file.truncate(2000)
        else:
            file.seek(place)
            file.write(b"garbage")
    with pytest.raises(ShardError, match=f"sample 0: .*{message}"):
        dataset.read(0)


def test_pickled_it_opens_its_own_files(folders: dict[str, Path]) -> None:
    dataset = open_dataset(folders["small"])
    expected = dataset.read(3)
    assert pickle.loads(pickle.dumps(dataset)).read(3) == expected

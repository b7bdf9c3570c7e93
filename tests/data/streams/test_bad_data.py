"""Damage: replaced and counted, or stopping the run with a readable error; never a hang."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.cli import main
from data_prep.packing.writer import write_dataset
from tests.toys.files import read_lines
from tests.toys.pictures import noise
from tests.toys.streams import COLLATOR, SPEC, ToyTask, records, train_stream
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import EvalOrder, Source
from vlds.data.streams.stream import EvalStream

LENIENT = ErrorPolicy(max_bad_fraction=1.0)


def jpeg(number: int, share: float = 1.0) -> bytes:
    data = noise(number, (64, 64), "JPEG")
    return data[: int(len(data) * share)]


def source(folder: Path, bad: Callable[[int], bool], num_samples: int = 30) -> Source:
    """A data set in which the JPEGs of some samples are cut in half."""
    write_dataset(
        folder,
        name="hurt",
        kind="vqa",
        split="train",
        records=records("hurt", num_samples, lambda n: jpeg(n, 0.5 if bad(n) else 1.0)),
        shard_samples=10,
    )
    return Source("red", ToyTask(), [open_dataset(folder)])


def is_number(*numbers: int) -> Callable[[int], bool]:
    return lambda n: n in numbers


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_jpeg_is_replaced_counted_and_listed(tmp_path: Path, num_workers: int) -> None:
    ledger = tmp_path / "run" / "errors.jsonl"
    hurt = source(tmp_path / "data", is_number(4))
    stream = train_stream([hurt], errors=LENIENT, ledger=ledger, num_workers=num_workers)
    ids = [id for batch in islice(stream, 23) for id in batch.ids]  # 184 of 90: two epochs
    assert len(ids) == 184
    assert not any(id.startswith("hurt-4-") for id in ids)
    assert stream.num_bad >= 10  # its five annotations, twice
    lines = read_lines(ledger)
    assert [(entry["key"], entry["id"], entry["shard"]) for entry in lines] == [
        ("000000004", "hurt-4", "hurt-train-00000.tar")
    ]
    assert "truncated" in lines[0]["reason"]


def test_substitutes_do_not_depend_on_ranks(tmp_path: Path) -> None:
    hurt = source(tmp_path, is_number(3, 4, 13))
    alone = [id for batch in islice(train_stream([hurt], errors=LENIENT), 12) for id in batch.ids]
    ranks = [
        iter(train_stream([hurt], errors=LENIENT, micro_batch_size=2, world_size=4, global_rank=n))
        for n in range(4)
    ]
    assert [id for _ in range(12) for rank in ranks for id in next(rank).ids] == alone


def test_too_large_a_share_stops_the_run(tmp_path: Path) -> None:
    hurt = source(tmp_path, lambda n: n % 6 == 4)
    stream = train_stream([hurt], errors=ErrorPolicy(max_bad_fraction=0.01, max_in_a_row=20))
    with pytest.raises(ValueError, match=r"examples \(\d+ %\) had to be replaced") as error:
        for _ in islice(stream, 100):
            pass
    assert "data set hurt-train, shard hurt-train-0000" in str(error.value)
    assert "raise errors.max_bad_fraction" in str(error.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_in_a_row_stop_the_run(tmp_path: Path, num_workers: int) -> None:
    hurt = source(tmp_path, lambda n: n > 1)
    policy = ErrorPolicy(max_bad_fraction=1.0, max_in_a_row=4)
    stream = train_stream([hurt], errors=policy, num_workers=num_workers)
    with pytest.raises(ValueError, match="bad samples in a row"):
        next(iter(stream))


def test_one_bad_sample_with_many_questions_is_not_many_in_a_row(tmp_path: Path) -> None:
    hurt = source(tmp_path, is_number(4))
    policy = ErrorPolicy(max_bad_fraction=1.0, max_in_a_row=3)
    stream = train_stream([hurt], errors=policy, group=5)
    assert len(list(islice(stream, 30))) == 30


def test_nothing_readable_ends_with_a_message(tmp_path: Path) -> None:
    hurt = source(tmp_path, lambda n: True, num_samples=1)
    with pytest.raises(ValueError, match="no substitute for sample 000000000 of data set hurt"):
        next(iter(train_stream([hurt], errors=LENIENT)))


@pytest.fixture
def smashed(folders: dict[str, Path], tmp_path: Path) -> Source:
    """The header of one sample is garbage."""
    folder = Path(shutil.copytree(folders["big"], tmp_path / "big"))
    source = Source("red", ToyTask(), [open_dataset(folder)])
    start = int(np.frombuffer((folder / "big-train-00002.tar.idx").read_bytes(), "<u8")[4])
    with open(folder / "big-train-00002.tar", "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 100)
    return source


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_shard_stops_the_run(smashed: Source, num_workers: int) -> None:
    stream = train_stream([smashed], num_workers=num_workers)
    with pytest.raises(ShardError, match=r"^shard .*big-train-00002\.tar, sample 4: ") as error:
        list(islice(stream, 23))
    assert "copy the shard again" in str(error.value)


def test_a_damaged_shard_is_replaced_when_asked(smashed: Source, tmp_path: Path) -> None:
    policy = ErrorPolicy(max_bad_fraction=1.0, on_bad_shard="substitute")
    stream = train_stream([smashed], errors=policy, ledger=tmp_path / "ledger")
    ids = [id for batch in islice(stream, 23) for id in batch.ids]
    assert len(ids) == 184
    assert not any(id.startswith("big-24-") for id in ids)
    assert "wrong checksum" in (tmp_path / "ledger").read_text()


@pytest.mark.parametrize("above", [False, True])
def test_what_verify_found_is_replaced_without_being_read(
    smashed: Source, tmp_path: Path, above: bool
) -> None:
    """Its list is next to the shards, whichever folder was verified."""
    assert main(["verify", str(tmp_path if above else tmp_path / "big"), "--workers", "1"]) == 1
    again = Source("red", ToyTask(), [open_dataset(tmp_path / "big")])
    stream = train_stream([again], errors=LENIENT, ledger=tmp_path / "ledger")
    ids = [id for batch in islice(stream, 23) for id in batch.ids]
    assert not any(id.startswith("big-24-") for id in ids)
    (line,) = (tmp_path / "ledger").read_text().splitlines()
    assert "quarantine.jsonl: sample smashed or cut off" in json.loads(line)["reason"]
    (tmp_path / "big" / "quarantine.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"quarantine\.jsonl, line 1: not what `vlds data verify`"):
        open_dataset(tmp_path / "big")


def test_a_quarantined_sample_is_scored_as_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    source(folder, is_number())
    bad = {"shard": "hurt-train-00000.tar", "i": 4, "key": "000000004", "id": "x", "reason": "y"}
    (folder / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    hurt = Source("red", ToyTask(), [open_dataset(folder)])
    order = EvalOrder(hurt.counts, [(1, 4)] * 30, 90)
    stream = EvalStream(hurt, order, StreamSetup(collator=COLLATOR, image=SPEC))
    (batch,) = stream
    assert batch.valid.sum() == 85
    assert [(b.id, b.reference) for b in stream.bad] == [
        (f"hurt-4-{n}", f"a {n}") for n in range(5)
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_goes_missing_stops_the_run(
    folders: dict[str, Path], tmp_path: Path, num_workers: int
) -> None:
    folder = Path(shutil.copytree(folders["big"], tmp_path / "big"))
    stream = train_stream(
        [Source("red", ToyTask(), [open_dataset(folder)])], num_workers=num_workers
    )
    (folder / "big-train-00003.tar").unlink()
    with pytest.raises(ShardError, match=r"big-train-00003\.tar, sample \d: No such file"):
        list(islice(stream, 23))


@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_shard_that_is_replaced_during_training(
    folders: dict[str, Path], tmp_path: Path, in_place: bool
) -> None:
    """By the same samples with larger pictures: its index does not fit any more."""
    folder = Path(shutil.copytree(folders["big"], tmp_path / "big"))
    stream = iter(train_stream([Source("red", ToyTask(), [open_dataset(folder)])]))
    first = next(stream)
    other = tmp_path / "other"
    write_dataset(
        other,
        name="big",
        kind="vqa",
        split="train",
        records=records("big", 60, lambda n: noise(n, (200, 200))),
        shard_samples=10,
    )
    for path in sorted(other.glob("*.tar")):
        if in_place:
            (folder / path.name).write_bytes(path.read_bytes())
        else:
            path.replace(folder / path.name)
    with pytest.raises(ShardError, match=r"^shard .*big-train-0000\d\.tar, sample \d: "):
        list(islice(stream, 60))
    assert len(first.ids) == 8


@pytest.mark.parametrize("place", [30, 2000])
def test_two_hundred_zeros_in_a_jpeg_are_found(tmp_path: Path, place: int) -> None:
    """In its header, and in its pixels, which most decoders would not notice."""
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    buffer = io.BytesIO()
    noisy.save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    data[place : place + 200] = bytes(200)
    write_dataset(
        tmp_path / "data",
        name="hurt",
        kind="vqa",
        split="train",
        records=records("hurt", 30, lambda n: bytes(data) if n == 7 else jpeg(n)),
    )
    hurt = Source("red", ToyTask(), [open_dataset(tmp_path / "data")])
    stream = train_stream([hurt], errors=LENIENT, ledger=tmp_path / "ledger")
    ids = [id for batch in islice(stream, 12) for id in batch.ids]
    assert len(ids) == 96
    assert not any(id.startswith("hurt-7-") for id in ids)
    assert "truncated or damaged" in (tmp_path / "ledger").read_text()


def test_a_bad_sample_in_evaluation_is_not_valid_and_listed(tmp_path: Path) -> None:
    hurt = source(tmp_path, is_number(4))
    order = EvalOrder(hurt.counts, [(1, 4)] * 30, 7)
    stream = EvalStream(hurt, order, StreamSetup(collator=COLLATOR, image=SPEC))
    rows = [
        (id, valid, reference)
        for batch in stream
        for id, valid, reference in zip(
            batch.ids, batch.valid.tolist(), batch.references, strict=True
        )
    ]
    assert len(rows) == 90
    invalid = [id for id, valid, _ in rows if not valid]
    assert invalid == [f"hurt-4-{n}" for n in range(5)]
    assert [(b.id, b.reference) for b in stream.bad] == [
        (f"hurt-4-{n}", f"a {n}") for n in range(5)
    ]
    assert sum(valid for _, valid, _ in rows) == 85

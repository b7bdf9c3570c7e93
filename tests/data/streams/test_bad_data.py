"""Damage: replaced and counted, or stopping the run with a readable error; never a hang."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.packing.writer import write_dataset
from tests.toys.files import read_lines
from tests.toys.pictures import noise
from tests.toys.streams import COLLATOR, SPEC, records, red_source, train_stream
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.shards.store import open_dataset
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import EvalOrder, Source
from vlds.data.streams.stream import EvalStream, TrainStream

LENIENT = ErrorPolicy(max_bad_fraction=1.0)


def jpeg(number: int, share: float = 1.0) -> bytes:
    data = noise(number, (64, 64), "JPEG")
    return data[: int(len(data) * share)]


def source(folder: Path, bad: Callable[[int], bool], num_samples: int = 30) -> Source:
    """A data set in which the JPEGs of some samples are cut in half."""
    made = records("hurt", num_samples, lambda n: jpeg(n, 0.5 if bad(n) else 1.0))
    write_dataset(folder, name="hurt", kind="vqa", split="train", records=made, shard_samples=10)
    return red_source(folder)


def is_number(*numbers: int) -> Callable[[int], bool]:
    return lambda n: n in numbers


def ids_of(stream: TrainStream, batches: int) -> list[str]:
    return [id for batch in islice(stream, batches) for id in batch.ids]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_jpeg_is_replaced_counted_and_listed(tmp_path: Path, num_workers: int) -> None:
    ledger = tmp_path / "run" / "errors.jsonl"
    hurt = source(tmp_path / "data", is_number(4))
    stream = train_stream([hurt], errors=LENIENT, ledger=ledger, num_workers=num_workers)
    ids = ids_of(stream, 23)  # 184 of 90: two epochs
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
    alone = ids_of(train_stream([hurt], errors=LENIENT), 12)
    ranks = [
        iter(train_stream([hurt], errors=LENIENT, micro_batch_size=2, world_size=4, global_rank=n))
        for n in range(4)
    ]
    assert [id for _ in range(12) for rank in ranks for id in next(rank).ids] == alone


@pytest.mark.parametrize(
    ("bad", "policy", "said"),
    [
        (lambda n: n % 6 == 4, {"max_bad_fraction": 0.01, "max_in_a_row": 20},
         r"examples \(\d+ %\) had to be replaced"
         r"(?s:.*data set hurt-train, shard hurt-train-0000.*raise errors.max_bad_fraction)"),
        (lambda n: n > 1, {"max_in_a_row": 4}, "bad samples in a row"),
        (lambda n: True, {"max_in_a_row": 100}, "no substitute for sample 0000.* of data set hurt"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_much_damage_stops_the_run(
    tmp_path: Path, bad: Callable[[int], bool], policy: dict[str, float], said: str,
    num_workers: int,
) -> None:  # fmt: skip
    errors = ErrorPolicy(**({"max_bad_fraction": 1.0} | policy))  # type: ignore[arg-type]
    stream = train_stream([source(tmp_path, bad)], errors=errors, num_workers=num_workers)
    with pytest.raises(ValueError, match=said):
        ids_of(stream, 100)


def test_one_bad_sample_with_many_questions_is_not_many_in_a_row(tmp_path: Path) -> None:
    policy = ErrorPolicy(max_bad_fraction=1.0, max_in_a_row=3)
    stream = train_stream([source(tmp_path, is_number(4))], errors=policy, group=5)
    assert len(list(islice(stream, 30))) == 30


@pytest.fixture
def big(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(folders["big"], tmp_path / "big"))


def smash(shard: Path) -> None:
    """Let the header of one sample be garbage."""
    start = int(np.fromfile(f"{shard}.idx", "<u8")[4])
    with open(shard, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 100)


@pytest.fixture
def smashed(big: Path) -> Path:
    smash(big / "big-train-00002.tar")
    return big


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "said"),
    [(smash, "sample 4: .*copy the shard again"), (Path.unlink, r"sample \d: No such file")],
)
def test_a_damaged_shard_stops_the_run(
    big: Path, damage: Callable[[Path], None], said: str, num_workers: int
) -> None:
    stream = train_stream([red_source(big)], num_workers=num_workers)
    damage(big / "big-train-00002.tar")
    with pytest.raises(ShardError, match=rf"^shard .*big-train-00002\.tar, {said}"):
        ids_of(stream, 23)


@pytest.mark.parametrize("above", [False, True])
def test_what_verify_found_is_replaced_without_being_read(
    smashed: Path, tmp_path: Path, above: bool
) -> None:
    """Its list is next to the shards, whichever folder was verified."""
    assert main(["verify", str(tmp_path if above else smashed), "--workers", "1"]) == 1
    ledger = tmp_path / "ledger"
    ids = ids_of(train_stream([red_source(smashed)], errors=LENIENT, ledger=ledger), 23)
    assert not any(id.startswith("big-24-") for id in ids)
    (line,) = read_lines(ledger)
    assert "quarantine.jsonl: sample smashed or cut off" in line["reason"]
    (smashed / "quarantine.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"quarantine\.jsonl, line 1: not what `vlds data verify`"):
        open_dataset(smashed)


@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_shard_that_is_replaced_during_training(
    big: Path, tmp_path: Path, in_place: bool
) -> None:
    """By the same samples with larger pictures: its index does not fit any more."""
    stream = iter(train_stream([red_source(big)]))
    next(stream)
    other = tmp_path / "other"
    larger = records("big", 60, lambda n: noise(n, (200, 200)))
    write_dataset(other, name="big", kind="vqa", split="train", records=larger, shard_samples=10)
    for path in sorted(other.glob("*.tar")):
        if in_place:
            (big / path.name).write_bytes(path.read_bytes())
        else:
            path.replace(big / path.name)
    with pytest.raises(ShardError, match=r"^shard .*big-train-0000\d\.tar, sample \d: "):
        list(islice(stream, 60))


@pytest.mark.parametrize("how", ["truncated", "quarantined"])
def test_a_bad_sample_in_evaluation_is_not_valid_and_listed(tmp_path: Path, how: str) -> None:
    hurt = source(tmp_path, is_number(*([4] if how == "truncated" else [])))
    if how == "quarantined":
        bad = {"shard": "hurt-train-00000.tar", "i": 4, "key": "4", "id": "x", "reason": "y"}
        (tmp_path / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
        hurt = red_source(tmp_path)
    order = EvalOrder(hurt.counts, [(1, 4)] * 30, 7)
    stream = EvalStream(hurt, order, StreamSetup(collator=COLLATOR, image=SPEC))
    rows = [row for batch in stream for row in zip(batch.ids, batch.valid.tolist(), strict=True)]
    assert len(rows) == 90
    assert [id for id, valid in rows if not valid] == [f"hurt-4-{n}" for n in range(5)]
    assert [(b.id, b.reference) for b in stream.bad] == [
        (f"hurt-4-{n}", f"a {n}") for n in range(5)
    ]

"""`verify` and what can be wrong with shards, their index, and ids: found, named, and told by the
exit code."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from tests.toys.files import write
from tests.toys.pictures import jpeg
from tests.toys.shards import (
    FIRST,
    Check,
    annotation,
    by_hand,
    content,
    flip,
    offsets,
    overwrite,
    quarantined,
    record,
    write_shards,
)
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.shard_index import beside, load_index
from vlds.data.shards.store import open_dataset
from vlds.data.shards.writing import describe_shard

BROKEN = "sample smashed or cut off"


OTHER_BYTES = "shard with another sha256"


def test_a_healthy_set_is_well_and_an_old_quarantine_goes(healthy: Path, check: Check) -> None:
    write(healthy / "quarantine.jsonl", "of last time")
    assert check(healthy) == (0, {})
    assert not (healthy / "quarantine.jsonl").exists()
    assert check(healthy.parent) == (0, {})


def test_a_bit_in_a_header(healthy: Path, check: Check) -> None:
    flip(healthy / FIRST, offsets(healthy)[1] + 3)
    assert check(healthy) == (1, {OTHER_BYTES: 1, BROKEN: 1})
    (line,) = quarantined(healthy)
    assert line["shard"] == FIRST
    assert line["i"] == 1
    assert "wrong checksum" in line["reason"]
    assert set(line) == {"shard", "i", "key", "id", "reason"}


def test_zeros_that_look_like_the_end(healthy: Path, check: Check) -> None:
    """tarfile sees one sample of three and no error."""
    begin = offsets(healthy)[1]
    overwrite(healthy / FIRST, begin, bytes(512))
    with tarfile.open(healthy / FIRST) as tar:
        assert len(tar.getnames()) == 2
    code, reasons = check(healthy)
    assert code == 1
    assert reasons[BROKEN] == 1
    assert [line["i"] for line in quarantined(healthy)] == [1]


def test_a_bit_in_a_picture(healthy: Path, check: Check) -> None:
    begin = offsets(healthy)[2]
    flip(healthy / FIRST, begin + 512 + len(jpeg()) - 40)
    code, reasons = check(healthy)
    assert code == 1
    assert reasons[OTHER_BYTES] == 1


@pytest.mark.parametrize("suffix", [".idx", ".cnt", ".crc"])
def test_a_bit_in_the_index(healthy: Path, check: Check, suffix: str) -> None:
    flip(beside(healthy / FIRST, suffix), 4)
    assert check(healthy) == (1, {f"{suffix} with another sha256": 1})
    beside(healthy / FIRST, suffix).unlink()
    assert check(healthy) == (1, {f"{suffix} missing": 1})


def test_an_index_that_is_wrong_from_the_start(healthy: Path, check: Check) -> None:
    info = DatasetInfo.load(healthy)
    index = load_index(healthy, info.shards[0])
    wrong = replace(index, counts=index.counts + 1)
    described = describe_shard(healthy / FIRST, wrong)
    replace(info, shards=(described, info.shards[1]), annotations=info.annotations + 3).save(
        healthy
    )
    expected = {"index of another shard": 3, "other number of annotations": 1}
    assert check(healthy) == (1, expected)


def test_a_tar_that_is_cut(healthy: Path, check: Check) -> None:
    path = healthy / FIRST
    path.write_bytes(path.read_bytes()[: offsets(healthy)[1] + 700])
    assert check(healthy) == (1, {"shard of another size": 1, BROKEN: 2})
    assert [(line["i"], line["key"]) for line in quarantined(healthy)] == [
        (1, "000000001"), (2, ""),
    ]  # fmt: skip
    beside(path, ".idx").unlink()
    expected = {"shard of another size": 1, ".idx missing": 1, "shard smashed": 1}
    assert check(healthy) == (1, expected)


def test_shards_that_are_missing_or_not_listed(healthy: Path, check: Check) -> None:
    (healthy / FIRST).rename(healthy / "other-train-00000.tar")
    assert check(healthy) == (1, {"shard missing": 1, "shard in no dataset.json": 1})


def test_an_unusable_dataset_json(healthy: Path, check: Check) -> None:
    write_shards(healthy.parent / "good", [record(1)])
    write(healthy / "dataset.json", "{")
    assert check(healthy.parent) == (
        1, {"unusable dataset.json": 1, "shard in no dataset.json": 2},
    )  # fmt: skip


def test_ids_that_stand_twice(tmp_path: Path, check: Check) -> None:
    records = [record(number) for number in range(4)]
    for again, reason in (
        (record(5, id="image1", annotations=[annotation(7)]), "sample id twice"),
        (record(6, annotations=[annotation(11)]), "annotation id twice"),
    ):
        folder = write_shards(tmp_path / again.id, [*records, again])
        assert check(folder) == (1, {reason: 1})
        (line,) = quarantined(folder)
        assert line["shard"] == "vqav2-train-00001.tar"
        assert line["reason"].startswith(f"{reason}: ")


def test_keys_that_stand_twice(tmp_path: Path, check: Check) -> None:
    shards = [[("a.jpg", jpeg()), ("a.json", content(n))] for n in range(2)]
    folder = by_hand(tmp_path / "two", shards)
    assert check(folder) == (1, {"key twice": 1})
    other = [("b.jpg", jpeg()), ("b.json", content(5))]
    assert check(by_hand(tmp_path / "one", [[*shards[0], *other, *shards[1]]])) == (
        1, {"key twice": 1},
    )  # fmt: skip


def test_members_that_are_not_side_by_side(tmp_path: Path, check: Check) -> None:
    shard = [("a.jpg", jpeg()), ("b.jpg", jpeg()), ("b.json", content(1)), ("a.json", content(2))]
    folder = by_hand(tmp_path / "shards", [shard], indexed=False)
    expected = {"no json": 1, "image missing": 1, "members not side by side": 1}
    assert check(folder) == (1, expected)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path)]) == 2


def test_no_process_is_refused(healthy: Path, refused: Any) -> None:
    refused(main(["verify", str(healthy), "--workers", "0"]), "--workers: got 0; give 1 or more")


@pytest.mark.slow
def test_processes_find_the_same(
    healthy: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(healthy / FIRST, offsets(healthy)[1] + 3)
    alone = check(healthy), quarantined(healthy)
    monkeypatch.setattr("vlds.runtime.workers.FEWEST_PIECES", 1)
    assert (check(healthy, workers=2), quarantined(healthy)) == alone


def test_each_set_has_its_own_quarantine(tmp_path: Path, check: Check) -> None:
    """At any depth below the folder; equal ids in two data sets are not a fault."""
    for place in ("a", "deep/down/b"):
        write_shards(tmp_path / place, [record(1), record(2, b"?")])
    write_shards(tmp_path / "c", [record(1)])
    assert check(tmp_path) == (1, {"image damaged": 2})
    for place in ("a", "deep/down/b"):
        (line,) = quarantined(tmp_path / place)
        assert (line["shard"], line["i"]) == (FIRST, 1)
        assert list(open_dataset(tmp_path / place).quarantine) == [1]
    assert not open_dataset(tmp_path / "c").quarantine

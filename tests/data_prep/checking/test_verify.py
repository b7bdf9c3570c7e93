"""`verify` and what can be wrong with shards, their index, and ids: found, named, and told by the
exit code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.packing.source import Dropped
from tests.toys.class_folders import change_info, write_classes
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


# `verify --annotations`: nothing of the official files is lost, and nothing else is there.

IDS = ["0", "1", "10", "11"]
"""Annotations of the samples 0 and 1."""


def karpathy(ids: Sequence[str]) -> dict[str, Any]:
    sentences = [{"sentid": int(number), "raw": "x"} for number in ids]
    rows = [{"cocoid": 5, "imgid": 9, "split": "restval", "sentences": sentences}]
    other = [{"cocoid": 6, "imgid": 8, "split": "val", "sentences": [{"sentid": 77}]}]
    return {"images": rows + other, "dataset": "coco"}


FORMS: dict[str, Callable[[Sequence[str]], Any]] = {
    "vqa": lambda ids: {"info": {}, "questions": [{"question_id": int(n)} for n in ids]},
    "lxmert": lambda ids: [{"question_id": int(n), "img_id": "image0", "sent": "x"} for n in ids],
    "gqa": lambda ids: {n: {"imageId": "image0", "question": "x"} for n in ids},
    "nlvr2": lambda ids: "\n".join(json.dumps({"identifier": n, "label": "True"}) for n in ids),
    "karpathy": karpathy,
    "coco": lambda ids: {
        "licenses": [{"id": 1}],
        "images": [{"id": 999}],
        "annotations": [{"id": int(n), "image_id": 999} for n in ids],
    },
    "vg": lambda ids: [
        {"id": 999, "qas": [{"qa_id": int(n), "image_id": 999} for n in ids]},
        {"image_id": 998, "qas": []},
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_annotations_of_the_files(tmp_path: Path, check: Check, form: str) -> None:
    folder = write_shards(tmp_path / "shards", [record(0), record(1)])
    file = write(tmp_path / "all.json", FORMS[form](IDS))
    assert check(folder, file) == (0, {})
    file = write(tmp_path / "more.json", FORMS[form]([*IDS, "12"]))
    assert check(folder, file) == (1, {"annotation in no shard": 1})
    assert not (folder / "quarantine.jsonl").exists()
    file = write(tmp_path / "fewer.json", FORMS[form](IDS[:-1]))
    assert check(folder, file) == (1, {"annotation in no file": 1})
    assert quarantined(folder)[0]["id"] == "image1"


def test_what_was_dropped_is_not_missing(tmp_path: Path, check: Check) -> None:
    """By its own id, or with its whole sample: a picture, or a pair of NLVR2."""
    dropped = [Dropped("12", "no answer"), Dropped("900", "damaged"), Dropped("dev-1-0", "damaged")]
    folder = write_shards(tmp_path / "shards", [record(0), *dropped])
    rows = [{"question_id": n, "image_id": 5} for n in (0, 1, 12)]
    file = write(tmp_path / "a.json", {"questions": [*rows, {"question_id": 30, "image_id": 900}]})
    pairs = write(tmp_path / "b.json", [{"identifier": "dev-1-0-1"}])
    assert check(folder, file, pairs) == (0, {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[{"text": 1}]', "a row has none of question_id"),
        ('{"question_id": 1}\n{', "line 2: not JSON"),
    ],
)
def test_files_without_ids_are_refused(
    healthy: Path, refused: Any, text: str | None, told: str
) -> None:
    file = healthy.parent / "rows.json"
    if text is not None:
        write(file, text)
    refused(main(["verify", str(healthy), "--annotations", str(file), "--workers", "1"]), told)


# `verify` compares the classes of the samples, of the index and of dataset.json.


def test_a_label_that_is_not_listed(tmp_path: Path, check: Check) -> None:
    folder = write_classes(tmp_path / "toy")
    change_info(folder, classes=["zebra", "ant"])
    assert check(folder) == (1, {"class unusable": 2})


def test_another_order(tmp_path: Path, check: Check) -> None:
    folder = write_classes(tmp_path / "toy")
    change_info(folder, classes=["ant", "zebra", "cat"])
    assert check(folder) == (1, {"index of another shard": 3})


def test_labels_that_only_some_have(tmp_path: Path, check: Check) -> None:
    folder = write_classes(tmp_path / "toy", ["ant", None])
    assert check(folder) == (1, {"annotations without a label": 1})
    assert np.frombuffer(next(folder.glob("*.cls")).read_bytes(), "<u4").tolist()[0] == 1

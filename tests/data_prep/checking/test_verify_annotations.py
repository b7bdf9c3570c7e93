"""`verify --annotations`: nothing of the official files is lost, and nothing else is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.cli import main
from data_prep.packing.source import Dropped
from tests.toys.files import write
from tests.toys.shards import Check, quarantined, record, write_shards

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
        ('[{"question_id": 1},\n {"question_id": null}]', "annotation 1: 'question_id' is null"),
        ('[{"question_id": 1},\n {"question_id": NaN}]', "rows.json, line 2: NaN is not a number"),
        ('{"question_id": 1}\n{"question_id": 1e999}', "rows.json, line 2: 1e999 is not a number"),
        ("[]", "no annotation of split train"),
        (None, "does not exist"),
    ],
)
def test_files_without_ids_are_refused(
    healthy: Path, refused: Any, text: str | None, told: str
) -> None:
    file = healthy.parent / "rows.json"
    if text is not None:
        write(file, text)
    refused(main(["verify", str(healthy), "--annotations", str(file), "--workers", "1"]), told)

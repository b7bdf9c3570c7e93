"""`verify` and what can be wrong inside a sample: json, pictures, features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.checking.checks import check_sample
from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.pictures import jpeg, png
from tests.toys.shards import (
    FIRST,
    Check,
    annotation,
    by_hand,
    content,
    features,
    grid,
    offsets,
    quarantined,
    record,
    write_shards,
)
from vlds.data.shards.info import DatasetInfo
from vlds.data.shards.sample import feature_bytes
from vlds.schema import LONGEST_TEXT


def png_with_a_wrong_checksum() -> bytes:
    """Of the pixels, which themselves are right."""
    data = png()
    end = data.index(b"IEND") - 4
    return data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:]


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (jpeg()[:-200], "Truncated File Read"),
        (b"GIF89a", "not a picture"),
        (b"", "empty"),
        (png()[:-60], "truncated"),
        (png_with_a_wrong_checksum(), "broken PNG file"),
    ],
)
def test_pictures_that_do_not_decode(
    tmp_path: Path, check: Check, picture: bytes, told: str
) -> None:
    bad = SampleRecord(id="bad", members=[("jpg", picture)], json={"annotations": [annotation(1)]})
    folder = write_shards(tmp_path / "shards", [record(2), bad])
    assert check(folder) == (1, {"image damaged": 1})
    (line,) = quarantined(folder)
    assert (line["i"], line["key"], line["id"]) == (1, "000000001", "bad")
    assert line["reason"].startswith("image damaged: jpg: ")
    assert told in line["reason"]


def test_a_jpeg_that_only_a_strict_decoder_refuses(tmp_path: Path, check: Check) -> None:
    whole = jpeg(width=300, height=200)
    start = whole.index(b"\xff\xda") + 100
    for number, damaged in enumerate(
        (whole[:start] + bytes(200) + whole[start + 200 :], whole[:start] + whole[start + 200 :])
    ):
        records = [record(1, whole), record(2, jpeg("L")), record(3, jpeg("CMYK"))]
        folder = write_shards(tmp_path / str(number), [*records, record(4, damaged)])
        assert check(folder) == (1, {"image damaged": 1})
        assert quarantined(folder)[0]["id"] == "image4"
        assert "Corrupt JPEG data" in quarantined(folder)[0]["reason"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"images": None}, "no list of images"),
        ({"images": ["png"]}, "image missing"),
        ({"images": [["jpg"]]}, "image missing"),
        ({"annotations": [{"id": "1"}]}, "annotation unusable"),
        ({"annotations": [{**annotation(1), "caption": 5}]}, "annotation unusable"),
        ({"annotations": [{**annotation(1), "label": {"yes": "often"}}]}, "annotation unusable"),
    ],
)
def test_json_that_lacks_something(
    tmp_path: Path, check: Check, fields: dict[str, Any], reason: str
) -> None:
    folder = by_hand(tmp_path / "a", [[("a.jpg", jpeg()), ("a.json", content(1, **fields))]])
    assert check(folder) == (1, {reason: 1})
    assert main(["preview", str(folder)]) == 0


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("a.json", b"\xff{"), "json cannot be read"),
        (("a.json", []), "json cannot be read"),
        (("a.json", content(1, annotations=None)), "no list of annotations"),
        (("a.txt", b"hello"), "no json"),
        (("a.json", content(1, id=5)), "sample id unfit"),
        (("a.json", content(1, id="a\u2028b")), "sample id unfit"),
        (("a.json", content(1, annotations=[{"id": ["5"], "question": ""}])),
         "annotation id unfit"),
    ],
)  # fmt: skip
def test_samples_that_cannot_even_be_indexed(
    tmp_path: Path, check: Check, member: tuple[str, Any], reason: str
) -> None:
    folder = by_hand(tmp_path / "a", [[("a.jpg", jpeg()), member]], indexed=False)
    assert check(folder) == (1, {reason: 1})


def test_a_member_that_stands_twice(tmp_path: Path, check: Check) -> None:
    shard = [("a.jpg", jpeg()), ("a.jpg", jpeg()), ("a.json", content(1))]
    assert check(by_hand(tmp_path / "a", [shard])) == (1, {"member twice": 1})


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (grid() * np.float16(np.nan), "features not finite"),
        (grid() * np.float16(np.inf), "features not finite"),
        (grid(dtype=np.float32), "features not float16"),
        (grid()[None], "features no matrix"),
        (np.asfortranarray(grid()), "features no matrix"),
        (grid()[:3], "features of another shape"),
    ],
)
def test_features(tmp_path: Path, check: Check, array: np.ndarray, reason: str) -> None:
    good = [features(number, grid()) for number in range(3)]
    assert check(write_shards(tmp_path / "good", good)) == (0, {})
    folder = write_shards(tmp_path / "bad", [*good, features(3, array)])
    assert check(folder) == (1, {reason: 1})
    assert quarantined(folder)[0]["id"] == "clip3"


def test_features_that_are_cut_or_missing(tmp_path: Path, check: Check) -> None:
    good = [features(number, grid()) for number in range(3)]
    member, data = features(3, grid()).members[0]
    cut = replace(features(3, grid()), members=[(member, data[:-5])])
    assert check(write_shards(tmp_path / "a", [*good, cut])) == (1, {"features cannot be read": 1})
    without = replace(features(3, grid()), members=[])
    folder = write_shards(tmp_path / "b", [*good, without])
    assert check(folder) == (1, {"features of another shape": 1})


def test_a_foreign_member_inside_a_sample(healthy: Path) -> None:
    begin, _, end = offsets(healthy)[:3]
    data = (healthy / FIRST).read_bytes()[begin:end]
    (finding,) = check_sample(data, begin, end, DatasetInfo.load(healthy)).findings
    assert "its members (000000000, 000000001) are not where the index says" in finding.detail


# `verify` asks the tasks of a data set's kind, as a run does: what none can use, it names.

Members = list[tuple[str, bytes]]
QUESTION = {"question": "why?", "label": {"yes": 1.0}}
CHOICE = {"question": "who?", "choices": ["a", "b"], "answer_index": 1, "span": [0, 1]}
PICTURE: Members = [("jpg", jpeg())]
PAIR: Members = [("left.jpg", jpeg()), ("right.jpg", jpeg())]
CLIP: Members = [("features.npy", feature_bytes(np.ones((4, 3))))]
CHOSEN = {"question": "why?", "choices": ["a", "b"], "answer_index": 1}
GOOD: dict[str, tuple[dict[str, Any], Members]] = {
    "vqa": (QUESTION, PICTURE),
    "gqa": ({"question": "why?", "answer": "yes"}, PICTURE),
    "nlvr2": ({"sentence": "both", "label": True}, PAIR),
    "entailment": ({"hypothesis": "a dog", "label": "neutral"}, PICTURE),
    "multiple_choice": (CHOSEN, PICTURE),
    "image_class": ({"label": "a dog"}, PICTURE),
    "caption": ({"caption": "a dog"}, PICTURE),
    "video_qa": (CHOICE, CLIP),
    "video_caption": ({"caption": "a dog"}, CLIP),
}


def pack(
    out: Path, kind: str, *annotations: Any, members: Members | None = None, **fields: Any
) -> Path:
    """A sample of each annotation."""
    records = [
        SampleRecord(
            id=f"s{number}",
            members=members or GOOD[kind][1],
            json={"annotations": [{"id": f"a{number}", **annotation}], **fields},
        )
        for number, annotation in enumerate(annotations)
    ]
    write_dataset(out, name="toy", kind=kind, split="train", records=records)
    return out


@pytest.mark.parametrize("kind", GOOD)
def test_every_kind_is_well(tmp_path: Path, check: Check, kind: str) -> None:
    assert check(pack(tmp_path / "toy", kind, GOOD[kind][0])) == (0, {})


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("vqa", {"label": ["yes"]}),
        ("vqa", {"question": "x" * (LONGEST_TEXT - 2)}),
        ("vqa", {"answers": 5}),
        ("vqa", {"answer_type": ["x"]}),
        ("gqa", {"answer": 5}),
        ("gqa", {"types": 5}),
        ("gqa", {"groups": {"global": {}}}),
        ("gqa", {"entailed": 5}),
        ("nlvr2", {"label": "True"}),
        ("entailment", {"label": 5}),
        ("image_class", {"label": 5}),
        ("video_qa", {"choices": 5}),
    ],
)
def test_annotations_that_no_task_can_use(
    tmp_path: Path, check: Check, kind: str, changed: dict[str, Any]
) -> None:
    folder = pack(tmp_path / "toy", kind, GOOD[kind][0], GOOD[kind][0] | changed)
    assert check(folder) == (1, {"sample unusable": 1})


def test_a_number_of_pictures_that_no_model_takes(tmp_path: Path, check: Check) -> None:
    one = pack(tmp_path / "one", "nlvr2", GOOD["nlvr2"][0], members=PICTURE)
    assert check(one) == (1, {"sample unusable": 1})


def test_answers_too_long_to_learn(tmp_path: Path, check: Check) -> None:
    folder = pack(tmp_path / "toy", "vqa", QUESTION | {"label": {"y" * (LONGEST_TEXT + 1): 1.0}})
    assert check(folder) == (1, {"annotation unusable": 1})


def test_labels_that_only_some_have(tmp_path: Path, check: Check) -> None:
    """An annotation has one if any task of its kind can train on it."""
    assert check(pack(tmp_path / "chosen", "multiple_choice", CHOSEN, CHOSEN)) == (0, {})
    asked = {"question": "why?", "choices": ["a", "b"]}
    some = pack(tmp_path / "some", "multiple_choice", CHOSEN, asked)
    assert check(some) == (1, {"annotations without a label": 1})
    without = {"question": "why?"}
    assert check(pack(tmp_path / "test", "vqa", without, without)) == (0, {})
    mixed = pack(tmp_path / "mixed", "vqa", QUESTION, without)
    assert check(mixed) == (1, {"annotations without a label": 1})


def test_features_of_two_shapes_in_one_sample(tmp_path: Path, check: Check) -> None:
    members = [(f"{n}.features.npy", feature_bytes(np.ones((n, 3)))) for n in (2, 4)]
    folder = pack(tmp_path / "toy", "vqa", QUESTION, members=members)
    assert check(folder) == (1, {"features of different shapes": 1})


@pytest.mark.parametrize("size", [5, [1, 2]])
def test_sizes_that_cannot_be_counted(tmp_path: Path, refused: Any, size: Any) -> None:
    folder = pack(tmp_path / "toy", "vqa", QUESTION, size=size)
    refused(main(["stats", str(folder)]), "sample 000000000 cannot be counted")

"""`verify` and what can be wrong inside a sample: json, pictures, features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.checking.checks import check_sample
from data_prep.cli import main
from data_prep.packing.writer import SampleRecord
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
    overwrite,
    quarantined,
    record,
    write_shards,
)
from vlds.data.shards.info import DatasetInfo


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
    ("fields", "told"),
    [
        ({"annotations": [{"id": "1", "question": 5}]}, "annotation question is 5, text expected"),
        ({"images": ["png"]}, "it has no 'png'"),
    ],
)
def test_what_cannot_be_counted_is_named(
    tmp_path: Path, fields: dict[str, Any], told: str, refused: Any
) -> None:
    folder = by_hand(tmp_path / "a", [[("a.jpg", jpeg()), ("a.json", content(1, **fields))]])
    words = [["stats"], ["answers", "--out", str(tmp_path / "answers.json")]]
    for command, *options in words:
        message = refused(main([command, str(folder), *options]), told)
        assert f"`vlds data verify {folder}` says more" in message


def test_a_smashed_header_is_not_passed_over(tmp_path: Path, refused: Any) -> None:
    folder = write_shards(tmp_path / "a", [record(n) for n in range(3)])
    overwrite(folder / FIRST, offsets(folder)[1], b"z")
    refused(main(["stats", str(folder)]), f"{folder / FIRST}, sample 1: ")


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

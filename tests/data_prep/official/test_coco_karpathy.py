"""COCO captions in Karpathy's split: restval, six captions, stray blanks, two picture folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.official.coco import parse_coco_karpathy
from data_prep.packing.pack import Options, pack
from tests.toys.files import write
from tests.toys.official import karpathy_row
from tests.toys.pictures import jpeg
from tests.toys.shards import packed

CAPTIONS = {
    "train": ["A dog.", " A dog\n on grass. "],
    "restval": [f"cat {number}" for number in range(6)],
    "val": ["a car\u2028at night", "  ", "a car", "one car", "cars"],
}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    images = []
    for number, (split, captions) in enumerate(CAPTIONS.items()):
        folder = "train2014" if split == "train" else "val2014"
        images.append(karpathy_row(number, split, folder, captions))
        write(tmp_path / folder / images[-1]["filename"], jpeg())
    write(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": images})
    return tmp_path


def test_train_is_train_and_restval(official: Path, tmp_path: Path) -> None:
    pack(parse_coco_karpathy(official, "train"), tmp_path / "out", Options())
    samples = packed(tmp_path / "out")
    assert sorted(samples) == ["500", "501"]
    assert [a["caption"] for a in samples["501"].annotations] == CAPTIONS["restval"]
    assert samples["500"].annotations[1] == {
        "id": "1",
        "caption": "A dog on grass.",
        "source": {"tokens": ["A", "dog", "on", "grass."]},
    }
    assert samples["501"].extra["source"]["split"] == "restval"


def test_stray_white_space_and_empty_captions(official: Path, tmp_path: Path) -> None:
    dataset = parse_coco_karpathy(official, "val")
    pack(dataset, tmp_path / "out", Options())
    captions = [a["caption"] for a in packed(tmp_path / "out")["502"].annotations]
    assert captions == ["a car at night", "a car", "one car", "cars"]
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    assert info["dropped"] == [{"id": "201", "reason": "empty caption"}]

"""RefCOCO, RefCOCO+ and RefCOCOg: expressions from a pickle, boxes, proposals."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.official.refcoco import RELEASES, parse_refcoco
from tests.toys.files import write
from tests.toys.official_sets import REFCOCO_REFS, REFCOCO_THINGS, write_refcoco
from vlds.runtime.pickles import read_plain


def test_expressions_have_the_box_of_their_thing(tmp_path: Path, pack_split: Any) -> None:
    samples = pack_split("refcoco --split testA", write_refcoco(tmp_path))
    assert sorted(samples) == ["501", "502"]
    assert [tuple(a.values())[:3] for a in samples["501"].annotations] == [
        ("0", "left man", REFCOCO_THINGS[10]),
        ("1", "man in blue", REFCOCO_THINGS[10]),
        ("10", "right one", REFCOCO_THINGS[11]),
    ]
    assert samples["501"].annotations[2]["source"] == {"ref_id": "1", "ann_id": "11"}
    boxes = [REFCOCO_THINGS[number] for number in (10, 11, 12)]
    assert samples["501"].extra["proposals"] == boxes


@pytest.mark.parametrize(("command", "folder"), [("refcoco-plus", "refcoco+"), ("refcocog", "")])
def test_the_other_releases(command: str, folder: str, tmp_path: Path, pack_split: Any) -> None:
    """The files may also lie in --src itself."""
    src = write_refcoco(tmp_path / "src", folder, RELEASES[command].splitters[0])
    assert list(pack_split(f"{command} --split val", src)) == ["502"]
    assert (tmp_path / f"out/{command.replace('-', '_')}-val-00000.tar").is_file()


def test_proposals_of_a_detector_and_rows_as_json(tmp_path: Path) -> None:
    src = write_refcoco(tmp_path)
    refs = write(tmp_path / "refs.json", REFCOCO_REFS)
    found = write(tmp_path / "dets.json", [{"image_id": 502, "box": [1, 1, 2, 2], "score": 0.5}])
    dataset = parse_refcoco(RELEASES["refcoco"], src, "val", "refcoco", "unc", refs, found)
    (sample,) = dataset.samples
    assert sample.extra == {"size": [[40, 24]], "proposals": [[1, 1, 2, 2]]}
    assert [path.name for path in dataset.files] == ["refs.json", "instances.json", "dets.json"]


def test_stored_features_keep_the_size_of_the_picture(tmp_path: Path, pack_split: Any) -> None:
    """So a box can be written in thousandths without the picture."""
    src, features = write_refcoco(tmp_path / "src"), tmp_path / "features"
    features.mkdir()
    for name in ("501", "502"):
        np.save(features / f"COCO_train2014_000000000{name}.npy", np.ones((3, 5), np.float16))
    (sample,) = pack_split("refcoco --split val", src, "--features", features).values()
    assert sample.images == ()
    assert sample.extra["size"] == [[40, 24]]
    assert main(["verify", str(tmp_path / "out"), "--workers", "1"]) == 0


def test_pictures_keep_the_size_that_boxes_are_measured_in(tmp_path: Path, refused: Any) -> None:
    places = ["--src", str(write_refcoco(tmp_path)), "--out", str(tmp_path / "out")]
    code = main(["refcoco", *places, "--split", "val", "--image-size", "16"])
    refused(code, "the boxes of refcoco are in pixels of the original")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    value = [{"sent": "caf\u00e9", "ref_id": 1 << 40, "box": (1.5, -2), "none": None, "yes": True}]
    path = write(tmp_path / "refs.p", pickle.dumps(value, protocol))
    assert read_plain(path, "") == [value[0] | {"box": [1.5, -2]}]


def test_the_texts_of_python_2(tmp_path: Path) -> None:
    """Its `str` is bytes, which Python 3 cannot write: the opcode U of protocol 1."""
    path = write(tmp_path / "refs.p", b"]q\x00U\x03dogq\x01a.")
    assert read_plain(path, "") == ["dog"]

"""RefCOCO, RefCOCO+ and RefCOCOg: expressions from a pickle, boxes, proposals."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.official.refcoco import RELEASES, parse_refcoco
from tests.toys.files import write
from tests.toys.official_sets import REFCOCO_REFS, REFCOCO_THINGS, write_refcoco
from tests.toys.shards import packed
from vlds.runtime.pickles import read_plain


def test_expressions_have_the_box_of_their_thing(tmp_path: Path) -> None:
    src, out = write_refcoco(tmp_path / "src"), tmp_path / "out"
    assert main(["refcoco", "--src", str(src), "--split", "testA", "--out", str(out)]) == 0
    samples = packed(out)
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
def test_the_other_releases(command: str, folder: str, tmp_path: Path) -> None:
    """The files may also lie in --src itself."""
    release = RELEASES[command]
    src = write_refcoco(tmp_path / "src", folder, release.splitters[0])
    out = tmp_path / "out"
    assert main([command, "--src", str(src), "--split", "val", "--out", str(out)]) == 0
    assert list(packed(out)) == ["502"]
    assert (out / f"{command.replace('-', '_')}-val-00000.tar").is_file()


def test_proposals_of_a_detector_and_rows_as_json(tmp_path: Path) -> None:
    src = write_refcoco(tmp_path)
    refs = write(tmp_path / "refs.json", REFCOCO_REFS)
    found = write(tmp_path / "dets.json", [{"image_id": 502, "box": [1, 1, 2, 2], "score": 0.5}])
    release = RELEASES["refcoco"]
    dataset = parse_refcoco(release, src, "val", "refcoco", "unc", refs, found)
    (sample,) = dataset.samples
    assert sample.extra == {"size": [[40, 24]], "proposals": [[1, 1, 2, 2]]}
    assert [path.name for path in dataset.files] == ["refs.json", "instances.json", "dets.json"]


def test_stored_features_keep_the_size_of_the_picture(tmp_path: Path) -> None:
    """So a box can be written in thousandths without the picture."""
    src = write_refcoco(tmp_path / "src")
    for name in ("501", "502"):
        array = np.ones((3, 5), np.float16)
        write_array(tmp_path / "features" / f"COCO_train2014_000000000{name}.npy", array)
    given = ["--src", str(src), "--split", "val", "--out", str(tmp_path / "out")]
    assert main(["refcoco", *given, "--features", str(tmp_path / "features")]) == 0
    (sample,) = packed(tmp_path / "out").values()
    assert sample.images == ()
    assert sample.extra["size"] == [[40, 24]]
    assert main(["verify", str(tmp_path / "out"), "--workers", "1"]) == 0


def write_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    np.save(path, array)


def test_pictures_keep_the_size_that_boxes_are_measured_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = write_refcoco(tmp_path / "src")
    given = ["--src", str(src), "--split", "val", "--out", str(tmp_path / "out")]
    assert main(["refcoco", *given, "--image-size", "16"]) == 2
    assert "the boxes of refcoco are in pixels of the original" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    value = [{"sent": "caf\u00e9", "ref_id": 1 << 40, "box": (1.5, -2), "none": None, "yes": True}]
    path = write(tmp_path / "refs.p", pickle.dumps(value, protocol))
    assert read_plain(path, "") == [value[0] | {"box": [1.5, -2]}]


def test_the_texts_of_python_2(tmp_path: Path) -> None:
    """Its `str` is bytes, which Python 3 cannot write: the opcode U of protocol 1."""
    path = write(tmp_path / "refs.p", b"]q\x00U\x03dogq\x01a.")
    assert read_plain(path, "") == ["dog"]

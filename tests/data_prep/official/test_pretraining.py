"""LXMERT's aggregate: data sets of each source, evaluation pictures left out, names of boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.cli import main
from data_prep.official.pretraining import converted_label
from tests.toys.files import write
from tests.toys.lxmert_files import DIM, NUM_BOXES, TRAIN, VAL, VG, features, write_aggregate
from tests.toys.pictures import jpeg
from tests.toys.shards import packed

Case = tuple[Path, list[str]]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """The files, and the options that name all but pictures or features."""
    src = tmp_path / "src"
    write_aggregate(src)
    return src, [
        "lxmert", "--annotations", str(src / "coco.json"), str(src / "vgnococo.json"),
        "--answers", str(src / "all_ans.json"), "--out", str(tmp_path / "out"),
        "--without-coco", str(src / "dataset_coco.json"), "--exclude", str(src / "more.txt"),
    ]  # fmt: skip


def test_each_source_is_a_data_set(case: Case, tmp_path: Path) -> None:
    src, options = case
    assert main([*options, *features(src)]) == 0
    out = tmp_path / "out"
    annotations = {
        name: {s.id: list(s.annotations) for s in packed(out / name).values()}
        for name in ("mscoco", "vg", "vqa", "regions")
    }
    names = ["grey cat", "red tree", "grey tree", "red cat"]
    label = {"yes": 1.0, "no": 0.3}
    asked = {"id": f"{TRAIN}_vqa_000", "question": "is the man old ?", "label": label}
    assert annotations == {
        "mscoco": {TRAIN: [{"id": f"{TRAIN}_mscoco_000", "caption": "a man on a wave"}]},
        "vg": {VG: [{"id": f"{VG}_vg_000", "caption": "a tree near it"}]},
        "vqa": {TRAIN: [asked]},
        "regions": {
            image_id: [{"id": f"{image_id}_regions", "regions": names}] for image_id in (TRAIN, VG)
        },
    }
    assert not (out / "visual7w").exists()
    info = json.loads((out / "regions" / "dataset.json").read_text())
    assert info["kind"] == "regions"
    (sample,) = packed(out / "vqa").values()
    assert sample.features[0][0, DIM:].tolist() == pytest.approx([0.1, 0.3, 0.2, 0.45], abs=1e-3)
    assert info["features"] == {"tokens": NUM_BOXES, "dim": DIM, "encoder": None, "boxes": True}


def test_evaluation_pictures_are_left_out_and_listed(case: Case, tmp_path: Path) -> None:
    src, options = case
    for name in (f"train2014/{TRAIN}", f"val2014/{VAL}", f"VG_100K/{VG}", "VG_100K/77"):
        write(src / f"{name}.jpg", jpeg())
    assert main([*options, "--images", str(src)]) == 0
    out = tmp_path / "out"
    assert (out / "excluded.txt").read_text().splitlines() == ["77", VAL]
    shown = {s.id for path in out.iterdir() if path.is_dir() for s in packed(path).values()}
    assert shown == {TRAIN, VG}
    assert not (out / "regions").exists()
    dropped = json.loads((out / "mscoco" / "dataset.json").read_text())["dropped"]
    assert {entry["id"]: entry["reason"] for entry in dropped} == {
        f"{TRAIN}_mscoco_001": "the same sentence was said of the picture before",
        f"{TRAIN}_mscoco_002": "2 words or fewer",
        VAL: "evaluation picture",
        "77": "evaluation picture",
    }


def test_answers_of_one_name_add_up() -> None:
    """In VL-T5's code the last of them replaces the others."""
    answers = {"man", "yes"}
    label = converted_label({"a man": 0.3, "Man.": 0.3, "odd": 1.0}, answers)
    assert label == {"man": 0.6}
    assert converted_label({"yes": 0.9, "Yes": 0.6}, answers) == {"yes": 1.0}


def test_validation_keeps_karpathys_val_pictures(case: Case, tmp_path: Path) -> None:
    src, options = case
    for name in (f"train2014/{TRAIN}", f"val2014/{VAL}", f"VG_100K/{VG}"):
        write(src / f"{name}.jpg", jpeg())
    assert main([*options, "--images", str(src), "--split", "val"]) == 0
    assert set(packed(tmp_path / "out" / "mscoco")) == {TRAIN, VAL}
    assert (tmp_path / "out" / "excluded.txt").read_text() == "77\n"

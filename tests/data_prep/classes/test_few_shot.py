"""The eleven data sets of few-shot classification, in the layouts of CoOp's DATASETS.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.classes.few_shot import LAYOUTS, Layout
from data_prep.cli import main
from tests.toys.class_folders import classes, labels
from tests.toys.few_shot_sets import below, write_aircraft, write_imagenet, write_zhou


def pack(command: str, src: Path, split: str, out: Path) -> int:
    return main([command, "--src", str(src), "--split", split, "--out", str(out)])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.command for layout in LAYOUTS])
def test_a_split_of_coop(layout: Layout, tmp_path: Path) -> None:
    src = write_zhou(tmp_path / layout.folder, layout)
    for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3,))):
        out = tmp_path / split
        assert pack(layout.command, src, split, out) == 0
        # In the order of the numbers, and as words.
        assert classes(out) == ("african hunting dog", "Zebra")
        names = enumerate(("african hunting dog", "Zebra"))
        wanted = {f"{below(layout)}class {n}/{m}.jpg": name for n, name in names for m in numbers}
        assert labels(out) == wanted


def test_aircraft_has_lists_of_its_own(tmp_path: Path, refused: Any) -> None:
    src = write_aircraft(tmp_path / "fgvc_aircraft")
    assert pack("fgvc-aircraft", src, "val", tmp_path / "val") == 0
    assert classes(tmp_path / "val") == ("F/A-18", "707-320", "Cessna 172")
    wanted = {"1000.jpg": "707-320", "1001.jpg": "Cessna 172", "1002.jpg": "F/A-18"}
    assert labels(tmp_path / "val") == wanted
    with (src / "images_variant_test.txt").open("a") as file:
        file.write("2000 Boeing\n")
    code = pack("fgvc-aircraft", src, "test", tmp_path / "test")
    refused(code, "images_variant_test.txt, line 4: 'Boeing' is none of the variants")


def test_imagenet_has_folders_of_synsets(tmp_path: Path, refused: Any) -> None:
    src = write_imagenet(tmp_path / "imagenet")
    for split in ("train", "val"):
        assert pack("imagenet", src, split, tmp_path / split) == 0
        # Labels are unique: two of CLIP's names stand for two classes each.
        assert classes(tmp_path / split) == ("tench", "missile", "missile (n04008634)")
    assert labels(tmp_path / "val") == {
        "n01440764/ILSVRC2012_val_0.JPEG": "tench",
        "n03773504/ILSVRC2012_val_1.JPEG": "missile",
        "n04008634/ILSVRC2012_val_2.JPEG": "missile (n04008634)",
    }
    names = src / "classnames.txt"
    names.write_text("".join(names.read_text().splitlines(keepends=True)[:2]))
    code = pack("imagenet", src, "val", tmp_path / "again")
    refused(code, "n04008634 is a folder, and classnames.txt lacks it")

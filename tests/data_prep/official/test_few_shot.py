"""The eleven data sets of few-shot classification, in the layouts of CoOp's DATASETS.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.cli import main
from data_prep.official.few_shot import LAYOUTS, SPLITS, Layout
from tests.toys.class_folders import classes, labels, photo
from tests.toys.files import write

NAMES = ["african_hunting_dog", "Zebra"]
"""By number; neither in the order of the alphabet."""


def write_zhou(folder: Path, layout: Layout) -> Path:
    """Four pictures of each of two classes: two to train on, one in each other split."""
    # StanfordCars names its pictures from the folder above them.
    below = "" if layout.pictures else "cars_train/"
    rows: dict[str, list[list[object]]] = {split: [] for split in SPLITS}
    for number, split in enumerate(("train", "train", "val", "test")):
        for label in (1, 0):
            picture = f"{below}class {label}/{number}.jpg"
            write(folder / layout.pictures / picture, photo(10 * number + label))
            rows[split].append([picture, label, NAMES[label]])
    (folder / layout.listing).write_text(json.dumps(rows), "utf-8")
    return folder


def pack(command: str, src: Path, split: str, out: Path) -> int:
    return main([command, "--src", str(src), "--split", split, "--out", str(out)])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.command for layout in LAYOUTS])
def test_a_split_of_coop(layout: Layout, tmp_path: Path) -> None:
    src = write_zhou(tmp_path / layout.folder, layout)
    below = "" if layout.pictures else "cars_train/"
    for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (3,))):
        out = tmp_path / split
        assert pack(layout.command, src, split, out) == 0
        # In the order of the numbers, and as words.
        assert classes(out) == ("african hunting dog", "Zebra")
        names = enumerate(("african hunting dog", "Zebra"))
        wanted = {f"{below}class {n}/{m}.jpg": name for n, name in names for m in numbers}
        assert labels(out) == wanted


def write_aircraft(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("F/A-18\n707-320\nCessna 172\n")
    for number, split in enumerate(SPLITS):
        lines = []
        for index, variant in enumerate(("707-320", "Cessna 172", "F/A-18")):
            picture = f"{number}00{index}"
            write(folder / "images" / f"{picture}.jpg", photo(int(picture)))
            lines.append(f"{picture} {variant}\n")
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))
    return folder


def test_aircraft_has_lists_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = write_aircraft(tmp_path / "fgvc_aircraft")
    assert pack("fgvc-aircraft", src, "val", tmp_path / "val") == 0
    assert classes(tmp_path / "val") == ("F/A-18", "707-320", "Cessna 172")
    wanted = {"1000.jpg": "707-320", "1001.jpg": "Cessna 172", "1002.jpg": "F/A-18"}
    assert labels(tmp_path / "val") == wanted
    with (src / "images_variant_test.txt").open("a") as file:
        file.write("2000 Boeing\n")
    assert pack("fgvc-aircraft", src, "test", tmp_path / "test") == 2
    assert "images_variant_test.txt, line 4: 'Boeing' is none of the variants" in (
        capsys.readouterr().err
    )


def test_imagenet_has_folders_of_synsets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = tmp_path / "imagenet"
    names = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile"}
    for number, synset in enumerate(names):
        write(src / "images/train" / synset / f"{synset}_1.JPEG", photo(number))
        write(src / "images/val" / synset / f"ILSVRC2012_val_{number}.JPEG", photo(10 + number))
    lines = [f"{synset} {name}\n" for synset, name in names.items()]
    (src / "classnames.txt").write_text("".join(lines))
    for split in ("train", "val"):
        assert pack("imagenet", src, split, tmp_path / split) == 0
        # Labels are unique: two of CLIP's names stand for two classes each.
        assert classes(tmp_path / split) == ("tench", "missile", "missile (n04008634)")
    assert labels(tmp_path / "val") == {
        "n01440764/ILSVRC2012_val_0.JPEG": "tench",
        "n03773504/ILSVRC2012_val_1.JPEG": "missile",
        "n04008634/ILSVRC2012_val_2.JPEG": "missile (n04008634)",
    }
    (src / "classnames.txt").write_text("".join(lines[:2]))
    assert pack("imagenet", src, "val", tmp_path / "again") == 2
    assert "n04008634 is a folder, and classnames.txt lacks it" in capsys.readouterr().err

"""The eleven data sets of few-shot classification, small, in the layouts of CoOp's DATASETS.md."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.classes.few_shot import SPLITS, Layout
from tests.toys.class_folders import photo
from tests.toys.files import write

NAMES = ["african_hunting_dog", "Zebra"]
"""By number; neither in the order of the alphabet."""
SYNSETS = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile"}


def below(layout: Layout) -> str:
    """Folder that the list's names begin with: StanfordCars's name one."""
    return "" if layout.pictures else "cars_train/"


def write_zhou(folder: Path, layout: Layout) -> Path:
    """Four pictures of each of two classes: two to train on, one in each other split."""
    rows: dict[str, list[list[object]]] = {split: [] for split in SPLITS}
    for number, split in enumerate(("train", "train", "val", "test")):
        for label in (1, 0):
            picture = f"{below(layout)}class {label}/{number}.jpg"
            write(folder / layout.pictures / picture, photo(10 * number + label))
            rows[split].append([picture, label, NAMES[label]])
    (folder / layout.listing).write_text(json.dumps(rows), "utf-8")
    return folder


def write_aircraft(folder: Path) -> Path:
    """Three variants, a picture of each in every split."""
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


def write_imagenet(folder: Path) -> Path:
    """Three synsets, of which two have one name."""
    for number, synset in enumerate(SYNSETS):
        write(folder / "images/train" / synset / f"{synset}_1.JPEG", photo(number))
        write(folder / "images/val" / synset / f"ILSVRC2012_val_{number}.JPEG", photo(10 + number))
    lines = [f"{synset} {name}\n" for synset, name in SYNSETS.items()]
    (folder / "classnames.txt").write_text("".join(lines))
    return folder

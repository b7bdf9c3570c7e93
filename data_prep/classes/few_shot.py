"""The eleven data sets of few-shot classification (CoOp, Zhou et al. 2022,
https://arxiv.org/abs/2109.01134), in the splits that its authors publish and Tip-Adapter, SimNL and
APoLLo use. The folders are those of its DATASETS.md.

Nine of them come with a `split_zhou_NAME.json`, which lists the pictures of all splits. The
exceptions: FGVCAircraft has lists of its own, and ImageNet folders of synsets and classnames.txt.

Names of classes become words, as prompts need them: `american_bulldog` is "american bulldog". All
splits have the classes in the order of their numbers, by which base and new classes are halved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..json_rows import open_text
from ..official.published import Download, OfficialSet
from ..packing.source import SourceSet
from .class_set import ClassSource, class_sets
from .forms import (
    ListedPicture,
    SplitFile,
    read_folders,
    read_lists,
    shown_pictures,
    tell_left_out,
)

ZHOU = "https://drive.google.com/file/d/"
"""Where CoOp's authors keep their files."""
AIRCRAFT = "images_variant_{split}.txt"
VARIANTS = "variants.txt"
CLASS_NAMES = "classnames.txt"
SPLITS = ("train", "val", "test")


class Layout(NamedTuple):
    """One of the data sets."""

    title: str
    command: str
    folder: str
    """Below the folder of all data, as CoOp calls it."""
    pictures: str
    """Folder in it that the list's names begin at; "": itself."""
    listing: str
    """Its `split_zhou_NAME.json`."""
    listing_id: str
    """Of the list, among the files of CoOp's authors."""
    downloads: Mapping[str, str]
    """Folder of pictures in `folder` -> address."""
    licence: str = "not stated"


def parse_zhou(layout: Layout, src: Path, split: str, name: str) -> SourceSet:
    """Read a split of a data set with a `split_zhou_NAME.json`.

    Errors: ValueError that names the row, and the cure.
    """
    listing = src / layout.listing
    source = read_lists([SplitFile("", listing)], src / layout.pictures)
    words = {key: label.replace("_", " ") for key, label in source.labels.items()}
    return of_split(replace(source, labels=words), split, name)


def parse_aircraft(src: Path, split: str, name: str) -> SourceSet:
    """Read a split of FGVCAircraft by its variants.

    Errors: ValueError for a line without a known variant.
    """
    variants = lines_of(src / VARIANTS)
    keys = {variant: f"{number:04d}" for number, variant in enumerate(variants)}
    entries, files = [], [src / VARIANTS]
    for part in SPLITS:
        file = src / AIRCRAFT.format(split=part)
        files.append(file)
        for number, line in enumerate(lines_of(file), 1):
            # 1025794 707-320 -> images/1025794.jpg
            picture, _, variant = line.partition(" ")
            if variant not in keys:
                raise ValueError(
                    f"{file}, line {number}: {variant!r} is none of the variants in {VARIANTS}; "
                    "restore the official files"
                )
            place = f"{file.name}, line {number}"
            entries.append(ListedPicture(f"{picture}.jpg", keys[variant], part, place))
    pictures, _ = shown_pictures(entries, src / "images")
    labels = {key: variant for variant, key in keys.items()}
    return of_split(ClassSource(pictures, tuple(files), labels), split, name)


def parse_imagenet(src: Path, split: str, name: str) -> SourceSet:
    """Read ImageNet's `train` or `val`, whose pictures lie in folders of synsets.

    Two classes that have one name are told apart by the synset of the second.

    Errors: ValueError if the folders are not those of classnames.txt.
    """
    file = src / CLASS_NAMES
    names: dict[str, str] = {}
    for line in lines_of(file):
        # n01440764 tench
        synset, _, words = line.partition(" ")
        taken = {other.casefold() for other in names.values()}
        names[synset] = f"{words} ({synset})" if words.casefold() in taken else words
    left_out: Counter[str] = Counter()
    folder = src / "images" / split
    source = read_folders(folder, "classes", split, left_out)
    tell_left_out(left_out)
    found = {picture.key for picture in source.pictures}
    if odd := sorted(found ^ names.keys()):
        raise ValueError(
            f"{folder}: {odd[0]} is {'a folder' if odd[0] in found else 'missing'}, and "
            f"{CLASS_NAMES} {'lacks' if odd[0] in found else 'lists'} it; both must have the same "
            f"{len(names):,} classes"
        )
    return of_split(replace(source, files=(file,), labels=names), split, name)


def of_split(source: ClassSource, split: str, name: str) -> SourceSet:
    """A split of a data set, with the classes of all.

    Errors: ValueError if the source lists no picture of it.
    """
    found = {dataset.split: dataset for dataset in class_sets(source, name, None)}
    if split not in found:
        raise ValueError(f"--split {split}: {source.files[0]} lists {', '.join(found)} alone")
    return found[split]


def lines_of(file: Path) -> list[str]:
    """The lines of a text, without blank ones."""
    with open_text(file) as opened:
        return [line for line in map(str.strip, opened) if line]


LAYOUTS = (
    Layout(
        "Caltech101", "caltech101", "caltech-101", "101_ObjectCategories",
        "split_zhou_Caltech101.json", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN",
        {"101_ObjectCategories": "http://www.vision.caltech.edu/Image_Datasets/Caltech101/101_ObjectCategories.tar.gz"},
        "CC BY 4.0",
    ),
    Layout(
        "OxfordPets", "oxford-pets", "oxford_pets", "images", "split_zhou_OxfordPets.json",
        "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs",
        {"images": "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz"},
        "CC BY-SA 4.0",
    ),
    Layout(
        "StanfordCars", "stanford-cars", "stanford_cars", "", "split_zhou_StanfordCars.json",
        "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT",
        {
            "cars_train": "http://ai.stanford.edu/~jkrause/car196/cars_train.tgz",
            "cars_test": "http://ai.stanford.edu/~jkrause/car196/cars_test.tgz",
        },
    ),
    Layout(
        "Flowers102", "flowers102", "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json",
        "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT",
        {"jpg": "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz"},
    ),
    Layout(
        "Food101", "food101", "food-101", "images", "split_zhou_Food101.json",
        "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl",
        {"images": "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"},
    ),
    Layout(
        "SUN397", "sun397", "sun397", "SUN397", "split_zhou_SUN397.json",
        "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq",
        {"SUN397": "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"},
    ),
    Layout(
        "DTD", "dtd", "dtd", "images", "split_zhou_DescribableTextures.json",
        "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x",
        {"images": "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"},
    ),
    Layout(
        "EuroSAT", "eurosat", "eurosat", "2750", "split_zhou_EuroSAT.json",
        "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o",
        {"2750": "http://madm.dfki.de/files/sentinel/EuroSAT.zip"},
        "MIT",
    ),
    Layout(
        "UCF101", "ucf101", "ucf101", "UCF-101-midframes", "split_zhou_UCF101.json",
        "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y",
        {"UCF-101-midframes": f"{ZHOU}10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O/view"},
    ),
)  # fmt: skip


def class_set(
    title: str,
    command: str,
    folder: str,
    needs: Mapping[str, tuple[Download, ...]],
    parse: Callable[..., SourceSet],
) -> OfficialSet:
    """One of the data sets as a command."""
    return OfficialSet(
        title=title,
        command=command,
        folders=f"--src {folder}",
        needs=needs,
        parse=parse,
        holds=f"{folder}/, as CoOp's DATASETS.md lays it out",
    )


def needs_of(layout: Layout) -> dict[str, tuple[Download, ...]]:
    """The list and the pictures, which serve all splits."""
    gives = f"{layout.folder}/{{}}"
    files = (
        Download(gives.format(layout.listing), f"{ZHOU}{layout.listing_id}/view"),
        *(
            Download(gives.format(part), address, licence=layout.licence)
            for part, address in layout.downloads.items()
        ),
    )
    return dict.fromkeys(SPLITS, files)


AIRCRAFT_FILES = tuple(
    Download(
        f"fgvc_aircraft/{gives}",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        licence="non-commercial research",
    )
    for gives in ("images", VARIANTS, *(AIRCRAFT.format(split=split) for split in SPLITS))
)
NAMES_FILE = Download(f"imagenet/{CLASS_NAMES}", f"{ZHOU}1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF/view")
IMAGENET_FILES = {
    split: (
        NAMES_FILE,
        Download(
            f"imagenet/images/{split}",
            "https://image-net.org/",
            licence="by request, for non-commercial research",
        ),
    )
    for split in ("train", "val")
}
FEW_SHOT_SETS = (
    *(
        class_set(each.title, each.command, each.folder, needs_of(each), partial(parse_zhou, each))
        for each in LAYOUTS
    ),
    class_set(
        "FGVCAircraft", "fgvc-aircraft", "fgvc_aircraft",
        dict.fromkeys(SPLITS, AIRCRAFT_FILES), parse_aircraft,
    ),
    class_set("ImageNet", "imagenet", "imagenet", IMAGENET_FILES, parse_imagenet),
)  # fmt: skip


def add_command(commands: Any) -> None:
    """Add the commands of all eleven."""
    for each in FEW_SHOT_SETS:
        each.add_command(commands)

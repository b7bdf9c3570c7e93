"""COCO captions, in COCO's own split and in Karpathy's.

COCO publishes `captions_{train,val}{2014,2017}.json`; its test split has no captions. Karpathy's
`dataset_coco.json` splits the pictures of train2014 and val2014.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..json_rows import JsonRow, read_object
from ..packing.source import Annotation, Dropped, SourceSample, SourceSet, find_file
from ..packing.splits import SPLIT_BY_IMAGE
from .published import (
    CC_BY,
    COCO,
    KARPATHY_COCO,
    Download,
    OfficialSet,
    other_file,
)

YEARS = ("2014", "2017")
KARPATHY_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "restval"),
    "val": ("val",),
    "test": ("test",),
}
"""Our split -> Karpathy's; the literature trains on train and restval together."""

ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"


def parse_coco_captions(
    src: Path,
    split: str,
    name: str = "coco_captions",
    year: str = YEARS[0],
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read one of COCO's splits; a picture of test has one annotation without a caption."""
    stem = "image_info" if split == "test" else "captions"
    path = annotations or find_file(src, ("annotations", ""), f"{stem}_{split}{year}.json")
    content = read_object(path)
    # Official test files have no "annotations"; a user's own test file may have them.
    captioned = split != "test" or bool(content.fields.get("annotations"))
    captions: dict[str, list[Annotation]] = defaultdict(list)
    dropped = []
    for row in content.rows("annotations", "annotation") if captioned else ():
        caption = _caption(row, "id", "caption", "image_id")
        if caption["caption"]:
            captions[row.id("image_id")].append(caption)
        else:
            dropped.append(Dropped(caption["id"], "empty caption"))
    part = f"{split}{year}"
    places = (part, f"images/{part}", "images", "")
    samples = []
    for row in content.rows("images", "image"):
        image_id = row.id("id")
        # Taken out: what is left at the end belongs to no picture.
        of_picture = captions.pop(image_id, []) if captioned else [{"id": image_id}]
        picture = find_file(images or src, places, row.text("file_name"))
        samples.append(SourceSample(image_id, (picture,), of_picture, row.rest("id", "file_name")))
    dropped += [
        Dropped(caption["id"], "picture not in the file")
        for of_picture in captions.values()
        for caption in of_picture
    ]
    return SourceSet(name, "caption", split, (path,), samples, tuple(dropped))


def parse_coco_karpathy(
    src: Path,
    split: str,
    name: str = "coco",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read one of Karpathy's splits, with all captions of a picture (five to seven)."""
    path = annotations or src / "dataset_coco.json"

    def places(row: JsonRow) -> tuple[str, ...]:
        part = row.text("filepath") if "filepath" in row else ""
        return part, f"images/{part}", ""

    return read_karpathy(path, split, name, images or src, lambda row: row.id("cocoid"), places)


def read_karpathy(
    path: Path,
    split: str,
    name: str,
    images: Path,
    sample_id: Callable[[JsonRow], str],
    places: Callable[[JsonRow], Sequence[str]],
) -> SourceSet:
    """Read a split of a file in Karpathy's form; `places` are the folders below `images` that may
    hold a row's picture."""
    samples, dropped = [], []
    # A picture whose captions are all empty stays, and packing drops it: it has no annotation.
    for row in _karpathy_rows(path, split):
        captions = []
        for sentence in row.rows("sentences", "sentence"):
            caption = _caption(sentence, "sentid", "raw", "imgid")
            if caption["caption"]:
                captions.append(caption)
            else:
                dropped.append(Dropped(caption["id"], "empty caption"))
        picture = find_file(images, places(row), row.text("filename"))
        extra = row.rest("sentences", "sentids", "filename", "cocoid")
        samples.append(SourceSample(sample_id(row), (picture,), captions, extra))
    return SourceSet(name, "caption", split, (path,), samples, tuple(dropped))


def karpathy_ids(path: Path, split: str) -> set[str]:
    """COCO's ids of the pictures in one of Karpathy's splits."""
    return {row.id("cocoid") for row in _karpathy_rows(path, split)}


def _karpathy_rows(path: Path, split: str) -> Iterator[JsonRow]:
    for row in read_object(path).rows("images", "image"):
        if row.value("split") in KARPATHY_SPLITS[split]:
            yield row


def _caption(row: JsonRow, id_field: str, text_field: str, image_field: str) -> Annotation:
    """A caption, cleaned of the stray blanks and line breaks with which it is published."""
    caption = {"id": row.id(id_field), "caption": row.line(text_field)}
    return row.annotate(caption, id_field, text_field, image_field)


KARPATHY = OfficialSet(
    title="COCO captions, Karpathy's split",
    command="coco-karpathy",
    name="coco",
    folders="--src COCO",
    needs={
        split: (KARPATHY_COCO, *(COCO[part] for part in parts))
        for split, parts in {
            "train": ("train2014", "val2014"),  # restval is in val2014
            "val": ("val2014",),
            "test": ("val2014",),
        }.items()
    },
    parse=parse_coco_karpathy,
    options={"--annotations": other_file("another JSON file")},
)
CAPTIONS = OfficialSet(
    title="COCO captions, its own split",
    command="coco-captions",
    name="coco_captions",
    folders="--src COCO",
    splits=("train", "val", "test"),
    needs={
        split: (
            Download(f"COCO/annotations/captions_{split}2014.json", ANNOTATIONS, "253 MB", CC_BY),
            COCO[f"{split}2014"],
        )
        for split in ("train", "val")
    },
    parse=parse_coco_captions,
    options={
        "--year": {"choices": YEARS, "default": YEARS[0], "help": f"default: {YEARS[0]}"},
        "--annotations": other_file("another JSON file"),
        "--split-by-image": SPLIT_BY_IMAGE,
    },
)

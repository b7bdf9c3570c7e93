"""Captions of Flickr30k in Karpathy's split, five a picture: 29,000, 1,014 and 1,000 pictures."""

from __future__ import annotations

from pathlib import Path

from ..packing.source import SourceSet
from .coco import read_karpathy
from .published import (
    FLICKR30K,
    KARPATHY_ADDRESS,
    Download,
    OfficialSet,
    other_file,
)

PICTURE_FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "")


def parse_flickr30k(
    src: Path,
    split: str,
    name: str = "flickr30k",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; a sample's id is its picture's name, as in SNLI-VE."""
    path = annotations or src / "dataset_flickr30k.json"
    return read_karpathy(
        path,
        split,
        name,
        images or src,
        # 1000092795.jpg -> 1000092795
        lambda row: Path(row.text("filename")).stem,
        lambda row: PICTURE_FOLDERS,
    )


FLICKR30K_CAPTIONS = OfficialSet(
    title="Flickr30k",
    command="flickr30k",
    folders="--src FLICKR30K",
    needs=dict.fromkeys(
        ("train", "val", "test"),
        (Download("FLICKR30K/dataset_flickr30k.json", KARPATHY_ADDRESS), FLICKR30K),
    ),
    parse=parse_flickr30k,
    options={"--annotations": other_file("another JSON file")},
)

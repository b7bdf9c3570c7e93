"""Captions of Flickr30k in Karpathy's split, five a picture: 29,000, 1,014 and 1,000 pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.command import official_command, packs
from data_prep.official.coco import read_karpathy
from data_prep.official.published import FLICKR30K, KARPATHY_ADDRESS, UNKNOWN, Download, Published
from data_prep.packing.source import SourceSet

SPLITS = ("train", "val", "test")
PICTURE_FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "")

PUBLISHED = (
    Published(
        "Flickr30k",
        "flickr30k --src FLICKR30K",
        dict.fromkeys(
            SPLITS,
            (
                Download("FLICKR30K/dataset_flickr30k.json", KARPATHY_ADDRESS, "", UNKNOWN),
                FLICKR30K,
            ),
        ),
    ),
)


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
        lambda row: Path(row.text("filename")).stem,
        lambda row: PICTURE_FOLDERS,
    )


def add_command(commands: Any) -> None:
    """Add `flickr30k`."""
    summary = "Flickr30k: five captions a picture, in Karpathy's split"
    parser = official_command(commands, "flickr30k", summary, SPLITS)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another JSON file")
    packs(parser, parse_flickr30k)

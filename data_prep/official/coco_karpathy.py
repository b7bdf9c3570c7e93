"""COCO captions in Karpathy's split: `dataset_coco.json`, pictures of train2014 and val2014."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    first_existing,
    read_json,
    rest,
    take,
    take_id,
    take_list,
    take_text,
    with_source,
)

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "restval"),
    "val": ("val",),
    "test": ("test",),
}
"""Everybody trains on train and restval together."""


def parse_coco_karpathy(
    src: Path,
    split: str,
    name: str = "coco",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; all captions of a picture are kept, be they five or seven."""
    path = annotations or src / "dataset_coco.json"
    samples, dropped = [], []
    for number, row in enumerate(take_list(read_json(path), "images", str(path))):
        place = f"{path}, image {number}"
        if take(row, "split", place) not in SPLITS[split]:
            continue
        captions = []
        for sentence in take_list(row, "sentences", place):
            caption = _annotation(sentence, place)
            if caption["caption"]:
                captions.append(caption)
            else:
                dropped.append({"id": caption["id"], "reason": "empty caption"})
        extra = rest(row, "sentences", "sentids", "filename", "cocoid")
        picture = _picture(images or src, row, place)
        samples.append(SourceSample(take_id(row, "cocoid", place), picture, captions, extra))
    return SourceSet(name, "caption", split, (path,), samples, tuple(dropped))


def image_ids(path: Path, split: str) -> set[str]:
    """COCO's ids of the pictures in a split."""
    return {
        take_id(row, "cocoid", f"{path}, image {number}")
        for number, row in enumerate(take_list(read_json(path), "images", str(path)))
        if take(row, "split", f"{path}, image {number}") in SPLITS[split]
    }


def _annotation(sentence: Mapping[str, Any], place: str) -> Annotation:
    """Captions are published with stray blanks and line breaks."""
    annotation = {
        "id": take_id(sentence, "sentid", place),
        "caption": clean(take_text(sentence, "raw", place)),
    }
    return with_source(annotation, rest(sentence, "sentid", "raw", "imgid"))


def _picture(folder: Path, row: Mapping[str, Any], place: str) -> tuple[Path]:
    name = take_text(row, "filename", place)
    part = take_text(row, "filepath", place) if "filepath" in row else ""
    return (first_existing([folder / part / name, folder / "images" / part / name, folder / name]),)


def add_command(commands: Any) -> None:
    """Add `coco-karpathy`."""
    parser = official_command(
        commands,
        "coco-karpathy",
        "COCO captions in Karpathy's split; train includes restval",
        SPLITS,
        name="coco",
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another JSON file")

    def run(args: argparse.Namespace) -> None:
        dataset = parse_coco_karpathy(
            args.src, args.split, args.name, args.annotations, args.images
        )
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

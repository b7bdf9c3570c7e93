"""COCO captions in Karpathy's split: `dataset_coco.json`, pictures of train2014 and val2014."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.pack import pack
from data_prep.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    first_existing,
    read_json,
    rest,
    take,
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
    for row in take(read_json(path), "images", str(path)):
        if take(row, "split", str(path)) not in SPLITS[split]:
            continue
        captions = []
        for sentence in take(row, "sentences", f"{path}, image {row.get('filename')}"):
            caption = _annotation(sentence, str(path))
            if caption["caption"]:
                captions.append(caption)
            else:
                dropped.append({"id": caption["id"], "reason": "empty caption"})
        extra = rest(row, "sentences", "sentids", "filename", "cocoid")
        picture = _picture(images or src, row, str(path))
        samples.append(SourceSample(str(take(row, "cocoid", str(path))), picture, captions, extra))
    return SourceSet(name, "caption", split, (path,), samples, tuple(dropped))


def image_ids(path: Path, split: str) -> set[str]:
    """COCO's ids of the pictures in a split."""
    rows = take(read_json(path), "images", str(path))
    return {str(row["cocoid"]) for row in rows if row["split"] in SPLITS[split]}


def _annotation(sentence: Mapping[str, Any], place: str) -> Annotation:
    """Captions are published with stray blanks and line breaks."""
    annotation = {
        "id": str(take(sentence, "sentid", place)),
        "caption": clean(take(sentence, "raw", place)),
    }
    return with_source(annotation, rest(sentence, "sentid", "raw", "imgid"))


def _picture(folder: Path, row: Mapping[str, Any], place: str) -> tuple[Path]:
    name, part = take(row, "filename", place), row.get("filepath", "")
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

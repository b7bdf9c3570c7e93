"""COCO captions as COCO publishes them: `captions_{train,val}{2014,2017}.json`; test has none."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.packing.pack import pack
from data_prep.packing.pack_splits import pack_splits
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    first_existing,
    read_json,
    rest,
    take_id,
    take_list,
    take_text,
    with_source,
)
from data_prep.packing.split import add_split_by_image, split_of

SPLITS = ("train", "val", "test")
YEARS = ("2014", "2017")


def parse_coco_captions(
    src: Path,
    split: str,
    name: str = "coco_captions",
    year: str = YEARS[0],
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; a picture of the test split has one annotation without a caption."""
    stem = "image_info" if split == "test" else "captions"
    file = f"{stem}_{split}{year}.json"
    path = annotations or first_existing([src / "annotations" / file, src / file])
    content = read_json(path)
    rows = take_list(content, "images", str(path))
    # Files of test splits have pictures alone; captions that are there all the same are kept.
    captioned = split != "test" or bool(content.get("annotations"))
    told, dropped = _captions(content, str(path)) if captioned else ({}, [])
    samples = []
    for number, row in enumerate(rows):
        place = f"{path}, image {number}"
        image_id = take_id(row, "id", place)
        found = told.pop(image_id, []) if captioned else [{"id": image_id}]
        picture = _picture(images or src, f"{split}{year}", take_text(row, "file_name", place))
        samples.append(SourceSample(image_id, (picture,), found, rest(row, "id", "file_name")))
    dropped += [
        {"id": annotation["id"], "reason": "picture not in the file"}
        for found in told.values()
        for annotation in found
    ]
    return SourceSet(name, "caption", split, (path,), samples, tuple(dropped))


def _captions(
    content: Mapping[str, Any], path: str
) -> tuple[dict[str, list[Annotation]], list[dict[str, str]]]:
    """Picture -> its captions; and those that are empty."""
    told: dict[str, list[Annotation]] = {}
    dropped = []
    for number, row in enumerate(take_list(content, "annotations", path)):
        annotation = _annotation(row, f"{path}, annotation {number}")
        if annotation["caption"]:
            image_id = take_id(row, "image_id", f"{path}, annotation {number}")
            told.setdefault(image_id, []).append(annotation)
        else:
            dropped.append({"id": annotation["id"], "reason": "empty caption"})
    return told, dropped


def _annotation(row: Mapping[str, Any], place: str) -> Annotation:
    annotation = {
        "id": take_id(row, "id", place),
        "caption": clean(take_text(row, "caption", place)),
    }
    return with_source(annotation, rest(row, "id", "image_id", "caption"))


def _picture(folder: Path, part: str, name: str) -> Path:
    parts = (folder / part, folder / "images" / part, folder / "images", folder)
    return first_existing([place / name for place in parts])


def add_command(commands: Any) -> None:
    """Add `coco-captions`."""
    parser = official_command(
        commands, "coco-captions", "COCO captions in COCO's own split", SPLITS, name="coco_captions"
    )
    parser.add_argument("--year", choices=YEARS, default=YEARS[0], help=f"default: {YEARS[0]}")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another JSON file")
    add_split_by_image(parser)

    def run(args: argparse.Namespace) -> None:
        split = split_of(args)
        dataset = parse_coco_captions(
            args.src, args.split, args.name, args.year, args.annotations, args.images
        )
        if split is None:
            pack(dataset, args.out, shard_options(args))
        else:
            pack_splits([dataset], split, args.out, shard_options(args), apart=True)

    parser.set_defaults(run=run)

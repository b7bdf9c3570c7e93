"""COCO captions in COCO's own split: `captions_{train,val}{2014,2017}.json`; test has none."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.json_rows import JsonRow, read_object
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    find_file,
    with_source,
)
from data_prep.packing.split import add_split_by_image, pack_splits, split_of

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
    path = annotations or find_file(src, ("annotations", ""), f"{stem}_{split}{year}.json")
    content = read_object(path)
    # Official test files have no "annotations"; a user's own test file may have them.
    captioned = split != "test" or bool(content.fields.get("annotations"))
    captions, dropped = _captions(content) if captioned else ({}, [])
    part = f"{split}{year}"
    places = (part, f"images/{part}", "images", "")
    samples = []
    for row in content.rows("images", "image"):
        image_id = row.id("id")
        found = captions.pop(image_id, []) if captioned else [{"id": image_id}]
        picture = find_file(images or src, places, row.text("file_name"))
        samples.append(SourceSample(image_id, (picture,), found, row.rest("id", "file_name")))
    dropped += [
        {"id": annotation["id"], "reason": "picture not in the file"}
        for of_picture in captions.values()
        for annotation in of_picture
    ]
    return SourceSet(name, "caption", split, (path,), samples, tuple(dropped))


def _captions(content: JsonRow) -> tuple[dict[str, list[Annotation]], list[dict[str, str]]]:
    """Picture id -> its captions; and the empty captions, as dropped rows."""
    captions: dict[str, list[Annotation]] = defaultdict(list)
    dropped = []
    for row in content.rows("annotations", "annotation"):
        annotation = {"id": row.id("id"), "caption": clean(row.text("caption"))}
        if annotation["caption"]:
            extra = row.rest("id", "image_id", "caption")
            captions[row.id("image_id")].append(with_source(annotation, extra))
        else:
            dropped.append({"id": annotation["id"], "reason": "empty caption"})
    return captions, dropped


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

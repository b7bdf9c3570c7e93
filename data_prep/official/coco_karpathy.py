"""COCO captions in Karpathy's split: `dataset_coco.json`, pictures of train2014 and val2014."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.command import official_command, packs
from data_prep.json_rows import JsonRow, read_object
from data_prep.packing.source import SourceSample, SourceSet, clean, find_file, with_source

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "restval"),
    "val": ("val",),
    "test": ("test",),
}
"""Our split -> Karpathy's; the literature trains on train and restval together."""


def parse_coco_karpathy(
    src: Path,
    split: str,
    name: str = "coco",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split with all captions of a picture, which are five to seven."""
    path = annotations or src / "dataset_coco.json"
    samples, dropped = [], []
    for row in _rows_of(path, split):
        captions = []
        for sentence in row.rows("sentences", "sentence"):
            # Captions are published with stray blanks and line breaks.
            caption = {"id": sentence.id("sentid"), "caption": clean(sentence.text("raw"))}
            if caption["caption"]:
                captions.append(with_source(caption, sentence.rest("sentid", "raw", "imgid")))
            else:
                dropped.append({"id": caption["id"], "reason": "empty caption"})
        part = row.text("filepath") if "filepath" in row else ""
        picture = find_file(images or src, (part, f"images/{part}", ""), row.text("filename"))
        extra = row.rest("sentences", "sentids", "filename", "cocoid")
        samples.append(SourceSample(row.id("cocoid"), (picture,), captions, extra))
    return SourceSet(name, "caption", split, (path,), samples, tuple(dropped))


def image_ids(path: Path, split: str) -> set[str]:
    """COCO's ids of the pictures in a split."""
    return {row.id("cocoid") for row in _rows_of(path, split)}


def _rows_of(path: Path, split: str) -> list[JsonRow]:
    """The pictures of a split."""
    rows = read_object(path).rows("images", "image")
    return [row for row in rows if row.value("split") in SPLITS[split]]


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
    packs(parser, parse_coco_karpathy)

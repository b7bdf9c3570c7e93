"""RefCOCO, RefCOCO+ and RefCOCOg (github.com/lichengunc/refer): which thing does a text mean?

A folder per data set holds `refs(SPLITTER).p`, a Python pickle, and `instances.json` with the boxes
of COCO. Opening a pickle can run any program, so only plain values are read from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from vlds.runtime.pickles import read_plain

from ..json_rows import JsonRow, read_list, read_object, shown
from ..packing.source import Annotation, SourceSample, SourceSet, find_file
from .published import COCO, Download, OfficialSet, other_file

PICTURE_FOLDERS = ("train2014", "images/train2014", "images/mscoco/images/train2014", "")


class RefRelease(NamedTuple):
    """One of the three data sets."""

    folder: str
    splitters: tuple[str, ...]
    """Who split it; the first is the usual one."""
    splits: tuple[str, ...]


RELEASES = {
    "refcoco": RefRelease("refcoco", ("unc", "google"), ("train", "val", "testA", "testB", "test")),
    "refcoco-plus": RefRelease("refcoco+", ("unc",), ("train", "val", "testA", "testB")),
    "refcocog": RefRelease("refcocog", ("umd", "google"), ("train", "val", "test")),
}
"""Command -> data set."""
SITE = "https://bvisionweb1.cs.unc.edu/licheng/referit/data/"


def parse_refcoco(
    release: RefRelease,
    src: Path,
    split: str,
    name: str,
    split_by: str,
    annotations: Path | None = None,
    proposals: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split: every expression with the box of its thing, every picture with `proposals`,
    by default the boxes of all its things in instances.json.

    Errors: ValueError for a pickle with anything but plain values, and for expressions about
    things or pictures that instances.json lacks.
    """
    places = (release.folder, "")
    refs = annotations or find_file(src, places, f"refs({split_by}).p")
    path = find_file(src, places, "instances.json")
    instances = read_object(path)
    things = {row.id("id"): row for row in instances.rows("annotations", "annotation")}
    pictures = {row.id("id"): row for row in instances.rows("images", "image")}
    said: dict[str, list[Annotation]] = defaultdict(list)
    for row in _read_refs(refs):
        if row.text("split") == split:
            thing = _named(things, row, "ann_id", path)
            # For its error: the pictures are looked up further down.
            _named(pictures, row, "image_id", path)
            box = _box(thing, "bbox")
            source = {key: row.id(key) for key in ("ref_id", "ann_id")}
            said[row.id("image_id")] += [
                {"id": sentence.id("sent_id"), "expression": sentence.line("sent"), "box": box,
                 "source": dict(source)}
                for sentence in row.rows("sentences", "sentence")
            ]  # fmt: skip
    # Only of pictures of the split; instances.json has those of all splits.
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for row in read_list(proposals, "proposal") if proposals else things.values():
        if (image_id := row.id("image_id")) in said:
            boxes[image_id].append(_box(row, "box" if proposals else "bbox"))
    samples = []
    for image_id, expressions in said.items():
        file = find_file(images or src, PICTURE_FOLDERS, pictures[image_id].text("file_name"))
        # Not of the file: these are the pixels of the boxes, and stored features have no picture.
        size = [pictures[image_id].whole("width"), pictures[image_id].whole("height")]
        extra = {"size": [size], "proposals": boxes[image_id]}
        samples.append(SourceSample(image_id, (file,), expressions, extra=extra))
    files = (refs, path, *filter(None, [proposals]))
    return SourceSet(name, "refer", split, files, samples)


def _named(rows: dict[str, JsonRow], row: JsonRow, key: str, path: Path) -> JsonRow:
    """The row of instances.json that an expression names."""
    if row.id(key) not in rows:
        raise ValueError(
            f"{row.place}: {key!r} is {row.id(key)}, which {path} lacks; give the two files of one "
            "data set"
        )
    return rows[row.id(key)]


def _box(row: JsonRow, key: str) -> list[float]:
    """A box: left, top, width, height in pixels."""
    box = row.array(key)
    numbers = [x for x in box if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if len(box) != 4 or len(numbers) != 4 or not all(map(isfinite, box)) or min(box[2:]) <= 0:
        raise ValueError(
            f"{row.place}: {key!r} is {shown(box)}; expected [left, top, width, height] in pixels, "
            "with a width and height above 0"
        )
    return box


def _read_refs(path: Path) -> Iterator[JsonRow]:
    """The expressions, from a pickle or from the same rows as JSON."""
    if path.suffix != ".p":
        yield from read_list(path, "ref")
        return
    try:
        entries = read_plain(path, "download it again, or give the rows as JSON with --annotations")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the folder and --split-by") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds {type(entries).__name__}; expected a list of expressions")
    for number, fields in enumerate(entries):
        yield JsonRow(fields, f"{path}, ref {number}")


SETS = tuple(
    OfficialSet(
        title=title,
        command=command,
        folders="--src REFER --images COCO",
        splits=release.splits,
        needs={
            split: (
                Download(f"REFER/{release.folder}", f"{SITE}{release.folder}.zip"),
                COCO["train2014"],
            )
            for split in release.splits
            if command != "refcoco" or split != "test"  # Google's split alone has it
        },
        parse=partial(parse_refcoco, release),
        options={
            "--split-by": {
                "choices": release.splitters,
                "default": release.splitters[0],
                "help": f"who split it: refs(NAME).p (default: {release.splitters[0]})",
            },
            "--annotations": other_file(
                "another file of expressions: a pickle (.p), or the same rows as a JSON list"
            ),
            "--proposals": other_file(
                "boxes to choose from, best first: a JSON list of {image_id, box}, as MAttNet's "
                "*_dets.json (default: all boxes of instances.json)"
            ),
        },
    )
    for command, release in RELEASES.items()
    # "in" a list of one: a name for a value, as a comprehension has no assignment.
    for title in [release.folder.replace("refcoco", "RefCOCO")]
)

"""NLVR2: JSON lines in spite of the files' names; pairs of pictures; JPEGs that are named .png."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.official.lxmert import is_lxmert, nlvr2_annotation, read_lxmert
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    first_existing,
    numbered_json_lines,
    rest,
    take_text,
    with_source,
)

SPLITS = ("train", "dev", "test1", "test2")


def parse_nlvr2(
    src: Path,
    split: str,
    name: str = "nlvr2",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; sentences about the same pair of pictures become one sample."""
    path = annotations or first_existing([src / f"{split}.json", src / "data" / f"{split}.json"])
    said: dict[str, list[Annotation]] = {}
    pictures: dict[str, tuple[Path, Path]] = {}
    find = PictureFolders(images or src, split)
    theirs = is_lxmert(path)
    for place, row in _rows(path, theirs):
        identifier = take_text(row, "identifier", place)
        pair, _, sentence = identifier.rpartition("-")
        if not (pair and sentence):
            raise ValueError(
                f"{path}: identifier {identifier!r} is not of the form split-set-pair-sentence"
            )
        parse = nlvr2_annotation if theirs else _annotation
        said.setdefault(pair, []).append(parse(row, f"{path}, {identifier}"))
        if pair not in pictures:
            stems = (row["img0"], row["img1"]) if theirs else (f"{pair}-img0", f"{pair}-img1")
            left, right = (find(stem, row.get("directory")) for stem in stems)
            pictures[pair] = left, right
    samples = [SourceSample(pair, pictures[pair], found) for pair, found in said.items()]
    return SourceSet(name, "nlvr2", split, (path,), samples)


def _rows(path: Path, theirs: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and row; `theirs` are LXMERT's."""
    if theirs:
        for number, row in enumerate(read_lxmert(path, "identifier", "img0", "img1"), 1):
            yield f"{path}, row {number}", row
    else:
        for number, row in numbered_json_lines(path):
            yield f"{path}, line {number}", row


def _annotation(row: Mapping[str, Any], place: str) -> Annotation:
    annotation = {"id": row["identifier"], "sentence": take_text(row, "sentence", place).strip()}
    if "label" in row:
        annotation["label"] = _truth(row["label"], place)
    return with_source(annotation, rest(row, "identifier", "sentence", "label"))


def _truth(label: Any, place: str) -> bool:
    """The official labels are the strings "True" and "False"."""
    text = str(label).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{place}: label {label!r} is neither True nor False")
    return text == "true"


class PictureFolders:
    """Where pictures lie: those of train in numbered folders, the others in one."""

    def __init__(self, folder: Path, split: str) -> None:
        self.places = [folder / split, folder / "images" / split, folder]
        self.numbered = [folder / "images" / split, folder / split, folder]

    def __call__(self, stem: str, directory: int | None) -> Path:
        """A picture's file; LXMERT's rows do not say in which numbered folder it is."""
        name = f"{stem}.png"
        parts = [] if directory is None else [p / str(directory) for p in self.numbered]
        found = first_existing([part / name for part in (*parts, *self.places)])
        return found if found.is_file() else self._in_numbered.get(name, found)

    @cached_property
    def _in_numbered(self) -> dict[str, Path]:
        return {path.name: path for part in self.numbered for path in part.glob("[0-9]*/*.png")}


def add_command(commands: Any) -> None:
    """Add `nlvr2`."""
    parser = official_command(commands, "nlvr2", "NLVR2: statements on picture pairs", SPLITS)
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="another file, also one of LXMERT"
    )

    def run(args: argparse.Namespace) -> None:
        dataset = parse_nlvr2(args.src, args.split, args.name, args.annotations, args.images)
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

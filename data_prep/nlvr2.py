"""NLVR2: JSON lines in spite of the files' names; pairs of pictures; JPEGs that are named .png."""

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
    first_existing,
    read_json_lines,
    rest,
    take,
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
    for row in read_json_lines(path):
        identifier = take(row, "identifier", str(path))
        pair, _, sentence = identifier.rpartition("-")
        if not (pair and sentence):
            raise ValueError(
                f"{path}: identifier {identifier!r} is not of the form split-set-pair-sentence"
            )
        said.setdefault(pair, []).append(_annotation(row, f"{path}, {identifier}"))
        if pair not in pictures:
            pictures[pair] = _pictures(images or src, split, pair, row.get("directory"))
    samples = [SourceSample(pair, pictures[pair], found) for pair, found in said.items()]
    return SourceSet(name, "nlvr2", split, (path,), samples)


def _annotation(row: Mapping[str, Any], place: str) -> Annotation:
    annotation = {"id": row["identifier"], "sentence": take(row, "sentence", place).strip()}
    if "label" in row:
        annotation["label"] = _truth(row["label"], place)
    return with_source(annotation, rest(row, "identifier", "sentence", "label"))


def _truth(label: Any, place: str) -> bool:
    """The official labels are the strings "True" and "False"."""
    text = str(label).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{place}: label {label!r} is neither True nor False")
    return text == "true"


def _pictures(folder: Path, split: str, pair: str, directory: Any) -> tuple[Path, Path]:
    """Left and right; train lies in numbered folders, the other splits in one."""
    parts = [Path(split), Path("images") / split, Path()]
    if directory is not None:
        numbered = str(directory)
        parts = [Path("images", "train", numbered), Path("train", numbered), Path(numbered), *parts]
    left, right = (
        first_existing([folder / part / f"{pair}-img{side}.png" for part in parts])
        for side in (0, 1)
    )
    return left, right


def add_command(commands: Any) -> None:
    """Add `nlvr2`."""
    parser = official_command(commands, "nlvr2", "NLVR2: statements on picture pairs", SPLITS)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another file")

    def run(args: argparse.Namespace) -> None:
        dataset = parse_nlvr2(args.src, args.split, args.name, args.annotations, args.images)
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

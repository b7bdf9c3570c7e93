"""GQA: the official question files; scene graphs, where there are any, as objects of the sample."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.official.lxmert import gqa_annotation, is_lxmert, read_lxmert
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    first_existing,
    read_json,
    rest,
    take_id,
    take_object,
    take_text,
    with_source,
)

SPLITS = ("train", "val", "testdev", "test", "challenge")
FIELDS: Mapping[str, str] = {
    "answer": "answer",
    "fullAnswer": "full_answer",
    "isBalanced": "balanced",
    "types": "types",
    "groups": "groups",
    "entailed": "entailed",
    "equivalent": "equivalent",
}
"""Official field -> ours; the test splits have no answers."""


def parse_gqa(
    src: Path,
    split: str,
    name: str = "gqa",
    questions: Sequence[Path] = (),
    scene_graphs: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split: its balanced questions, unless other question files are given."""
    files = tuple(questions) or (src / f"{split}_balanced_questions.json",)
    if scene_graphs is None:
        usual = src / f"{split}_sceneGraphs.json"
        scene_graphs = usual if usual.is_file() else None
    graphs = _by_id(scene_graphs, "scene graphs by picture") if scene_graphs else {}
    asked: dict[str, list[Annotation]] = {}
    for path in files:
        if is_lxmert(path):
            for row in read_lxmert(path):
                asked.setdefault(str(row["img_id"]), []).append(gqa_annotation(row, str(path)))
            continue
        for number, row in _by_id(path, "questions by id").items():
            place = f"{path}, question {number}"
            image_id = take_id(row, "imageId", place)
            asked.setdefault(image_id, []).append(_annotation(number, row, place))
    folder = images or src
    samples = [
        SourceSample(
            image_id,
            (first_existing([folder / "images" / f"{image_id}.jpg", folder / f"{image_id}.jpg"]),),
            found,
            {"objects": _objects(graphs[image_id], f"{scene_graphs}, {image_id}")}
            if image_id in graphs
            else {},
        )
        for image_id, found in asked.items()
    ]
    return SourceSet(name, "gqa", split, (*files, *filter(None, [scene_graphs])), samples)


def _by_id(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected GQA's dictionary of {what}")
    return content


def _annotation(number: str, row: Mapping[str, Any], place: str) -> Annotation:
    """Ids stay strings: they have leading zeros."""
    annotation = {"id": number, "question": take_text(row, "question", place).strip()}
    if "answer" in row:
        take_text(row, "answer", place)
    annotation |= {ours: row[theirs] for theirs, ours in FIELDS.items() if theirs in row}
    return with_source(annotation, rest(row, "imageId", "question", *FIELDS))


def _objects(graph: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """The objects of an official scene graph, without their relations."""
    return [
        {key: thing[key] for key in ("name", "attributes", "x", "y", "w", "h") if key in thing}
        for thing in take_object(graph, "objects", place).values()
    ]


def add_command(commands: Any) -> None:
    """Add `gqa`."""
    text = "GQA: questions about Visual Genome's scene graphs"
    parser = official_command(commands, "gqa", text, SPLITS)
    parser.add_argument(
        "--questions",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="other question files, also LXMERT's; several for train_all (default: "
        "SPLIT_balanced_questions.json)",
    )
    parser.add_argument(
        "--scene-graphs",
        type=Path,
        metavar="FILE",
        help="keep its objects with the samples (default: SPLIT_sceneGraphs.json, if there)",
    )

    def run(args: argparse.Namespace) -> None:
        dataset = parse_gqa(
            args.src, args.split, args.name, args.questions, args.scene_graphs, args.images
        )
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

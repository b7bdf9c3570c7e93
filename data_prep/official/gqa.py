"""GQA: the official question files; the objects of scene graphs become a field of the sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.command import official_command, packs
from data_prep.json_rows import JsonRow, read_json
from data_prep.official.lxmert import gqa_annotation, is_lxmert, read_lxmert
from data_prep.official.published import CC_BY, Download, Published
from data_prep.packing.source import Annotation, SourceSample, SourceSet, find_file

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
OBJECT_FIELDS = ("name", "attributes", "x", "y", "w", "h")
"""Fields of a scene graph's objects that a sample keeps; their relations are left out."""

SITE = "https://downloads.cs.stanford.edu/nlp/data/gqa/"
PUBLISHED = (
    Published(
        "GQA",
        "gqa --src GQA",
        {
            split: (
                Download(
                    f"GQA/{split}_balanced_questions.json", f"{SITE}questions1.2.zip", "1.4 GB",
                    CC_BY,
                ),
                Download("GQA/images", f"{SITE}images.zip", "20.3 GB", CC_BY),
            )
            for split in ("train", "val", "testdev", "test")
        },
    ),
)  # fmt: skip


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
    usual = src / f"{split}_sceneGraphs.json"
    if scene_graphs is None and usual.is_file():
        scene_graphs = usual
    graphs = _read_by_id(scene_graphs, "scene graphs by picture") if scene_graphs else {}
    asked: dict[str, list[Annotation]] = defaultdict(list)
    for path in files:
        for image_id, annotation in _read_questions(path):
            asked[image_id].append(annotation)
    samples = []
    for image_id, of_picture in asked.items():
        picture = find_file(images or src, ("images", ""), f"{image_id}.jpg")
        source = {}
        if image_id in graphs:
            graph = JsonRow(graphs[image_id], f"{scene_graphs}, {image_id}")
            source["objects"] = _objects(graph)
        samples.append(SourceSample(image_id, (picture,), of_picture, source))
    return SourceSet(name, "gqa", split, (*files, *filter(None, [scene_graphs])), samples)


def _read_questions(path: Path) -> Iterator[tuple[str, Annotation]]:
    """Picture id and question, from an official file or one of LXMERT."""
    if is_lxmert(path):
        for row in read_lxmert(path):
            yield row.id("img_id"), gqa_annotation(row)
        return
    for question_id, fields in _read_by_id(path, "questions by id").items():
        row = JsonRow(fields, f"{path}, question {question_id}")
        yield row.id("imageId"), _annotation(question_id, row)


def _read_by_id(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected GQA's dictionary of {what}")
    return content


def _annotation(question_id: str, row: JsonRow) -> Annotation:
    """Ids stay strings: they have leading zeros."""
    annotation = {"id": question_id, "question": row.text("question").strip()}
    if "answer" in row:
        row.text("answer")
    annotation |= {ours: row.value(theirs) for theirs, ours in FIELDS.items() if theirs in row}
    return row.annotate(annotation, "imageId", "question", *FIELDS)


def _objects(graph: JsonRow) -> list[dict[str, Any]]:
    return [
        {key: thing[key] for key in OBJECT_FIELDS if key in thing}
        for thing in graph.object("objects").values()
    ]


def add_command(commands: Any) -> None:
    """Add `gqa`."""
    summary = "GQA: questions about Visual Genome's scene graphs"
    parser = official_command(commands, "gqa", summary, SPLITS)
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
        help="keep its objects with the samples (default: SPLIT_sceneGraphs.json, if it exists)",
    )
    packs(parser, parse_gqa)

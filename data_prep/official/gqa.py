"""GQA: the official question files; the objects of scene graphs become a field of the sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..json_rows import JsonRow, read_json
from ..packing.source import Annotation, SourceSample, SourceSet, find_file
from .lxmert import gqa_annotation, is_lxmert, read_lxmert
from .published import CC_BY, Download, OfficialSet, other_file

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
    # The test splits have no scene graphs, so a usual file that is missing is not an error.
    usual = src / f"{split}_sceneGraphs.json"
    if scene_graphs is None and usual.is_file():
        scene_graphs = usual
    graphs = _read_by_id(scene_graphs, "scene graphs by picture") if scene_graphs else {}
    asked: dict[str, list[Annotation]] = defaultdict(list)
    for path in files:
        if is_lxmert(path):
            for row in read_lxmert(path):
                asked[row.id("img_id")].append(gqa_annotation(row))
            continue
        for question_id, fields in _read_by_id(path, "questions by id").items():
            row = JsonRow(fields, f"{path}, question {question_id}")
            image_id = row.id("imageId")
            # Ids stay strings: they have leading zeros.
            annotation = {"id": question_id, "question": row.text("question").strip()}
            if "answer" in row:
                row.text("answer")  # an error if it is not text
            annotation |= {ours: row.value(key) for key, ours in FIELDS.items() if key in row}
            annotation = row.annotate(annotation, "imageId", "question", *FIELDS)
            asked[image_id].append(annotation)
    samples = []
    for image_id, of_picture in asked.items():
        picture = find_file(images or src, ("images", ""), f"{image_id}.jpg")
        # Only region-word alignment needs the objects, so pictures without a graph stay.
        source = {}
        if image_id in graphs:
            graph = JsonRow(graphs[image_id], f"{scene_graphs}, {image_id}")
            source["objects"] = [
                {key: thing[key] for key in OBJECT_FIELDS if key in thing}
                for thing in graph.object("objects").values()
            ]
        samples.append(SourceSample(image_id, (picture,), of_picture, source))
    return SourceSet(name, "gqa", split, (*files, *filter(None, [scene_graphs])), samples)


def _read_by_id(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected GQA's dictionary of {what}")
    return content


GQA = OfficialSet(
    title="GQA",
    command="gqa",
    folders="--src GQA",
    splits=("train", "val", "testdev", "test", "challenge"),
    needs={
        split: (
            Download(
                f"GQA/{split}_balanced_questions.json", f"{SITE}questions1.2.zip", "1.4 GB", CC_BY
            ),
            Download("GQA/images", f"{SITE}images.zip", "20.3 GB", CC_BY),
        )
        for split in ("train", "val", "testdev", "test")
    },
    parse=parse_gqa,
    options={
        "--questions": {
            **other_file(
                "other question files, also LXMERT's; several for train_all (default: "
                "SPLIT_balanced_questions.json)"
            ),
            "nargs": "+",
            "default": (),
        },
        "--scene-graphs": other_file(
            "keep its objects with the samples (default: SPLIT_sceneGraphs.json, if it exists)"
        ),
    },
)

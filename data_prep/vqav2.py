"""VQAv2 (visualqa.org): official questions and annotations, pictures of COCO 2014 and 2015."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.answers import soft_label
from data_prep.command import official_command, shard_options
from data_prep.pack import pack
from data_prep.source import (
    Annotation,
    SourceSample,
    SourceSet,
    first_existing,
    read_json,
    rest,
    take,
    with_source,
)

SPLITS: Mapping[str, str] = {
    "train": "train2014",
    "val": "val2014",
    "test": "test2015",
    "test-dev": "test-dev2015",
}
"""Our split -> the official subset in the file names."""


def parse_vqav2(
    src: Path,
    split: str,
    name: str = "vqav2",
    questions: Path | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; the test splits have no annotations."""
    subset = SPLITS[split]
    questions = questions or src / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    if annotations is None and not split.startswith("test"):
        annotations = src / f"v2_mscoco_{subset}_annotations.json"
    rows = take(read_json(questions), "questions", str(questions))
    labels = _labels(annotations, rows, questions) if annotations else None
    asked: dict[str, list[Annotation]] = {}
    for row in rows:
        annotation = _annotation(row, labels, questions)
        asked.setdefault(str(take(row, "image_id", str(questions))), []).append(annotation)
    folder = images or src
    samples = [
        SourceSample(image_id, (_picture(folder, subset, image_id),), found)
        for image_id, found in asked.items()
    ]
    files = (questions, annotations) if annotations else (questions,)
    return SourceSet(name, "vqa", split, files, samples)


def _labels(path: Path, questions: list[Any], asked_in: Path) -> dict[int, Mapping[str, Any]]:
    """Question id -> its official annotation; both files must speak of the same questions."""
    rows = take(read_json(path), "annotations", str(path))
    labels = {take(row, "question_id", str(path)): row for row in rows}
    asked = {take(row, "question_id", str(asked_in)) for row in questions}
    if asked != labels.keys():
        odd = sorted(asked ^ labels.keys())
        raise ValueError(
            f"{asked_in.name} and {path.name} differ in {len(odd)} questions, the first is "
            f"question_id {odd[0]}; give the two files of one split"
        )
    return labels


def _annotation(
    row: Mapping[str, Any], labels: Mapping[int, Mapping[str, Any]] | None, questions: Path
) -> Annotation:
    number = take(row, "question_id", str(questions))
    annotation: Annotation = {
        "id": str(number),
        "question": take(row, "question", str(questions)).strip(),
    }
    extra = rest(row, "question_id", "image_id", "question")
    if labels is not None:
        label = labels[number]
        place = f"annotation of question {number}"
        # The answers stay as they are written: the official scorer has its own cleaning.
        answers = [take(answer, "answer", place) for answer in take(label, "answers", place)]
        annotation |= {
            "answers": answers,
            "label": soft_label(answers),
            "answer_type": label.get("answer_type", ""),
            "question_type": label.get("question_type", ""),
        }
        extra |= rest(label, "question_id", "image_id", "answers", "answer_type", "question_type")
    return with_source(annotation, extra)


def _picture(folder: Path, subset: str, image_id: str) -> Path:
    """COCO's file name; test-dev shows pictures of test2015."""
    subset = subset.replace("test-dev", "test")
    name = f"COCO_{subset}_{int(image_id):012d}.jpg" if image_id.isdigit() else f"{image_id}.jpg"
    parts = (folder / subset, folder / "images" / subset, folder)
    return first_existing([part / name for part in parts])


def add_command(commands: Any) -> None:
    """Add `vqav2`."""
    parser = official_command(commands, "vqav2", "VQA v2: questions with ten answers each", SPLITS)
    parser.add_argument("--questions", type=Path, metavar="FILE", help="another questions file")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another answers file")

    def run(args: argparse.Namespace) -> None:
        dataset = parse_vqav2(
            args.src, args.split, args.name, args.questions, args.annotations, args.images
        )
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

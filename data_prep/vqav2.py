"""VQAv2 (visualqa.org): official questions and annotations, pictures of COCO 2014 and 2015."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.answers import soft_label
from data_prep.coco_karpathy import image_ids
from data_prep.command import official_command, shard_options
from data_prep.lxmert import coco_picture, is_lxmert, read_lxmert, vqa_annotation
from data_prep.pack import pack
from data_prep.source import (
    Annotation,
    SourceSample,
    SourceSet,
    read_json,
    rest,
    take,
    with_source,
)
from data_prep.vocabulary import read_vocabulary

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train2014",),
    "val": ("val2014",),
    "test": ("test2015",),
    "test-dev": ("test-dev2015",),
    "karpathy-train": ("train2014", "val2014"),
    "karpathy-val": ("val2014",),
    "karpathy-test": ("val2014",),
}
"""Our split -> the official subsets in the file names. Karpathy's are those of `dataset_coco.json`:
the questions about its pictures."""
KARPATHY = "karpathy-"


def parse_vqav2(
    src: Path,
    split: str,
    name: str = "vqav2",
    questions: Path | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; the test splits have no annotations. `questions` may be a file of LXMERT."""
    folder = images or src
    if questions is not None and is_lxmert(questions):
        return _parse_lxmert(questions, annotations, split, name, folder)
    files: list[Path] = []
    asked: dict[str, list[Annotation]] = {}
    pictures: dict[str, Path] = {}
    for subset in SPLITS[split]:
        asked_in = questions or src / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        labelled_in = annotations
        if annotations is None and not subset.startswith("test"):
            labelled_in = src / f"v2_mscoco_{subset}_annotations.json"
        files += [asked_in, *filter(None, [labelled_in])]
        rows = take(read_json(asked_in), "questions", str(asked_in))
        labels = _labels(labelled_in, rows, asked_in) if labelled_in else None
        for row in rows:
            image_id = str(take(row, "image_id", str(asked_in)))
            asked.setdefault(image_id, []).append(_annotation(row, labels, asked_in))
            pictures.setdefault(image_id, _picture(folder, subset, image_id))
    if split.startswith(KARPATHY):
        files.append(src / "dataset_coco.json")
        kept = image_ids(files[-1], split.removeprefix(KARPATHY))
        asked = {image_id: found for image_id, found in asked.items() if image_id in kept}
    samples = [SourceSample(key, (pictures[key],), found) for key, found in asked.items()]
    return SourceSet(name, "vqa", split, tuple(files), samples)


def _parse_lxmert(
    questions: Path, annotations: Path | None, split: str, name: str, folder: Path
) -> SourceSet:
    """The re-splits that LXMERT made and VL-Adapter uses: soft scores instead of ten answers, which
    the official annotations may add."""
    official: dict[str, Mapping[str, Any]] = {}
    if annotations is not None:
        rows = take(read_json(annotations), "annotations", str(annotations))
        official = {str(row["question_id"]): row for row in rows}
    asked: dict[str, list[Annotation]] = {}
    for row in read_lxmert(questions):
        annotation = vqa_annotation(row, str(questions))
        if annotation["id"] in official:
            annotation["answers"] = [
                given["answer"] for given in official[annotation["id"]]["answers"]
            ]
        asked.setdefault(take(row, "img_id", str(questions)), []).append(annotation)
    samples = [
        SourceSample(image_id, (coco_picture(folder, image_id),), found)
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
    stem = f"COCO_{subset}_{int(image_id):012d}" if image_id.isdigit() else image_id
    return coco_picture(folder, stem, subset)


def restricted(dataset: SourceSet, vocabulary: Path) -> SourceSet:
    """A data set whose soft scores are of these answers alone; a question without any keeps its ten
    answers, for the score, and weighs nothing in training, as in VL-Adapter."""
    known = read_vocabulary(vocabulary)
    for sample in dataset.samples:
        for annotation in sample.annotations:
            if "label" in annotation:
                label = annotation["label"]
                annotation["label"] = {a: score for a, score in label.items() if a in known}
    return replace(dataset, files=(*dataset.files, vocabulary))


def add_command(commands: Any) -> None:
    """Add `vqav2`."""
    parser = official_command(commands, "vqav2", "VQA v2: questions with ten answers each", SPLITS)
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="another questions file, or one of LXMERT (a list of sent, img_id, label)",
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another answers file")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="train on these answers alone: a list, as `answers` writes it, or LXMERT's ans2label",
    )

    def run(args: argparse.Namespace) -> None:
        dataset = parse_vqav2(
            args.src, args.split, args.name, args.questions, args.annotations, args.images
        )
        if args.vocabulary is not None:
            dataset = restricted(dataset, args.vocabulary)
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

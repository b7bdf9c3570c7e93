"""VQAv2 (visualqa.org): official questions and annotations, pictures of COCO 2014 and 2015."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.official.coco_karpathy import image_ids
from data_prep.official.lxmert import coco_picture, is_lxmert, read_lxmert, vqa_annotation
from data_prep.packing.answers import soft_label
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    TYPES,
    Annotation,
    SourceSample,
    SourceSet,
    read_json,
    rest,
    take_id,
    take_list,
    take_text,
    with_source,
)

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
        rows = _by_id(asked_in, "questions")
        labels = _labels(labelled_in, rows, asked_in) if labelled_in else {}
        for number, row in rows:
            place = f"{asked_in}, question {number}"
            image_id = take_id(row, "image_id", place)
            found = _annotation(number, row, labels.get(number, {}), place)
            asked.setdefault(image_id, []).append(found)
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
    official: dict[str, list[str]] = {}
    if annotations is not None:
        official = {
            number: _answers(row, f"{annotations}, question {number}")
            for number, row in _by_id(annotations, "annotations")
        }
    asked: dict[str, list[Annotation]] = {}
    for row in read_lxmert(questions):
        annotation = vqa_annotation(row, str(questions))
        if annotation["id"] in official:
            annotation["answers"] = official[annotation["id"]]
        asked.setdefault(str(row["img_id"]), []).append(annotation)
    samples = [
        SourceSample(image_id, (coco_picture(folder, image_id),), found)
        for image_id, found in asked.items()
    ]
    files = (questions, annotations) if annotations else (questions,)
    return SourceSet(name, "vqa", split, files, samples)


Rows = list[tuple[str, Mapping[str, Any]]]
"""Question id and row."""


def _by_id(path: Path, key: str) -> Rows:
    rows = enumerate(take_list(read_json(path), key, str(path)))
    return [(take_id(row, "question_id", f"{path}, {key} {number}"), row) for number, row in rows]


def _labels(path: Path, questions: Rows, asked_in: Path) -> dict[str, Annotation]:
    """Question id -> what the official annotations say; both files must speak of the same ones."""
    labels = dict(_by_id(path, "annotations"))
    odd = {number for number, _ in questions} ^ labels.keys()
    if odd:
        first = min(odd, key=lambda number: (len(number), number))
        raise ValueError(
            f"{asked_in.name} and {path.name} differ in {len(odd)} questions, the first is "
            f"question_id {first}; give the two files of one split"
        )
    return {number: _label(row, f"{path}, question {number}") for number, row in labels.items()}


def _label(row: Mapping[str, Any], place: str) -> Annotation:
    # The answers stay as they are written: the official scorer has its own cleaning.
    answers = _answers(row, place)
    label = {
        "answers": answers,
        "label": soft_label(answers),
        **{key: take_text(row, key, place) if key in row else "" for key in TYPES},
    }
    known = ("question_id", "image_id", "answers", *TYPES)
    return with_source(label, rest(row, *known))


def _answers(row: Mapping[str, Any], place: str) -> list[str]:
    return [take_text(answer, "answer", place) for answer in take_list(row, "answers", place)]


def _annotation(number: str, row: Mapping[str, Any], label: Annotation, place: str) -> Annotation:
    question = take_text(row, "question", place).strip()
    extra = rest(row, "question_id", "image_id", "question") | label.get("source", {})
    return with_source({"id": number, "question": question} | label, extra)


def _picture(folder: Path, subset: str, image_id: str) -> Path:
    """COCO's file name; test-dev shows pictures of test2015."""
    subset = subset.replace("test-dev", "test")
    stem = (
        f"COCO_{subset}_{int(image_id):012d}" if re.fullmatch("[0-9]{1,30}", image_id) else image_id
    )
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


def read_vocabulary(path: Path) -> frozenset[str]:
    """Answers from a list, or from the keys of LXMERT's `trainval_ans2label.json`.

    Errors: ValueError where the file holds neither.
    """
    content = read_json(path)
    if isinstance(content, (list, dict)) and all(isinstance(entry, str) for entry in content):
        return frozenset(content)
    raise ValueError(f"{path}: a list of answers is needed, or an object whose keys are answers")


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

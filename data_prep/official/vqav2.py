"""VQAv2 (visualqa.org): official questions and annotations, pictures of COCO 2014 and 2015."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..json_rows import JsonRow, read_json, read_object
from ..packing.pack import answer_fields
from ..packing.source import TYPES, Annotation, SourceSet, samples_of
from .coco import karpathy_ids
from .lxmert import coco_picture, is_lxmert, read_lxmert, vqa_annotation
from .published import (
    CC_BY,
    COCO,
    KARPATHY_COCO,
    Download,
    OfficialSet,
    other_file,
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
"""Our split -> the official subsets in the file names. Karpathy's splits are the questions about
the pictures of his `dataset_coco.json`."""
KARPATHY = "karpathy-"

SITE = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_"
SIZES = {"Questions_Train": "7.2 MB", "Questions_Val": "3.5 MB", "Questions_Test": "",
         "Annotations_Train": "21.7 MB", "Annotations_Val": "10.5 MB"}  # fmt: skip


def _download(part: str, file: str) -> Download:
    return Download(f"COCO/v2_{file}", f"{SITE}{part}_mscoco.zip", SIZES[part], CC_BY)


QUESTIONS = {
    subset: _download(f"Questions_{part}", f"OpenEnded_mscoco_{subset}_questions.json")
    for subset, part in {"train2014": "Train", "val2014": "Val", "test2015": "Test",
                         "test-dev2015": "Test"}.items()
}  # fmt: skip
ANSWERS = {
    subset: _download(f"Annotations_{part}", f"mscoco_{subset}_annotations.json")
    for subset, part in {"train2014": "Train", "val2014": "Val"}.items()
}
LXMERT_ANSWERS = Download(
    "COCO/trainval_ans2label.json",
    "https://github.com/airsplay/lxmert/blob/master/data/vqa/trainval_ans2label.json",
    "64 kB",
    "MIT",
    option="--vocabulary",
)
"""The 3,129 answers that VL-T5, VL-Adapter and what followed them train on."""


def parse_vqav2(
    src: Path,
    split: str,
    name: str = "vqav2",
    questions: Path | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    vocabulary: Path | None = None,
) -> SourceSet:
    """Read a split; the test splits have no annotations. `questions` may be a file of LXMERT;
    `vocabulary` restricts the soft scores to its answers."""
    if questions is not None and is_lxmert(questions):
        dataset = _parse_lxmert(questions, annotations, split, name, images or src)
    else:
        dataset = _parse_official(src, split, name, questions, annotations, images or src)
    if vocabulary is None:
        return dataset
    # A question without any known answer keeps its ten answers for the score, and weighs nothing
    # in training, as in VL-Adapter.
    known = read_vocabulary(vocabulary)
    for annotation in (entry for sample in dataset.samples for entry in sample.annotations):
        if "label" in annotation:
            label = annotation["label"]
            annotation["label"] = {a: score for a, score in label.items() if a in known}
    return replace(dataset, files=(*dataset.files, vocabulary))


def _parse_official(
    src: Path, split: str, name: str, questions: Path | None, annotations: Path | None, images: Path
) -> SourceSet:
    files: list[Path] = []
    asked: dict[str, list[Annotation]] = defaultdict(list)
    pictures: dict[str, Path] = {}
    for subset in SPLITS[split]:
        question_file = questions or src / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        label_file = annotations
        if annotations is None and not subset.startswith("test"):
            label_file = src / f"v2_mscoco_{subset}_annotations.json"
        files += [question_file, *filter(None, [label_file])]
        for image_id, rows in read_questions(question_file, label_file).items():
            asked[image_id] += rows
            # Karpathy's train is in two subsets; a picture lies in the folder of the one that asks.
            if image_id not in pictures:
                pictures[image_id] = picture_of(images, subset, image_id)
    if split.startswith(KARPATHY):
        files.append(src / "dataset_coco.json")
        of_split = karpathy_ids(files[-1], split.removeprefix(KARPATHY))
        asked = {image_id: rows for image_id, rows in asked.items() if image_id in of_split}
    samples = samples_of(asked, pictures.__getitem__)
    return SourceSet(name, "vqa", split, tuple(files), samples)


def read_questions(question_file: Path, label_file: Path | None) -> dict[str, list[Annotation]]:
    """Picture id -> its questions, with their answers if there is a file of them; both files must
    hold the same questions."""
    questions = _read_rows(question_file, "questions")
    labels = {}
    if label_file is not None:
        labels = {row.id("question_id"): row for row in _read_rows(label_file, "annotations")}
        # Either file may be of another split, or cut.
        if unmatched := {row.id("question_id") for row in questions} ^ labels.keys():
            # Ids are texts; the shortest is the smallest number.
            first = min(unmatched, key=lambda number: (len(number), number))
            raise ValueError(
                f"{question_file.name} and {label_file.name} differ in {len(unmatched)} questions, "
                f"the first is question_id {first}; give the two files of one split"
            )
    asked: dict[str, list[Annotation]] = defaultdict(list)
    for row in questions:
        question_id = row.id("question_id")
        annotation: Annotation = {"id": question_id, "question": row.text("question").strip()}
        extra = row.rest("question_id", "image_id", "question")
        if (label := labels.get(question_id)) is not None:
            # The answers stay as they are written: the official scorer has its own cleaning.
            annotation |= answer_fields(_answers(label))
            annotation |= {key: label.text(key) if key in label else "" for key in TYPES}
            extra |= label.rest("question_id", "image_id", "answers", *TYPES)
        if extra:
            annotation["source"] = extra
        asked[row.id("image_id")].append(annotation)
    return asked


def _parse_lxmert(
    questions: Path, annotations: Path | None, split: str, name: str, images: Path
) -> SourceSet:
    """The splits that LXMERT made and VL-Adapter uses. Their questions have soft scores; the ten
    answers come from the official annotations, if these are given."""
    answers: dict[str, list[str]] = {}
    if annotations is not None:
        rows = _read_rows(annotations, "annotations")
        answers = {row.id("question_id"): _answers(row) for row in rows}
    asked: dict[str, list[Annotation]] = defaultdict(list)
    for row in read_lxmert(questions):
        annotation = vqa_annotation(row)
        if annotation["id"] in answers:
            annotation["answers"] = answers[annotation["id"]]
        asked[row.id("img_id")].append(annotation)
    files = (questions, annotations) if annotations else (questions,)
    return SourceSet(name, "vqa", split, files, samples_of(asked, partial(coco_picture, images)))


def _read_rows(path: Path, key: str) -> list[JsonRow]:
    """The rows of the file's list `key`, which errors name by question id."""
    rows = read_object(path).rows(key, key)
    return [row.at(f"{path}, question {row.id('question_id')}") for row in rows]


def _answers(row: JsonRow) -> list[str]:
    return [answer.text("answer") for answer in row.rows("answers", "answer")]


def picture_of(folder: Path, subset: str, image_id: str) -> Path:
    """COCO's file; the pictures of test-dev are those of test2015."""
    subset = subset.replace("test-dev", "test")
    # Users' own files may have other ids than COCO's numbers.
    stem = image_id
    if re.fullmatch("[0-9]{1,30}", image_id):
        stem = f"COCO_{subset}_{int(image_id):012d}"
    return coco_picture(folder, stem, subset)


def read_vocabulary(path: Path) -> frozenset[str]:
    """Answers from a list, or from the keys of LXMERT's `trainval_ans2label.json`.

    Errors: ValueError if the file holds neither.
    """
    content = read_json(path)
    if isinstance(content, (list, dict)) and all(isinstance(entry, str) for entry in content):
        return frozenset(content)
    raise ValueError(f"{path}: a list of answers is needed, or an object whose keys are answers")


VQA_V2 = OfficialSet(
    title="VQA v2",
    command="vqav2",
    folders="--src COCO",
    needs={
        split: (
            *(QUESTIONS[subset] for subset in subsets),
            *(ANSWERS[subset] for subset in subsets if subset in ANSWERS),
            *(COCO[subset.replace("test-dev", "test")] for subset in subsets),
            *([KARPATHY_COCO] if split.startswith(KARPATHY) else []),
            *([LXMERT_ANSWERS] if split == "karpathy-train" else []),
        )
        for split, subsets in SPLITS.items()
    },
    parse=parse_vqav2,
    options={
        "--questions": other_file(
            "another questions file, or one of LXMERT (a list of sent, img_id, label)"
        ),
        "--annotations": other_file("another answers file"),
        "--vocabulary": other_file(
            "train on these answers only: a list, as `answers` writes it, or LXMERT's ans2label"
        ),
    },
)

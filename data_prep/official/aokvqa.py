"""A-OKVQA (github.com/allenai/aokvqa): four choices and ten direct answers for each question."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from data_prep.command import official_command, packs
from data_prep.json_rows import JsonRow, read_list
from data_prep.official.published import COCO, UNKNOWN, Download, Published, read_choices
from data_prep.packing.pack import soft_label
from data_prep.packing.source import Annotation, SourceSet, find_file, samples_of

SPLITS = ("train", "val", "test")
KNOWN = (
    "question_id", "image_id", "question", "choices", "correct_choice_idx", "direct_answers",
    "difficult_direct_answer", "split",
)  # fmt: skip

ADDRESS = "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz"
PUBLISHED = (
    Published(
        "A-OKVQA",
        "aokvqa --src AOKVQA --images COCO",
        {
            split: (
                Download(f"AOKVQA/aokvqa_v1p0_{split}.json", ADDRESS, "", UNKNOWN),
                COCO[f"{split}2017"],
            )
            for split in SPLITS
        },
    ),
)


def parse_aokvqa(
    src: Path,
    split: str,
    name: str = "aokvqa",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; test has choices and no answers. Rationales stay in "source"."""
    path = annotations or find_file(src, ("", "aokvqa"), f"aokvqa_v1p0_{split}.json")
    asked: dict[str, list[Annotation]] = defaultdict(list)
    pictures: dict[str, Path] = {}
    for row in read_list(path, "question"):
        row = row.at(f"{path}, question {row.id('question_id')}")
        number = row.whole("image_id")
        asked[str(number)].append(_annotation(row))
        places = (f"{split}2017", f"coco/{split}2017", f"images/{split}2017", "")
        pictures[str(number)] = find_file(images or src, places, f"{number:012d}.jpg")
    samples = samples_of(asked, pictures.__getitem__)
    return SourceSet(name, "multiple_choice", split, (path,), samples)


def _annotation(row: JsonRow) -> Annotation:
    annotation: Annotation = {"id": row.id("question_id"), "question": row.line("question")}
    annotation |= read_choices(row, "correct_choice_idx")
    if "direct_answers" in row:
        # The answers stay as they are written: the official script compares them unchanged.
        answers = row.texts("direct_answers")
        annotation |= {"answers": answers, "label": soft_label(answers)}
    if "difficult_direct_answer" in row:
        annotation["difficult"] = row.flag("difficult_direct_answer")
    return row.annotate(annotation, *KNOWN)


def add_command(commands: Any) -> None:
    """Add `aokvqa`."""
    summary = "A-OKVQA: questions with four choices and ten direct answers"
    parser = official_command(commands, "aokvqa", summary, SPLITS)
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another JSON file")
    packs(parser, parse_aokvqa)

"""A-OKVQA (github.com/allenai/aokvqa): four choices and ten direct answers for each question."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ..json_rows import read_list
from ..packing.pack import answer_fields
from ..packing.source import Annotation, SourceSet, find_file, samples_of
from .published import COCO, Download, OfficialSet, other_file, read_choices

KNOWN = (
    "question_id", "image_id", "question", "choices", "correct_choice_idx", "direct_answers",
    "difficult_direct_answer", "split",
)  # fmt: skip
ADDRESS = "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz"


def parse_aokvqa(
    src: Path,
    split: str,
    name: str = "aokvqa",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; test has choices and no answers. Rationales stay in "source"."""
    path = annotations or find_file(src, ("", "aokvqa"), f"aokvqa_v1p0_{split}.json")
    # A-OKVQA asks about COCO 2017, whose names are the ids with twelve digits.
    places = (f"{split}2017", f"coco/{split}2017", f"images/{split}2017", "")
    asked: dict[str, list[Annotation]] = defaultdict(list)
    for row in read_list(path, "question"):
        row = row.at(f"{path}, question {row.id('question_id')}")
        image_id = str(row.whole("image_id"))
        annotation: Annotation = {"id": row.id("question_id"), "question": row.line("question")}
        annotation |= read_choices(row, "correct_choice_idx")
        if "direct_answers" in row:
            # The answers stay as they are written: the official script compares them unchanged.
            annotation |= answer_fields(row.texts("direct_answers"))
        if "difficult_direct_answer" in row:
            annotation["difficult"] = row.flag("difficult_direct_answer")
        asked[image_id].append(row.annotate(annotation, *KNOWN))
    samples = samples_of(
        asked, lambda image: find_file(images or src, places, f"{int(image):012d}.jpg")
    )
    return SourceSet(name, "multiple_choice", split, (path,), samples)


A_OKVQA = OfficialSet(
    title="A-OKVQA",
    command="aokvqa",
    folders="--src AOKVQA --images COCO",
    needs={
        split: (Download(f"AOKVQA/aokvqa_v1p0_{split}.json", ADDRESS), COCO[f"{split}2017"])
        for split in ("train", "val", "test")
    },
    parse=parse_aokvqa,
    options={"--annotations": other_file("another JSON file")},
)

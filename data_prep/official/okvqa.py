"""OK-VQA (okvqa.allenai.org): questions that need outside knowledge, in the form of VQA v1.

Five people answered each question, and each answer counts twice. In version 1.1 the answers are
words; in version 1.0 they are stems, which are not words ("poni tail"), and its scores are lower.
"""

from __future__ import annotations

from pathlib import Path

from ..json_rows import read_object
from ..packing.source import SourceSet, samples_of
from .published import CC_BY, COCO, Download, OfficialSet
from .vqav2 import picture_of, read_questions

SUBSETS = {"train": "train2014", "val": "val2014"}
"""Our split -> COCO's. The publisher trains on the first and tests on the second."""
SITE = "https://okvqa.allenai.org/static/data/"


def parse_okvqa(
    src: Path, split: str, name: str = "okvqa", images: Path | None = None
) -> SourceSet:
    """Read a split; the types of questions get the names that the file of answers gives them."""
    subset = SUBSETS[split]
    questions = src / f"OpenEnded_mscoco_{subset}_questions.json"
    answers = src / f"mscoco_{subset}_annotations.json"
    asked = read_questions(questions, answers)
    # {"one": "Vehicles and Transportation", ...}; codes that the file does not explain stay.
    content = read_object(answers)
    types = content.object("question_types") if "question_types" in content else {}
    for annotation in (row for rows in asked.values() for row in rows):
        code = annotation["question_type"]
        annotation["question_type"] = str(types.get(code, code))
    samples = samples_of(asked, lambda image_id: picture_of(images or src, subset, image_id))
    return SourceSet(name, "vqa", split, (questions, answers), samples)


OK_VQA = OfficialSet(
    title="OK-VQA",
    command="okvqa",
    folders="--src OKVQA --images COCO",
    needs={
        split: (
            *(
                Download(f"OKVQA/{name}.json", f"{SITE}{name}.json.zip", licence=CC_BY)
                for name in (f"OpenEnded_mscoco_{part}_questions", f"mscoco_{part}_annotations")
            ),
            COCO[part],
        )
        for split, part in SUBSETS.items()
    },
    parse=parse_okvqa,
)

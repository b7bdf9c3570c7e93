"""ScienceQA (github.com/lupantech/ScienceQA): school questions with two to five choices.

Half of the questions have no picture; half have a text as context (`hint`), some both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..json_rows import JsonRow, read_object
from ..packing.source import Annotation, Dropped, SourceSample, SourceSet, find_file
from .published import Download, OfficialSet, read_choices

GRADES: Mapping[str, str] = {
    f"grade{number}": "1-6" if number <= 6 else "7-12" for number in range(1, 13)
}
"""Grade -> its group in the official scores."""
KNOWN = ("question", "choices", "answer", "hint", "image", "subject", "grade", "topic", "split")

FILES = ("problems.json", "pid_splits.json")
LICENCE = "CC BY-NC-SA 4.0"
SITE = "https://github.com/lupantech/ScienceQA/blob/main/data/scienceqa/"
BUCKET = "https://scienceqa.s3.us-west-1.amazonaws.com/images/"


def parse_scienceqa(
    src: Path,
    split: str,
    name: str = "scienceqa",
    text_rows: bool = False,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; each question is a sample. Those without a picture are dropped and counted,
    unless `text_rows`.

    Errors: ValueError if the split names a question that the problems lack.
    """
    files = [find_file(src, ("", "scienceqa", "data/scienceqa"), name) for name in FILES]
    problems, splits = map(read_object, files)
    samples, dropped = [], []
    for problem_id in splits.texts(split):
        if problem_id not in problems:
            raise ValueError(
                f"{splits.place}: {split} names question {problem_id}, which {problems.place} "
                "lacks; give two files of one version"
            )
        row = JsonRow(problems.value(problem_id), f"{problems.place}, question {problem_id}")
        annotation = _annotation(row, problem_id)
        if row.value("image") is not None:
            # All pictures have one name, each in the folder of its question: train/1/image.png.
            place = f"{row.text('split')}/{problem_id}"
            folders = (place, f"images/{place}", f"data/scienceqa/images/{place}")
            picture = find_file(images or src, folders, row.text("image"))
            samples.append(SourceSample(problem_id, (picture,), [annotation]))
        elif text_rows:
            samples.append(SourceSample(problem_id, (), [annotation]))
        else:
            dropped.append(Dropped(problem_id, "no picture"))
    return SourceSet(name, "multiple_choice", split, tuple(files), samples, tuple(dropped))


def _annotation(row: JsonRow, problem_id: str) -> Annotation:
    """A question with its groups: those of the official script, subject, hint, picture, context
    and grades, then the topic. Lecture and solution stay in "source"."""
    annotation: Annotation = {"id": problem_id, "question": row.line("question")}
    annotation |= read_choices(row, "answer")
    hint, has_picture = row.line("hint"), row.value("image") is not None
    if hint:
        annotation["hint"] = hint
    grade = row.text("grade")
    if grade not in GRADES:
        raise ValueError(f"{row.place}: 'grade' is {grade!r}; expected grade1 to grade12")
    annotation["groups"] = {
        "subject": row.text("subject"),
        "hint": "with" if hint else "without",
        "picture": "with" if has_picture else "without",
        "context": "some" if hint or has_picture else "none",
        "grades": GRADES[grade],
        "topic": row.text("topic"),
    }
    return row.annotate(annotation, *KNOWN)


SCIENCE_QA = OfficialSet(
    title="ScienceQA",
    command="scienceqa",
    folders="--src SCIENCEQA",
    splits=("train", "val", "test", "trainval", "minitrain", "minival", "minitest"),
    needs={
        split: (
            *(Download(f"SCIENCEQA/{name}", f"{SITE}{name}", licence=LICENCE) for name in FILES),
            Download(f"SCIENCEQA/images/{split}", f"{BUCKET}{split}.zip", licence=LICENCE),
        )
        for split in ("train", "val", "test")
    },
    parse=parse_scienceqa,
    options={
        "--text-rows": {
            "action": "store_true",
            "help": "keep questions without a picture, each as a sample without pictures: for the "
            "models Causal and ImageTextToText, and for the official scores, which count all "
            "questions",
        }
    },
)

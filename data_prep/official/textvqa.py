"""TextVQA (textvqa.org) 0.5.1: questions about the text in pictures of OpenImages.

The words that Rosetta, an optical reader, found in the pictures are in separate files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..json_rows import clean, read_object
from ..packing.pack import NUM_ANNOTATORS, answer_fields
from ..packing.source import Annotation, SourceSet, find_file, samples_of
from .published import CC_BY, Download, OfficialSet, other_file

# Pictures of val are in the archive of train.
PICTURES: Mapping[str, str] = {
    "train": "train_images", "val": "train_images", "test": "test_images",
}  # fmt: skip
"""Split -> folder of its pictures."""
KNOWN = ("question_id", "image_id", "question", "answers", "question_tokens", "set_name")

SITE = "https://dl.fbaipublicfiles.com/textvqa/"
SIZES = {"train": ("21.6 MB", "65.8 MB"), "val": ("3.1 MB", "9.8 MB"), "test": ("2.8 MB", "")}
ARCHIVES = {
    "train_images": (f"{SITE}images/train_val_images.zip", "7.1 GB"),
    "test_images": (f"{SITE}images/test_images.zip", "970 MB"),
}


def parse_textvqa(
    src: Path,
    split: str,
    name: str = "textvqa",
    ocr: Path | None = None,
    without_ocr: bool = False,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; test has no answers. Samples keep the words of their picture in reading order,
    unless `without_ocr`.

    Errors: ValueError if the file of words lacks a picture.
    """
    if ocr is not None and without_ocr:
        raise ValueError(f"--ocr {ocr} names the words that --without-ocr leaves out; give one")
    path = src / f"TextVQA_0.5.1_{split}.json"
    # All questions about a picture share a sample, which stores its words once.
    asked: dict[str, list[Annotation]] = defaultdict(list)
    for row in read_object(path).rows("data", "question"):
        row = row.at(f"{path}, question {row.id('question_id')}")
        image_id = row.text("image_id")
        annotation: Annotation = {"id": row.id("question_id"), "question": row.line("question")}
        if row.fields.get("answers"):
            answers = row.texts("answers")
            if len(answers) != NUM_ANNOTATORS:
                raise ValueError(
                    f"{row.place}: 'answers' has {len(answers)} entries; expected "
                    f"{NUM_ANNOTATORS}. Is it the official file?"
                )
            annotation |= answer_fields(answers)
        asked[image_id].append(row.annotate(annotation, *KNOWN))
    places = (PICTURES[split], f"images/{PICTURES[split]}", "")
    samples = samples_of(asked, lambda image: find_file(images or src, places, f"{image}.jpg"))
    if without_ocr:
        return SourceSet(name, "vqa", split, (path,), samples)
    words_file = ocr or src / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    words = {
        row.text("image_id"): list(filter(None, map(clean, row.texts("ocr_tokens"))))
        for row in read_object(words_file).rows("data", "picture")
    }
    # A picture without words has an empty list; one that is not there at all is another file's.
    if missing := [image for image in asked if image not in words]:
        raise ValueError(
            f"{words_file}: it lacks {len(missing)} of {len(asked)} pictures of {path.name}, the "
            f"first is {missing[0]}; give the file of the same split, or --without-ocr"
        )
    samples = [replace(sample, extra={"ocr_tokens": words[sample.id]}) for sample in samples]
    return SourceSet(name, "vqa", split, (path, words_file), samples)


TEXT_VQA = OfficialSet(
    title="TextVQA",
    command="textvqa",
    folders="--src TEXTVQA",
    needs={
        split: (
            *(
                Download(f"TEXTVQA/{name}.json", f"{SITE}data/{name}.json", size, CC_BY)
                for name, size in zip(
                    (f"TextVQA_0.5.1_{split}", f"TextVQA_Rosetta_OCR_v0.2_{split}"),
                    SIZES[split],
                    strict=True,
                )
            ),
            Download(f"TEXTVQA/{pictures}", *ARCHIVES[pictures], "CC BY 2.0 (OpenImages)"),
        )
        for split, pictures in PICTURES.items()
    },
    parse=parse_textvqa,
    options={
        "--ocr": other_file(
            "another file of words in its form (default: TextVQA_Rosetta_OCR_v0.2_SPLIT.json)"
        ),
        "--without-ocr": {
            "action": "store_true",
            "help": "pack no words: for models that read by eye",
        },
    },
)

"""TextVQA (textvqa.org) 0.5.1: questions about the text in pictures of OpenImages.

The words that Rosetta, an optical reader, found in the pictures are in files of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.command import official_command, packs
from data_prep.json_rows import JsonRow, clean, read_object
from data_prep.official.published import CC_BY, Download, Published
from data_prep.packing.pack import NUM_ANNOTATORS, soft_label
from data_prep.packing.source import Annotation, SourceSet, find_file, samples_of

SPLITS: Mapping[str, str] = {"train": "train_images", "val": "train_images", "test": "test_images"}
"""Split -> folder of its pictures."""
KNOWN = ("question_id", "image_id", "question", "answers", "question_tokens", "set_name")

SITE = "https://dl.fbaipublicfiles.com/textvqa/"
SIZES = {"train": ("21.6 MB", "65.8 MB"), "val": ("3.1 MB", "9.8 MB"), "test": ("2.8 MB", "")}
ARCHIVES = {
    "train_images": (f"{SITE}images/train_val_images.zip", "7.1 GB"),
    "test_images": (f"{SITE}images/test_images.zip", "970 MB"),
}
PUBLISHED = (
    Published(
        "TextVQA",
        "textvqa --src TEXTVQA",
        {
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
            for split, pictures in SPLITS.items()
        },
    ),
)


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
        asked[row.text("image_id")].append(_annotation(row))
    places = (SPLITS[split], f"images/{SPLITS[split]}", "")
    samples = samples_of(asked, lambda image: find_file(images or src, places, f"{image}.jpg"))
    if without_ocr:
        return SourceSet(name, "vqa", split, (path,), samples)
    words_file = ocr or src / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    words = _read_words(words_file)
    if missing := [image for image in asked if image not in words]:
        raise ValueError(
            f"{words_file}: it lacks {len(missing)} of {len(asked)} pictures of {path.name}, the "
            f"first is {missing[0]}; give the file of the same split, or --without-ocr"
        )
    samples = [replace(sample, extra={"ocr_tokens": words[sample.id]}) for sample in samples]
    return SourceSet(name, "vqa", split, (path, words_file), samples)


def _annotation(row: JsonRow) -> Annotation:
    annotation: Annotation = {"id": row.id("question_id"), "question": row.line("question")}
    if row.fields.get("answers"):
        answers = row.texts("answers")
        if len(answers) != NUM_ANNOTATORS:
            raise ValueError(
                f"{row.place}: 'answers' has {len(answers)} entries; expected {NUM_ANNOTATORS}. Is "
                "it the official file?"
            )
        annotation |= {"answers": answers, "label": soft_label(answers)}
    return row.annotate(annotation, *KNOWN)


def _read_words(path: Path) -> dict[str, list[str]]:
    """Picture id -> the words that were found in it."""
    rows = read_object(path).rows("data", "picture")
    return {
        row.text("image_id"): list(filter(None, map(clean, row.texts("ocr_tokens"))))
        for row in rows
    }


def add_command(commands: Any) -> None:
    """Add `textvqa`."""
    summary = "TextVQA: questions about the text in pictures"
    parser = official_command(commands, "textvqa", summary, SPLITS)
    parser.add_argument(
        "--ocr",
        type=Path,
        metavar="FILE",
        help="another file of words in its form (default: TextVQA_Rosetta_OCR_v0.2_SPLIT.json)",
    )
    parser.add_argument(
        "--without-ocr", action="store_true", help="pack no words: for models that read by eye"
    )
    packs(parser, parse_textvqa)

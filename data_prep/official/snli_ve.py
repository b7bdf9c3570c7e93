"""SNLI-VE: does a picture of Flickr30k entail a sentence? JSON lines, one a sentence."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from data_prep.command import official_command, packs
from data_prep.json_rows import read_lines
from data_prep.official.flickr30k import PICTURE_FOLDERS
from data_prep.official.published import FLICKR30K, Download, Published
from data_prep.packing.source import Annotation, Dropped, SourceSet, find_file, samples_of

SPLITS = ("train", "dev", "test")
LABELS = ("entailment", "neutral", "contradiction")

SITE = "https://storage.googleapis.com/allennlp-public-data/snli-ve/"
PUBLISHED = (
    Published(
        "SNLI-VE",
        "snli-ve --src SNLI_VE --images FLICKR30K",
        {
            split: (
                Download(
                    f"SNLI_VE/snli_ve_{split}.jsonl", f"{SITE}snli_ve_{split}.jsonl.gz", "",
                    "CC BY-SA 4.0 (SNLI)",
                ),
                FLICKR30K,
            )
            for split in SPLITS
        },
        name="snli_ve",
    ),
)  # fmt: skip


def parse_snli_ve(
    src: Path,
    split: str,
    name: str = "snli_ve",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; sentences on which the annotators disagreed (label "-") are dropped."""
    path = annotations or find_file(src, ("", "data"), f"snli_ve_{split}.jsonl")
    sentences: dict[str, list[Annotation]] = defaultdict(list)
    dropped = []
    for _, row in read_lines(path):
        label = row.value("gold_label")
        if label not in LABELS:
            dropped.append(Dropped(row.id("pairID"), f"label {label}"))
            continue
        hypothesis = row.line("sentence2")
        annotation = {"id": row.id("pairID"), "hypothesis": hypothesis, "label": label}
        annotation = row.annotate(annotation, "pairID", "gold_label", "Flickr30K_ID", "sentence2")
        sentences[row.id("Flickr30K_ID")].append(annotation)
    samples = samples_of(
        sentences, lambda image: find_file(images or src, PICTURE_FOLDERS, f"{image}.jpg")
    )
    return SourceSet(name, "entailment", split, (path,), samples, tuple(dropped))


def add_command(commands: Any) -> None:
    """Add `snli-ve`."""
    parser = official_command(
        commands, "snli-ve", "SNLI-VE: does a picture entail a sentence", SPLITS, name="snli_ve"
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another file")
    packs(parser, parse_snli_ve)

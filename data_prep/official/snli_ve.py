"""SNLI-VE: does a picture of Flickr30k entail a sentence? JSON lines, one a sentence."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ..json_rows import read_lines
from ..packing.source import Annotation, Dropped, SourceSet, find_file, samples_of
from .flickr30k import PICTURE_FOLDERS
from .published import FLICKR30K, Download, OfficialSet, other_file

LABELS = ("entailment", "neutral", "contradiction")
SITE = "https://storage.googleapis.com/allennlp-public-data/snli-ve/"


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
        # "-" where no three of the five annotators agree.
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


SNLI_VE = OfficialSet(
    title="SNLI-VE",
    command="snli-ve",
    name="snli_ve",
    folders="--src SNLI_VE --images FLICKR30K",
    needs={
        split: (
            Download(f"SNLI_VE/{file}", f"{SITE}{file}.gz", licence="CC BY-SA 4.0 (SNLI)"),
            FLICKR30K,
        )
        for split, file in ((name, f"snli_ve_{name}.jsonl") for name in ("train", "dev", "test"))
    },
    parse=parse_snli_ve,
    options={"--annotations": other_file("another file")},
)

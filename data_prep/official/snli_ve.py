"""SNLI-VE: does a picture of Flickr30k entail a sentence? JSON lines, one a sentence."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_prep.command import official_command, shard_options
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    first_existing,
    numbered_json_lines,
    rest,
    take,
    take_id,
    take_text,
    with_source,
)

SPLITS = ("train", "dev", "test")
LABELS = ("entailment", "neutral", "contradiction")


def parse_snli_ve(
    src: Path,
    split: str,
    name: str = "snli_ve",
    annotations: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read a split; sentences on which the annotators did not agree ("-") are dropped."""
    path = annotations or first_existing(
        [src / f"snli_ve_{split}.jsonl", src / "data" / f"snli_ve_{split}.jsonl"]
    )
    said: dict[str, list[Annotation]] = {}
    dropped = []
    for line, row in numbered_json_lines(path):
        place = f"{path}, line {line}"
        number = take_id(row, "pairID", place)
        label = take(row, "gold_label", place)
        if label not in LABELS:
            dropped.append({"id": number, "reason": f"label {label}"})
            continue
        image_id = take_id(row, "Flickr30K_ID", place)
        hypothesis = clean(take_text(row, "sentence2", place))
        annotation = {"id": number, "hypothesis": hypothesis, "label": label}
        extra = rest(row, "pairID", "gold_label", "Flickr30K_ID", "sentence2")
        said.setdefault(image_id, []).append(with_source(annotation, extra))
    folder = images or src
    samples = [
        SourceSample(image_id, (_picture(folder, image_id),), found)
        for image_id, found in said.items()
    ]
    return SourceSet(name, "entailment", split, (path,), samples, tuple(dropped))


def _picture(folder: Path, image_id: str) -> Path:
    parts = (folder / "flickr30k-images", folder / "flickr30k_images", folder / "images", folder)
    return first_existing([part / f"{image_id}.jpg" for part in parts])


def add_command(commands: Any) -> None:
    """Add `snli-ve`."""
    parser = official_command(
        commands, "snli-ve", "SNLI-VE: does a picture entail a sentence", SPLITS, name="snli_ve"
    )
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="another file")

    def run(args: argparse.Namespace) -> None:
        dataset = parse_snli_ve(args.src, args.split, args.name, args.annotations, args.images)
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

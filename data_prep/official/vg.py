"""Visual Genome: its questions, or its phrases about regions, versions 1.0 to 1.4."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.command import add_shard_options, new_command, shard_options
from data_prep.official.coco_karpathy import image_ids
from data_prep.packing.answers import soft_label
from data_prep.packing.pack import pack
from data_prep.packing.source import (
    Annotation,
    SourceSample,
    SourceSet,
    clean,
    first_existing,
    read_json_list,
    rest,
    shown,
    take,
    take_id,
    take_list,
    take_text,
    with_source,
)

FILES = {"questions": "question_answers.json", "regions": "region_descriptions.json"}
LISTS = {"questions": "qas", "regions": "regions"}
KINDS = {"questions": "vqa", "regions": "pair_text"}
FOLDERS = ("VG_100K", "VG_100K_2", "images", "images2", "")
HELD_OUT = ("val", "test")
OF_COCO = "in COCO's val or test split"


def parse_vg(
    src: Path,
    what: str,
    name: str | None = None,
    without_coco: Path | None = None,
    images: Path | None = None,
) -> SourceSet:
    """Read all questions or all regions. Half of the pictures are COCO's: `without_coco`, which is
    Karpathy's `dataset_coco.json`, leaves out those of its val and test splits."""
    path = src / FILES[what]
    files, held_out = [path], set[str]()
    if without_coco is not None:
        files += [without_coco, src / "image_data.json"]
        held_out = _held_out(files[-1], without_coco)
    samples, dropped, left_out = [], [], []
    for number, row in enumerate(read_json_list(path)):
        place = f"{path}, picture {number}"
        image_id = _image_id(row, place)
        found = []
        for part, entry in enumerate(take_list(row, LISTS[what], place)):
            annotation = PARSERS[what](entry, f"{place}, {LISTS[what]} {part}")
            if image_id in held_out:
                annotation = OF_COCO
            if isinstance(annotation, str):
                dropped.append({"id": _id_of(entry, place), "reason": annotation})
            else:
                found.append(annotation)
        if image_id in held_out:
            left_out.append({"id": image_id, "reason": f"picture {OF_COCO}"})
        else:
            samples.append(SourceSample(image_id, (_picture(images or src, image_id),), found))
    return SourceSet(
        name or f"vg_{what}", KINDS[what], "train", tuple(files), samples, tuple(dropped),
        tuple(left_out),
    )  # fmt: skip


def _held_out(image_data: Path, karpathy: Path) -> set[str]:
    coco = set[str]().union(*(image_ids(karpathy, split) for split in HELD_OUT))
    rows = enumerate(read_json_list(image_data))
    return {
        _image_id(row, f"{image_data}, picture {number}")
        for number, row in rows
        if str(take(row, "coco_id", f"{image_data}, picture {number}")) in coco
    }


def _image_id(row: Mapping[str, Any], place: str) -> str:
    """Versions differ in what they call it."""
    old = isinstance(row, Mapping) and "image_id" not in row
    return take_id(row, "id" if old else "image_id", place)


def _id_of(entry: Mapping[str, Any], place: str) -> str:
    for key in ("qa_id", "region_id", "id"):
        if key in entry:
            return take_id(entry, key, place)
    raise ValueError(f"{place}: {shown(entry)} has no qa_id, region_id or id")


def _question(entry: Mapping[str, Any], place: str) -> Annotation | str:
    """Answers end in a full stop, and begin with a capital."""
    question = clean(take_text(entry, "question", place))
    answer = clean(take_text(entry, "answer", place)).rstrip(".").lower().strip()
    if not question or not answer:
        return "no question" if not question else "no answer"
    annotation = {
        "id": _id_of(entry, place),
        "question": question,
        "answers": [answer],
        "label": soft_label([answer]),
    }
    return with_source(annotation, rest(entry, "qa_id", "id", "image_id", "question", "answer"))


def _region(entry: Mapping[str, Any], place: str) -> Annotation | str:
    text = clean(take_text(entry, "phrase", place))
    if not text:
        return "no phrase"
    annotation = {"id": _id_of(entry, place), "text": text}
    return with_source(annotation, rest(entry, "region_id", "id", "image_id", "image", "phrase"))


PARSERS = {"questions": _question, "regions": _region}


def _picture(folder: Path, image_id: str) -> Path:
    return first_existing([folder / part / f"{image_id}.jpg" for part in FOLDERS])


def add_command(commands: Any) -> None:
    """Add `vg`."""
    parser = new_command(
        commands,
        "vg",
        "Visual Genome: questions, or phrases about regions",
        examples=["vg --src VG --what questions --out shards/vg"],
    )
    parser.add_argument(
        "--src", type=Path, required=True, metavar="DIR", help="folder of the official files"
    )
    parser.add_argument("--what", choices=tuple(FILES), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures (default: --src)")
    parser.add_argument("--name", help="of the data set (default: vg_questions or vg_regions)")
    parser.add_argument(
        "--without-coco",
        type=Path,
        metavar="FILE",
        help="dataset_coco.json: leave out the pictures of its val and test splits, which half of "
        "Visual Genome would show to a model that is tested on COCO (needs image_data.json)",
    )
    add_shard_options(parser)

    def run(args: argparse.Namespace) -> None:
        dataset = parse_vg(args.src, args.what, args.name, args.without_coco, args.images)
        pack(dataset, args.out, shard_options(args))

    parser.set_defaults(run=run)

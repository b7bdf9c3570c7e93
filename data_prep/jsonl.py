"""Anybody's own data: pictures in a folder, and rows in JSON lines, a JSON list or CSV."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.command import add_shard_options, new_command, shard_options
from data_prep.pack import pack, ready
from data_prep.row_annotations import TASKS, FieldNames, annotations_of
from data_prep.rows import Row, read_rows
from data_prep.snli_ve import LABELS
from data_prep.source import TYPES, SourceSample, SourceSet, first_existing, shown


@dataclass(frozen=True)
class HashSplit:
    """A fraction of the pictures is `test`, the others `train`; pictures added later move none."""

    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"--split-by-image {self.fraction}: give the test pictures' share, between 0 and 1"
            )

    def of(self, image: str) -> str:
        """All questions of a picture go the same way."""
        digest = hashlib.blake2b(f"{self.seed}:{image}".encode(), digest_size=8).digest()
        return "test" if int.from_bytes(digest, "big") / 2**64 < self.fraction else "train"

    def require_both(self, parts: Iterable[str]) -> None:
        """Chance may leave a side of very few pictures empty."""
        empty = {"train", "test"}.difference(parts)
        if empty:
            raise ValueError(
                f"--split-by-image {self.fraction} leaves no picture for {' and '.join(empty)}; "
                "change the fraction or --seed"
            )


def parse_jsonl(
    task: str,
    annotations: Path,
    images: Path,
    names: FieldNames,
    name: str,
    split: str | HashSplit = "train",
) -> list[SourceSet]:
    """Rows -> one data set for each split they fall in; `task` is one of TASKS."""
    rows = read_rows(annotations)
    _check_fields(rows, names, annotations)
    samples: dict[str, dict[str, SourceSample]] = {}
    dropped: dict[str, list[dict[str, str]]] = {}
    for number, row in enumerate(rows):
        image = str(row[names.image]).strip()
        part = _split_of(row, image, names, split)
        found = annotations_of(task, row, str(row[names.id]) if names.id else str(number), names)
        if isinstance(found, str):
            row_id = str(row[names.id]) if names.id else str(number)
            dropped.setdefault(part, []).append({"id": row_id, "reason": found})
            continue
        sample = samples.setdefault(part, {}).setdefault(
            image, SourceSample(image, (_picture(images, image),), [])
        )
        sample.annotations.extend(found)
    if isinstance(split, HashSplit):
        split.require_both(samples)
    return [
        SourceSet(
            name,
            task,
            part,
            (annotations,),
            list(samples.get(part, {}).values()),
            tuple(dropped.get(part, ())),
        )
        for part in sorted({*samples, *dropped})
    ]


def _check_fields(rows: Sequence[Row], names: FieldNames, path: Path) -> None:
    if not rows:
        raise ValueError(f"{path}: no rows")
    for number, row in enumerate(rows):
        for wanted in names.named():
            if wanted not in row:
                raise ValueError(
                    f"{path}, row {number}: no field {wanted!r}; it has {', '.join(map(str, row))}."
                    " Name the fields with --image-field, --question-field, --answer-field, ..."
                )
            many = wanted in (names.answer, names.caption)
            what = f"{path}, row {number}: {wanted!r}"
            _check_value(row[wanted], many, what)
            if wanted in (names.id, names.split) and isinstance(row[wanted], bool | None):
                raise ValueError(f"{what} is {shown(row[wanted])}; expected text or a number")
        for kind in TYPES if names.question else ():
            _check_value(row.get(kind), False, f"{path}, row {number}: {kind!r}")


def _check_value(value: Any, many: bool, what: str) -> None:
    """Refuse what would be stored as the text of a Python object."""
    values = value if many and isinstance(value, list) else [value]
    if any(isinstance(entry, (dict, list)) for entry in values):
        expected = "text, a number or a list of them" if many else "text or a number"
        raise ValueError(f"{what} is {shown(value)}; expected {expected}")


def _split_of(row: Row, image: str, names: FieldNames, split: str | HashSplit) -> str:
    if names.split is not None:
        return str(row[names.split]).strip() or "none"
    return split.of(image) if isinstance(split, HashSplit) else split


def _picture(folder: Path, image: str) -> Path:
    """The row may name the file with or without its extension."""
    return first_existing([folder / f"{image}{ending}" for ending in ("", ".jpg", ".jpeg", ".png")])


def add_command(commands: Any) -> None:
    """Add `jsonl`."""
    parser = new_command(
        commands,
        "jsonl",
        "your own data: rows in JSON lines, a JSON list or CSV",
        "One row a question, caption or sentence. All rows about a picture become one sample. "
        "Answers are stripped and lower-cased; a list of ten is weighed as in VQA v2. Rows without "
        "a picture, question, answer or known label are dropped and counted.",
    )
    parser.add_argument("--task", choices=tuple(TASKS), required=True)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    fields = parser.add_argument_group("fields of a row")
    fields.add_argument("--image-field", default="image", metavar="NAME", help="below --images")
    fields.add_argument("--question-field", default="question", metavar="NAME")
    fields.add_argument(
        "--answer-field", default="answer", metavar="NAME", help="or numbers, lists"
    )
    fields.add_argument(
        "--no-answers", action="store_true", help="questions or sentences only (a test set)"
    )
    fields.add_argument("--caption-field", default="caption", metavar="NAME", help="text or list")
    fields.add_argument("--hypothesis-field", default="hypothesis", metavar="NAME", help="sentence")
    fields.add_argument("--label-field", default="label", metavar="NAME", help=", ".join(LABELS))
    fields.add_argument("--id-field", metavar="NAME", help="default: the row's number, from 0")
    parser.add_argument("--name", help="of the data set (default: of the annotations file)")
    splits = parser.add_argument_group("splits").add_mutually_exclusive_group()
    splits.add_argument("--split", default="train", help="name of the one split (default: train)")
    splits.add_argument(
        "--split-field", metavar="NAME", help="a row says its split; writes OUT/SPLIT for each"
    )
    splits.add_argument(
        "--split-by-image",
        type=float,
        metavar="FRACTION",
        help="this share of the pictures, with all their rows, goes to OUT/test, the others to "
        "OUT/train, by a hash of the picture's name and --seed",
    )
    add_shard_options(parser)
    parser.set_defaults(run=_run_jsonl)


def _run_jsonl(args: argparse.Namespace) -> None:
    asks, judges = args.task == "vqa", args.task == "entailment"
    names = FieldNames(
        image=args.image_field,
        question=args.question_field if asks else None,
        answer=args.answer_field if asks and not args.no_answers else None,
        caption=args.caption_field if args.task == "caption" else None,
        hypothesis=args.hypothesis_field if judges else None,
        label=args.label_field if judges and not args.no_answers else None,
        id=args.id_field,
        split=args.split_field,
    )
    by_image = args.split_by_image is not None
    split = HashSplit(args.split_by_image, args.seed) if by_image else args.split
    name = args.name or args.annotations.stem.replace(".", "_")
    options = shard_options(args)
    datasets = parse_jsonl(args.task, args.annotations, args.images, names, name, split)
    datasets = [ready(dataset, options) for dataset in datasets]  # before the first is written
    for dataset in datasets:
        apart = by_image or args.split_field is not None
        pack(dataset, args.out / dataset.split if apart else args.out, options)

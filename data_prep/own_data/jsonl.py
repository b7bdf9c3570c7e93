"""Your own data: pictures in a folder, and rows in JSON lines, a JSON list or CSV."""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.command import add_shard_options, new_command, shard_options
from data_prep.own_data.known_forms import plain_rows
from data_prep.own_data.row_annotations import (
    TASKS,
    RowForm,
    annotations_of,
    picture_of,
    text_of,
)
from data_prep.own_data.row_check import check_rows, refuse_repeated_ids
from data_prep.own_data.rows import Row, read_rows
from data_prep.packing.journal import Dropped
from data_prep.packing.named_pictures import find_pictures
from data_prep.packing.source import SourceSample, SourceSet
from data_prep.packing.split import add_split_by_image, pack_splits, split_of

LABELS_HELP = "entailment, neutral, contradiction; or true, false"


def parse_jsonl(
    form: RowForm, annotations: Path, images: Path, name: str, split: str = "train"
) -> list[SourceSet]:
    """Rows -> one data set for each of their splits."""
    rows = plain_rows(read_rows(annotations), form, annotations)
    check_rows(rows, form, annotations)
    names = (picture_of(row.fields, form) for row in rows)
    pictures = find_pictures(images, filter(None, names))
    samples: dict[str, dict[str, SourceSample]] = defaultdict(dict)
    dropped: dict[str, list[Dropped]] = defaultdict(list)
    used: list[tuple[str, str, Row]] = []
    for row in rows:
        part = split if form.split is None else text_of(row.fields, form.split) or "none"
        row_id = text_of(row.fields, form.id) if form.id else row.number
        fault = [Dropped(row_id, row.fault)] if row.fault else []
        for entry in fault or annotations_of(row.fields, row_id, form):
            if isinstance(entry, Dropped):
                dropped[part].append(entry)
                continue
            new = SourceSample(f"row {row_id}", (), [], place=row.place)
            if shown := picture_of(row.fields, form):
                picture = pictures[shown]
                new = replace(new, id=picture.id, images=(picture.path,))
            sample = samples[part].setdefault(new.id, new)
            sample.annotations.append(entry)
            used.append((part, entry["id"], row))
    if form.id is not None:
        refuse_repeated_ids(used, form.id, annotations)
    kind, files = form.task.kind, (annotations,)
    return [
        SourceSet(name, kind, part, files, [*samples[part].values()], tuple(dropped[part]))
        for part in sorted({*samples, *dropped})
    ]


def add_command(commands: Any) -> None:
    """Add `jsonl`."""
    parser = new_command(
        commands,
        "jsonl",
        "your own data: rows in JSON lines, a JSON list or CSV",
        "Each row is a question, caption or sentence. LLaVA's and ShareGPT's conversations (a "
        "question with its answer is a row) and COCO's captions work too. All rows about a "
        "picture become one sample. Answers are stripped and lower-cased; a list of ten is "
        "weighed as in VQA v2. Rows without a picture, question, answer or known label are "
        "dropped and counted.",
        examples=[
            "jsonl --task vqa --annotations rows.jsonl \\\n      --images PHOTOS --out mine",
            "jsonl --task caption --annotations rows.csv \\\n      --images PHOTOS --out mine",
        ],
    )
    # argparse cannot break the three ways to split over lines, and buries the required options.
    parser.usage = (
        "%(prog)s --task TASK --annotations FILE --images DIR\n"
        "                                 --out DIR [OPTIONS]"
    )
    parser.add_argument(
        "--task",
        choices=tuple(TASKS),
        required=True,
        help="statement: sentences that are true or false, for the task VQA",
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    _add_fields(parser.add_argument_group("fields of a row"))
    parser.add_argument(
        "--name", help="name of the data set (default: that of the annotations file)"
    )
    splits = parser.add_argument_group("splits").add_mutually_exclusive_group()
    splits.add_argument("--split", default="train", help="name of the split (default: train)")
    splits.add_argument(
        "--split-field",
        metavar="NAME",
        help="the field that names a row's split; each split goes to OUT/SPLIT",
    )
    add_split_by_image(splits)
    add_shard_options(parser)
    parser.set_defaults(run=_run_jsonl)


def _add_fields(group: Any) -> None:
    add_field = partial(group.add_argument, metavar="NAME")
    add_field("--image-field", default="image", help="file below --images (default: image)")
    group.add_argument(
        "--text-rows",
        action="store_true",
        help="keep rows that name no picture, each as a sample without pictures: for the models "
        "Causal and ImageTextToText",
    )
    add_field("--question-field", default="question", help="default: question")
    add_field("--answer-field", default="answer", help="text, number or list (default: answer)")
    group.add_argument(
        "--no-answers", action="store_true", help="questions or sentences only (a test set)"
    )
    add_field("--caption-field", default="caption", help="text or list (default: caption)")
    add_field(
        "--hypothesis-field",
        "--statement-field",
        help="sentence (default: hypothesis, or statement)",
    )
    add_field("--label-field", default="label", help=f"{LABELS_HELP} (default: label)")
    add_field("--id-field", help="default: the row's line, as an editor counts it")


def _row_form(args: argparse.Namespace) -> RowForm:
    task = TASKS[args.task]
    text = getattr(args, f"{task.text_option}_field") or task.text
    has_target = task.target is not None and not args.no_answers
    target = getattr(args, f"{task.target}_field") if has_target else None
    split = args.split_field
    return RowForm(task, args.image_field, text, target, args.id_field, split, args.text_rows)


def _run_jsonl(args: argparse.Namespace) -> None:
    form = _row_form(args)
    split = split_of(args)
    name = args.name or args.annotations.stem.replace(".", "_")
    options = shard_options(args)
    split_name = args.split if split is None else "train"
    datasets = parse_jsonl(form, args.annotations, args.images, name, split_name)
    apart = split is not None or args.split_field is not None
    noun = "id" if form.id else None
    pack_splits(datasets, split, args.out, options, apart=apart, noun=noun)

"""`jsonl`: your own data, pictures in a folder and rows in JSON lines, a JSON list or CSV.

Rows may also be COCO's captions. Conversations are for `chat`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlds.schema import Group

from ..command import add_shard_options, new_command, shard_options
from ..json_rows import JsonRow
from ..packing.pack import pack_splits
from ..packing.picture import find_pictures
from ..packing.source import Annotation, Dropped, SourceSample, SourceSet
from ..packing.splits import GROUP_FIELD, NEAR_COPIES, SPLIT_BY_IMAGE, SPLIT_SIZES, split_of
from .rows import (
    TASKS,
    Fields,
    RowForm,
    UserRow,
    annotations_of,
    check_rows,
    picture_of,
    read_rows,
    refuse_repeated_ids,
    text_of,
)

MOST_TYPES, OFTEN = 20, 20
"""Most different questions that are types, and how often each is asked on average."""


def plain_rows(rows: Sequence[UserRow], form: RowForm, path: Path) -> Sequence[UserRow]:
    """COCO's captions as rows with the fields of `form`; other rows as they are."""
    # The first row tells the form of the file.
    fields = rows[0].fields if rows else {}
    lists = {name for name, value in fields.items() if isinstance(value, list)}
    if len(rows) == 1 and {"images", "annotations"} <= lists:
        if form.task.kind != "caption":
            raise ValueError(f"{path} is in COCO's form, which holds captions: give --task caption")
        return list(_rows_of_coco(JsonRow(fields, f"{path}"), form))
    return rows


def _rows_of_coco(content: JsonRow, form: RowForm) -> Iterator[UserRow]:
    entries = content.array("annotations")
    if entries and not any(isinstance(entry, dict) and "caption" in entry for entry in entries):
        raise ValueError(
            f"{content.place} is in COCO's form and has no captions (boxes, key points or segments "
            "are not read); give the file of captions"
        )
    pictures: dict[str, tuple[str, Fields]] = {}
    for image in content.rows("images", "image", 1):
        image_id = image.id("id")
        if image_id in pictures:
            raise ValueError(
                f"{image.place}: 'id' is {image_id}, which {pictures[image_id][0]!r} has already; "
                "ids of images must be unique"
            )
        pictures[image_id] = image.text("file_name"), image.fields
    for entry in content.rows("annotations", "annotation", 1):
        # A caption whose picture the file lacks is dropped and counted.
        file, about = pictures.get(entry.id("image_id"), ("", {}))
        fields = {form.image: file, form.text: entry.text("caption")}
        if form.split is not None:
            fields[form.split] = about.get(form.split, "")
        annotation_id = entry.id("id")
        if form.id is not None:
            fields[form.id] = entry.fields.get(form.id, annotation_id)
        yield UserRow(
            fields, annotation_id, "annotation", "" if file else "picture not in the file"
        )


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
    used: list[tuple[str, str, UserRow]] = []
    for row in rows:
        part = split if form.split is None else text_of(row.fields, form.split) or "none"
        row_id = text_of(row.fields, form.id) if form.id else row.number
        fault = [Dropped(row_id, row.fault)] if row.fault else []
        for entry in fault or annotations_of(row.fields, row_id, form):
            if isinstance(entry, Dropped):
                dropped[part].append(entry)
                continue
            # Rows about a picture share its sample; a row without one is a sample itself.
            new = SourceSample(f"row {row_id}", (), [], place=row.place)
            if shown := picture_of(row.fields, form):
                picture = pictures[shown]
                new = replace(new, id=picture.id, images=(picture.path,))
            sample = samples[part].setdefault(new.id, new)
            sample.annotations.append(entry)
            if form.group is not None and (named := text_of(row.fields, form.group)):
                groups = dict.fromkeys((*sample.groups, Group(form.group, named)))
                samples[part][new.id] = replace(sample, groups=tuple(groups))
            used.append((part, entry["id"], row))
    # Rows that are named by their lines differ in any case.
    if form.id is not None:
        refuse_repeated_ids(used, form.id, annotations)
    kind, files = form.task.kind, (annotations,)
    if kind == "vqa":
        add_types([a for of in samples.values() for s in of.values() for a in s.annotations])
    return [
        SourceSet(name, kind, part, files, [*samples[part].values()], tuple(dropped[part]))
        for part in sorted({*samples, *dropped})
    ]


def add_types(asked: Sequence[Annotation]) -> None:
    """Make each question a type, by which scores are tabulated, if few questions recur often and
    the rows bring no types."""
    num = len({annotation["question"] for annotation in asked})
    few = 1 < num <= MOST_TYPES and len(asked) >= OFTEN * num
    if few and not any("question_type" in annotation for annotation in asked):
        for annotation in asked:
            annotation["question_type"] = annotation["question"]


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "jsonl",
        "Each row is a question, caption or sentence; COCO's captions work too, and `chat` takes "
        "conversations. All rows about a picture become one sample. A list of ten answers is "
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
    group = parser.add_argument_group("splits")
    splits = group.add_mutually_exclusive_group()
    splits.add_argument("--split", default="train", help="name of the split (default: train)")
    splits.add_argument(
        "--split-field",
        metavar="NAME",
        help="the field that names a row's split; each split goes to OUT/SPLIT",
    )
    splits.add_argument("--split-by-image", **SPLIT_BY_IMAGE)
    splits.add_argument("--split-sizes", **SPLIT_SIZES)
    group.add_argument("--group-field", **GROUP_FIELD)
    group.add_argument("--near-copies", **NEAR_COPIES)
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
    add_field(
        "--label-field",
        default="label",
        help="entailment, neutral, contradiction; or true, false (default: label)",
    )
    add_field("--id-field", help="default: the row's line, as an editor counts it")


def _run_jsonl(args: argparse.Namespace) -> None:
    task = TASKS[args.task]
    text = getattr(args, f"{task.text_option}_field") or task.text
    has_target = task.target is not None and not args.no_answers
    target = getattr(args, f"{task.target}_field") if has_target else None
    form = RowForm(
        task,
        args.image_field,
        text,
        target,
        args.id_field,
        args.split_field,
        args.text_rows,
        args.group_field,
    )
    split = split_of(args)
    name = args.name or args.annotations.stem.replace(".", "_")
    options = shard_options(args)
    split_name = args.split if split is None else "train"
    datasets = parse_jsonl(form, args.annotations, args.images, name, split_name)
    apart = split is not None or args.split_field is not None
    noun = "id" if form.id else None
    near = args.near_copies
    pack_splits(datasets, split, args.out, options, apart=apart, noun=noun, near=near)

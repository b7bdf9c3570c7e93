"""A benchmark's row, in the forms of three tasks; from rows to a packed data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlds.schema import CHOICE_LETTERS

from ..command import add_shard_options, shard_options
from ..json_rows import clean
from ..own_data.chat import Album, scratch_beside, with_albums
from ..own_data.conversations import Unusable
from ..packing.pack import answer_fields, pack, text_fault
from ..packing.source import Annotation, Dropped, SourceSample, SourceSet


class Photo(NamedTuple):
    """A picture of a row: the bytes of a file, or its name below --images."""

    content: bytes | str


class Said(NamedTuple):
    """What a speaker says in the harness's own words, with pictures in place."""

    role: str
    parts: Sequence[str | Photo]


@dataclass(frozen=True)
class BenchmarkRow:
    """A question as a harness has it."""

    id: str
    turns: Sequence[Said]
    question: str
    """The question alone, for tasks that add their own words."""
    answers: Sequence[str] = ()
    """Right answers, the best first; () if the row has no label. Of a question with options, a
    letter."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Letter -> option."""
    hint: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Table of scores -> the question's group in it."""


def _chat(row: BenchmarkRow) -> Annotation:
    """The harness's own words, for the task Chat."""
    turns = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in turn.parts
            ],
        }
        for turn in row.turns
    ]
    annotation: Annotation = {"id": row.id, "turns": turns}
    if row.answers:
        annotation["answer"] = row.answers[0]
    return {**annotation, "source": dict(row.groups)} if row.groups else annotation


def _multiple_choice(row: BenchmarkRow) -> Annotation:
    """Question and options, for the task MultipleChoice."""
    letters = list(row.options)
    if not letters:
        raise Unusable("no options")
    if letters != list(CHOICE_LETTERS[: len(letters)]):
        raise Unusable(
            f"options {', '.join(letters)}; A to {CHOICE_LETTERS[-1]} are read, in order"
        )
    annotation: Annotation = {
        "id": row.id,
        "question": clean(row.question),
        "choices": [clean(option) for option in row.options.values()],
    }
    if row.answers:
        annotation["answer_index"] = letters.index(row.answers[0])
    if row.hint:
        annotation["hint"] = clean(row.hint)
    return {**annotation, "groups": dict(row.groups)} if row.groups else annotation


def _vqa(row: BenchmarkRow) -> Annotation:
    """A question and its answers, for the task VQA."""
    if row.options:
        raise Unusable("options, which --form vqa does not have")
    annotation: Annotation = {"id": row.id, "question": clean(row.question)}
    if row.answers:
        annotation |= answer_fields(list(row.answers))
    return {**annotation, "source": dict(row.groups)} if row.groups else annotation


FORMS: Mapping[str, Callable[[BenchmarkRow], Annotation]] = {
    "chat": _chat,
    "multiple_choice": _multiple_choice,
    "vqa": _vqa,
}
"""Kind of the data set -> what makes its annotations."""


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of the commands of harnesses; `name`: what the data set is called by default."""
    parser.add_argument(
        "--form",
        choices=tuple(FORMS),
        default="chat",
        help="chat: the harness's own words, for runs of the task Chat (default); multiple_choice, "
        "vqa: question, options and answers, for runs of MultipleChoice and VQA, which have words "
        "of their own",
    )
    parser.add_argument("--split", default="test", help="name of the split (default: test)")
    parser.add_argument("--name", help=f"name of the data set (default: {name})")
    add_shard_options(parser)


def pack_rows(
    rows: Iterable[BenchmarkRow | Dropped],
    name: str,
    files: Sequence[Path],
    args: argparse.Namespace,
    images: Path | None = None,
) -> None:
    """Pack rows in the form that --form names. Rows about one picture share a sample, so that
    intervals and tests count it once. `images`: where rows name pictures."""
    with scratch_beside(args.out) as scratch:
        album = Album("image", images, scratch / "images")
        kept: list[tuple[Annotation, list[str | Path]]] = []
        dropped: list[Dropped] = []
        for row in rows:
            if isinstance(row, Dropped):
                dropped.append(row)
                continue
            shown = [part for turn in row.turns for part in turn.parts if isinstance(part, Photo)]
            try:
                annotation = FORMS[args.form](row)
                if fault := text_fault(annotation):
                    raise Unusable(fault)
                kept.append((annotation, [_place(photo, album) for photo in shown]))
            except Unusable as reason:
                dropped.append(Dropped(row.id, str(reason)))
        # Names are looked up at once, after the last row: a folder of pictures is listed one time.
        known = album.files()
        samples: dict[str, SourceSample] = {}
        for annotation, places in kept:
            named = [
                (place.name, place) if isinstance(place, Path) else known[place] for place in places
            ]
            # Rows about several pictures, or none, are separate samples: no row shares all.
            sample_id = named[0][0] if len(named) == 1 else f"row {annotation['id']}"
            new = SourceSample(sample_id, tuple(path for _, path in named), [])
            samples.setdefault(sample_id, new).annotations.append(annotation)
        dataset = SourceSet(
            name, args.form, args.split, tuple(files), [*samples.values()], tuple(dropped)
        )
        options = with_albums(shard_options(args), [album], scratch, args.images_anywhere)
        pack(dataset, args.out, options)


def _place(photo: Photo, album: Album) -> str | Path:
    """The name that a row gives, or the file of what it holds.

    Errors: Unusable.
    """
    content: Any = photo.content
    return album.keep(content) if isinstance(content, bytes) else album.of({"path": content})

"""`index`: turn tars that others wrote into a data set, by an index next to them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import islice
from typing import Any

from vlds.data.shards.remote_folder import Folder, fetched, lock_place
from vlds.data.shards.sample import UNUSABLE, check_fields, parse_sample
from vlds.data.shards.shard_stream import read_shard
from vlds.data.shards.writing import index_folder, tars_in
from vlds.runtime.folders import folder_lock
from vlds.runtime.json_files import in_words
from vlds.runtime.terminal import tell

from ..command import any_folder, new_command


def field_of(text: str) -> tuple[str, str]:
    """Parse `caption=txt`."""
    field, equals, member = text.partition("=")
    if not (field and equals and member):
        raise argparse.ArgumentTypeError(f"{text!r}: give FIELD=MEMBER, such as caption=txt")
    return field, member


def check_first(folder: Folder, kind: str, fields: Mapping[str, str]) -> None:
    """Read the first sample of a folder's tars as a run would, before anything is written.

    Errors: ValueError if the fields do not fit the kind or the sample.
    """
    try:
        check_fields(kind, fields)
    except ValueError as error:
        raise ValueError(f"--fields: {error}") from None
    # Only the first: wrong --fields show there, and indexing all tars may take hours.
    for name in tars_in(folder)[:1]:
        with fetched(folder, name) as place:
            try:
                for key, content in islice(read_shard(str(place / name)), 1):
                    parse_sample(key, content, name, kind, fields)
            except UNUSABLE as error:
                raise ValueError(
                    f"{place / name}: the first sample cannot be read ({in_words(error)}); say "
                    "with --fields which member of a sample holds what"
                ) from None


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "index",
        "Writes the index files next to every tar of a folder, and dataset.json. Tars of other "
        "programs, such as img2dataset, need --fields. An existing dataset.json keeps its record "
        "of the source and of dropped rows.",
        examples=["index TARS --name mine --kind caption --split train"],
    )
    parser.add_argument("folder", type=any_folder, metavar="DIR")
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument(
        "--kind", required=True, help="kind of its annotations: vqa, gqa, caption, ..."
    )
    parser.add_argument("--split", required=True)
    parser.add_argument(
        "--fields",
        type=field_of,
        nargs="+",
        metavar="FIELD=MEMBER",
        help="which member of a sample holds what: caption=txt, or a key of a JSON member: "
        "question=json:question answer=json:answer",
    )

    def run(args: argparse.Namespace) -> None:
        fields = dict(args.fields) if args.fields else None
        if fields is not None:
            check_first(args.folder, args.kind, fields)
        with folder_lock(lock_place(args.folder)):
            info = index_folder(
                args.folder, name=args.name, kind=args.kind, split=args.split, fields=fields
            )
        tell(f"{info.name} {info.split}: {len(info.shards)} shards, {info.samples:,} samples")

    parser.set_defaults(run=run)

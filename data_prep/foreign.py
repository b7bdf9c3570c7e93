"""Tars that others have written: an index beside them makes them a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_prep.command import new_command
from vlds.data import open_dataset
from vlds.data.foreign import check_fields
from vlds.data.index import index_folder
from vlds.data.info import DATASET_FILE
from vlds.schema import SkipSample


def field_of(text: str) -> tuple[str, str]:
    """`caption=txt` in its two parts."""
    field, equals, member = text.partition("=")
    if not (field and equals and member):
        raise argparse.ArgumentTypeError(f"{text!r}: give FIELD=MEMBER, such as caption=txt")
    return field, member


def add_command(commands: Any) -> None:
    """Add `index`."""
    parser = new_command(
        commands,
        "index",
        "make a data set of tars that lie there already",
        "Writes the .idx and .cnt beside every tar of a folder, and dataset.json. Tars that others "
        "have written, such as img2dataset, need --fields.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--name", required=True, help="of the data set")
    parser.add_argument("--kind", required=True, help="of its annotations: vqa, gqa, caption, ...")
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
            try:
                check_fields(args.kind, fields)
            except ValueError as error:
                raise ValueError(f"--fields: {error}") from None
        info = index_folder(
            args.folder, name=args.name, kind=args.kind, split=args.split, fields=fields
        )
        try:
            open_dataset(args.folder).read(0)
        except SkipSample as error:
            (args.folder / DATASET_FILE).unlink()
            raise ValueError(
                f"its first sample cannot be read: {error}; say with --fields which member of a "
                "sample holds what"
            ) from None
        print(f"{info.name} {info.split}: {len(info.shards)} shards, {info.samples:,} samples")

    parser.set_defaults(run=run)

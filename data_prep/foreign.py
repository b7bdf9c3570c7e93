"""Tars that others have written: an index beside them makes them a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_prep.command import new_command
from vlds.data.index import index_folder


def add_command(commands: Any) -> None:
    """Add `index`."""
    parser = new_command(
        commands,
        "index",
        "make a data set of tars that lie there already",
        "Writes the .idx and .cnt beside every tar of a folder, and dataset.json.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--name", required=True, help="of the data set")
    parser.add_argument("--kind", required=True, help="of its annotations: vqa, gqa, caption, ...")
    parser.add_argument("--split", required=True)

    def run(args: argparse.Namespace) -> None:
        info = index_folder(args.folder, name=args.name, kind=args.kind, split=args.split)
        print(f"{info.name} {info.split}: {len(info.shards)} shards, {info.samples:,} samples")

    parser.set_defaults(run=run)

"""What the commands share: how they are declared, and the options about shards and pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.pack import Options
from data_prep.picture import PictureRule


def new_command(
    commands: Any, name: str, summary: str, description: str | None = None
) -> argparse.ArgumentParser:
    """A command of `python -m data_prep`; its `run` is set with `set_defaults`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description or f"{summary[0].upper()}{summary[1:]}."
    )
    return parser


def official_command(
    commands: Any, command: str, summary: str, splits: Iterable[str], name: str | None = None
) -> argparse.ArgumentParser:
    """A command that reads a publisher's files."""
    parser = new_command(commands, command, summary)
    parser.add_argument(
        "--src", type=Path, required=True, metavar="DIR", help="folder of the official files"
    )
    parser.add_argument("--split", choices=tuple(splits), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures (default: --src)")
    name = name or command
    parser.add_argument("--name", default=name, help=f"of the data set (default: {name})")
    add_shard_options(parser)
    return parser


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    """How pictures become shards."""
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--shard-samples", type=int, default=1000, metavar="N", help="most a shard (default: 1000)"
    )
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="make larger pictures smaller: the shorter side (default: as they are)",
    )
    group.add_argument(
        "--square", action="store_true", help="both sides to --image-size, proportions given up"
    )


def shard_options(args: argparse.Namespace) -> Options:
    """The options of a parsed command line."""
    given = {key: plain(value) for key, value in vars(args).items() if key != "run"}
    arguments = {key: value for key, value in given.items() if value not in (None, [])}
    return Options(PictureRule(args.image_size, args.square), args.shard_samples, arguments)


def plain(value: Any) -> Any:
    """What json can hold: paths as text."""
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value

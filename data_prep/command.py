"""What the commands share: how they are declared, and the options about shards and pictures."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from data_prep.packing.pack import Options
from data_prep.packing.picture import ImageFormat, PictureRule
from data_prep.packing.writer import Limits
from vlds.data.shards.remote import is_url

DEFAULT_SHARD_SIZE = "512MB"
NOT_RECORDED = {"run", "workers", "resume", "images_anywhere"}
"""What the shards do not depend on."""


PROGRAM = "python -m data_prep"


def new_command(
    commands: Any, name: str, summary: str, description: str = "", *, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """A command of `python -m data_prep`; its `run` is set with `set_defaults`. `examples` are
    words behind the program's name."""
    first = f"{summary[0].upper()}{summary[1:]}."
    parts = [first, description, "\n".join(f"  {PROGRAM} {example}" for example in examples)]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description="\n\n".join(filter(None, parts)),
    )
    return parser


def official_command(
    commands: Any, command: str, summary: str, splits: Iterable[str], name: str | None = None
) -> argparse.ArgumentParser:
    """A command that reads a publisher's files."""
    known = tuple(splits)
    example = f"{command} --src DOWNLOADED --split {known[0]} --out shards/{command}"
    parser = new_command(commands, command, summary, examples=[example])
    parser.add_argument(
        "--src", type=Path, required=True, metavar="DIR", help="folder of the official files"
    )
    parser.add_argument(
        "--split", choices=known, required=True, metavar="SPLIT", help=f"one of {', '.join(known)}"
    )
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
        "--shard-size",
        type=num_bytes,
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help=f"most bytes a shard, such as 512MB or 1GB (default: {DEFAULT_SHARD_SIZE})",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes that open pictures; the shards do not depend on it (default: the cores)",
    )
    group.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="of the order of samples in the shards, and of splits that are drawn (default: 0)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted command with the same options stopped",
    )
    _add_picture_options(group)


def _add_picture_options(group: Any) -> None:
    """What is stored of pictures, and which are taken."""
    group.add_argument(
        "--features",
        type=Path,
        metavar="PATH",
        help="store features instead of pictures: a folder of NAME.h5, .npz or .npy, or one HDF5 "
        "file, NAME being the picture's without its ending",
    )
    group.add_argument("--encoder", metavar="NAME", help="what made the features, for the record")
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="make larger pictures smaller: the shorter side (default: as they are)",
    )
    group.add_argument(
        "--square", action="store_true", help="both sides to --image-size, proportions given up"
    )
    group.add_argument(
        "--image-format",
        choices=get_args(ImageFormat),
        help="how a picture that --image-size has changed is stored: webp, without loss (default), "
        "or jpeg, in half the bytes, which moves what a frozen encoder sees by a sixth",
    )
    group.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave rows out whose picture or features are missing; they are counted, and listed "
        "in dataset.json",
    )
    group.add_argument(
        "--images-anywhere",
        action="store_true",
        help="let rows name pictures and features outside the folders given, by .., absolute paths "
        "or links: for rows that you trust",
    )


def shard_options(args: argparse.Namespace) -> Options:
    """The options of a parsed command line."""
    if args.image_format is not None and args.image_size is None:
        raise ValueError(
            f"--image-format {args.image_format} needs --image-size: pictures that keep their size "
            "keep their bytes"
        )
    given = {key: plain(value) for key, value in vars(args).items() if key not in NOT_RECORDED}
    return Options(
        PictureRule(args.image_size, args.square, args.image_format or "webp"),
        Limits(samples=args.shard_samples, bytes=args.shard_size),
        args.workers,
        args.resume,
        args.features,
        args.encoder,
        args.seed,
        getattr(args, "images", None) or getattr(args, "src", None),
        args.skip_missing,
        () if args.images_anywhere else source_folders(args),
        {key: value for key, value in given.items() if value not in (None, [])},
    )


def source_folders(args: argparse.Namespace) -> tuple[Path, ...]:
    """The folders in which a command looks for pictures and features."""
    pictures = getattr(args, "images", None) or getattr(args, "src", None)
    return tuple(folder for folder in (pictures, args.features) if folder is not None)


def num_bytes(text: str) -> int:
    """A size such as 512MB (10^6), 1GiB (2^30) or 1000000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give one such as 512MB or 1GiB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))


def seed(text: str) -> int:
    """A number that fits into 64 bits."""
    if not text.isdecimal() or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give a number from 0 to 2^64 - 1")
    return int(text)


def local_folder(text: str) -> Path:
    """A folder of this machine: the commands that look at shards read them there."""
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is a URL; copy the shards into a folder of this machine, and name that"
        )
    return Path(text)


def plain(value: Any) -> Any:
    """What json can hold: paths as text."""
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value

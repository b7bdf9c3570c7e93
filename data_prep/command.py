"""What the commands share: their declaration, and the options about shards and pictures."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, get_args

from vlds.data.shards.remote_folder import Folder, RemoteFolder, folder_at
from vlds.runtime.cluster import LOCAL, executor_name

from .catalogue import PROGRAM, SUMMARIES
from .packing.pack import Options, pack, pack_splits
from .packing.picture import ImageFormat, PictureRule
from .packing.source import SourceSet
from .packing.splits import split_of
from .packing.writer import ShardLimits

DEFAULT_SHARD_SIZE = "512MB"
NOT_RECORDED = {"run", "workers", "executor", "cluster", "resume", "images_anywhere"}
"""Options that do not change the shards."""


def new_command(
    commands: Any, name: str, description: str = "", *, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """Add a command of the catalogue; set its `run` with `packs` or `set_defaults`. `examples` are
    the words after the program's name."""
    summary = SUMMARIES[name]
    first = f"{summary[0].upper()}{summary[1:]}."
    parts = [first, description, "\n".join(f"  {PROGRAM} {example}" for example in examples)]
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description="\n\n".join(filter(None, parts))
    )
    return parser


def packs(parser: argparse.ArgumentParser, parse: Callable[..., SourceSet]) -> None:
    """Let a command pack what `parse` returns; each parameter of `parse` is the option of the same
    name. The command may have --split-by-image."""
    # `parse` says by its parameters what it needs: --out, --seed and others are for the packing.
    names = signature(parse).parameters

    def run(args: argparse.Namespace) -> None:
        split = split_of(args)
        dataset = parse(**{name: getattr(args, name) for name in names})
        if split is None:
            pack(dataset, args.out, shard_options(args))
        else:
            pack_splits([dataset], split, args.out, shard_options(args), apart=True)

    parser.set_defaults(run=run)


def add_shard_options(parser: argparse.ArgumentParser) -> None:
    """Add --out and the options about shards and pictures."""
    parser.add_argument(
        "--out",
        type=any_folder,
        required=True,
        metavar="DIR",
        help="folder to write, or one of an object store, such as s3://bucket/folder",
    )
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--shard-samples",
        type=at_least(1),
        default=1000,
        metavar="N",
        help="most samples in a shard (default: 1000)",
    )
    group.add_argument(
        "--shard-size",
        type=num_bytes,
        default=DEFAULT_SHARD_SIZE,
        metavar="SIZE",
        help=f"most bytes in a shard, such as 512MB or 1GB (default: {DEFAULT_SHARD_SIZE})",
    )
    add_workers(group, "open pictures; their number does not change the shards")
    group.add_argument(
        "--seed",
        type=seed,
        default=0,
        help="seed of the samples' order in the shards, and of splits that are drawn (default: 0)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue where an interrupted command with the same options stopped",
    )
    group.add_argument(
        "--features",
        type=Path,
        metavar="PATH",
        help="store features instead of pictures: a folder of NAME.h5, .npz or .npy, or one HDF5 "
        "file; NAME is the picture's name without its extension",
    )
    group.add_argument(
        "--boxes",
        action="store_true",
        help="store a detector's boxes with its features, for StoredFeatures with `boxes: true`: "
        "each file or group has boxes (x1, y1, x2, y2), img_w and img_h",
    )
    group.add_argument(
        "--encoder",
        metavar="NAME",
        help="name of the encoder that made the features, for the record",
    )
    group.add_argument(
        "--image-size",
        type=at_least(1),
        metavar="PIXELS",
        help="resize larger pictures so that their shorter side has this many pixels (default: "
        "keep every picture as it is)",
    )
    group.add_argument(
        "--square",
        action="store_true",
        help="scale both sides to --image-size instead of keeping the proportions",
    )
    group.add_argument(
        "--image-format",
        choices=get_args(ImageFormat),
        help="how pictures that --image-size resizes are stored: webp, without loss (default), or "
        "jpeg, in half the bytes, which moves what a frozen encoder sees by a sixth",
    )
    group.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out rows whose picture or features are missing; dataset.json lists them",
    )
    group.add_argument(
        "--images-anywhere",
        action="store_true",
        help="allow rows to name pictures and features outside the given folders, by .., absolute "
        "paths or links; only for rows that you trust",
    )


def add_workers(group: Any, work: str) -> None:
    """Add --workers and --executor to a parser or a group; `work` is what the processes do."""
    group.add_argument(
        "--workers",
        type=at_least(1),
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help=f"processes that {work} (default: one per core)",
    )
    group.add_argument(
        "--executor",
        type=where,
        default=LOCAL,
        metavar="WHERE",
        help="where they run: local (default), dask=ADDRESS of a scheduler or its file; "
        "docs/cluster.md has commands",
    )


def shard_options(args: argparse.Namespace) -> Options:
    """The options of a parsed command line."""
    if args.image_format is not None and args.image_size is None:
        raise ValueError(
            f"--image-format {args.image_format} needs --image-size: pictures that keep their size "
            "keep their bytes"
        )
    pictures = getattr(args, "images", None) or getattr(args, "src", None)
    # Rows may name files in these folders alone.
    folders = tuple(folder for folder in (pictures, args.features) if folder is not None)
    # dataset.json keeps these, and --resume continues only where they are the same.
    given = {key: _as_json(value) for key, value in vars(args).items() if key not in NOT_RECORDED}
    return Options(
        rule=PictureRule(args.image_size, args.square, args.image_format or "webp"),
        limits=ShardLimits(samples=args.shard_samples, bytes=args.shard_size),
        workers=args.workers,
        cluster=args.cluster,
        resume=args.resume,
        features=args.features,
        boxes=args.boxes,
        encoder=args.encoder,
        seed=args.seed,
        images=pictures,
        skip_missing=args.skip_missing,
        folders=() if args.images_anywhere else folders,
        arguments={key: value for key, value in given.items() if value not in (None, [])},
    )


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of this size or more."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {text!r}; give a whole number") from None
        if number < minimum:
            raise argparse.ArgumentTypeError(f"got {number}; give {minimum} or more")
        return number

    return parse


def num_bytes(text: str) -> int:
    """Parse a size of at least one byte, such as 512MB (10^6), 1GiB (2^30) or 1000000."""
    # 1.5GiB -> 1.5, g, i; without a match "0", which is too small below.
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    amount, prefix, binary = match.groups() if match else ("0", "", "")
    # The prefix's place in " kmgt" is the power of 1000 or 1024.
    size = int(float(amount) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give one such as 512MB or 1GiB")
    return size


def seed(text: str) -> int:
    """Parse a whole number that fits into 64 bits."""
    if not text.isdecimal() or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a seed; give a number from 0 to 2^64 - 1"
        )
    return int(text)


def where(text: str) -> str:
    """Check the value of --executor."""
    try:
        return executor_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def any_folder(text: str) -> Folder:
    """Parse a folder of data sets, here or in an object store."""
    try:
        return folder_at(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _as_json(value: Any) -> Any:
    """The value as JSON holds it: paths as text."""
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    return str(value) if isinstance(value, Path | RemoteFolder) else value

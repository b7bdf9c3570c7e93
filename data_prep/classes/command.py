"""`imagefolder` and `csv-classes`: pictures of classes -> a data set for each split."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from ..command import add_shard_options, new_command, shard_options
from ..packing.pack import pack_splits
from ..packing.splits import GROUP_FIELD, share_of
from .class_set import TRAIN, ClassShares, ClassSource, GroupShares, class_sets
from .forms import (
    SplitFile,
    find_version,
    read_cifar,
    read_folders,
    read_lists,
    read_table_of_classes,
    split_file,
    tell_left_out,
)


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "imagefolder",
        "Each folder in DIR is a class, and all pictures below it belong to it. If all folders are "
        "called train, val or test, they are splits, and the folders in them are classes. A folder "
        "with CIFAR's binary batches is read as well. Names of folders are the labels. Files that "
        "are not pictures and hidden files are left out and counted.",
        examples=[
            "imagefolder --images EuroSAT/2750 --out shards/eurosat \\\n"
            "      --split-sizes val=0.2 test=0.3",
            "imagefolder --images dtd/images --out shards/dtd --lists \\\n"
            "      train=dtd/labels/train1.txt val=dtd/labels/val1.txt",
        ],
    )
    parser.usage = "%(prog)s --images DIR --out DIR [OPTIONS]"
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of the classes"
    )
    parser.add_argument(
        "--layout",
        choices=("classes", "splits"),
        help="what the folders in DIR are; needed only if some are called train, val or test and "
        "others are not",
    )
    parser.add_argument(
        "--lists",
        type=split_file,
        nargs="+",
        metavar="SPLIT=FILE",
        help="files that list the pictures of each split, CLASS/PICTURE a line, as DTD's; or one "
        "split_zhou_NAME.json of CoOp",
    )
    _add_class_options(parser, "--images's folder")
    add_shard_options(parser)
    parser.set_defaults(run=_run_imagefolder)

    parser = new_command(
        commands,
        "csv-classes",
        "Each row names a picture and its class. Rows without one of them, and rows that repeat an "
        "earlier one, are dropped and counted; a picture with two classes or in two splits is an "
        "error.",
        examples=[
            "csv-classes --annotations labels.csv --images PHOTOS \\\n"
            "      --label-field species --out shards/birds",
            "csv-classes --annotations train=a.csv test=b.csv \\\n"
            "      --images PHOTOS --out shards/birds",
        ],
    )
    parser.usage = (
        "%(prog)s --annotations FILE [SPLIT=FILE ...]\n"
        "                                       --images DIR --out DIR [OPTIONS]"
    )
    parser.add_argument(
        "--annotations",
        type=split_file,
        nargs="+",
        required=True,
        metavar="FILE",
        help="a table; or one for each split, as SPLIT=FILE",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    for field, usual in (("image", "image"), ("label", "label"), ("split", None)):
        ending = f" (default: {usual})" if usual else "; each goes to OUT/SPLIT"
        what = {"image": "picture, below --images", "label": "class", "split": "split"}[field]
        parser.add_argument(
            f"--{field}-field", default=usual, metavar="NAME", help=f"column of the {what}{ending}"
        )
    parser.add_argument("--group-field", **GROUP_FIELD)
    _add_class_options(parser, "the first table's")
    add_shard_options(parser)
    parser.set_defaults(run=_run_csv)


def _add_class_options(parser: argparse.ArgumentParser, usual_name: str) -> None:
    group = parser.add_argument_group("classes and splits")
    group.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="JSON file {class: name} with other names for the classes; their order stays that of "
        "the old names",
    )
    group.add_argument("--name", help=f"name of the data set (default: {usual_name})")
    group.add_argument(
        "--split", metavar="NAME", help=f"the split, if the source names none (default: {TRAIN})"
    )
    group.add_argument(
        "--split-sizes",
        type=share_of,
        nargs="+",
        metavar="SPLIT=SHARE",
        help=f"move these shares of each class's pictures from {TRAIN} to other splits, by a hash "
        "of the picture's name and --seed; each split goes to OUT/SPLIT",
    )


def _run_imagefolder(args: argparse.Namespace) -> None:
    version = None if args.lists else find_version(args.images)
    if args.layout is not None and (args.lists or version):
        raise ValueError("--layout is about folders of classes; leave it out here")
    left_out = Counter[str]()
    if version is not None:
        if args.features is not None:
            raise ValueError("--features: CIFAR's pictures have no names; leave it out")
        source = read_cifar(args.images, version)
    elif args.lists:
        source = read_lists(args.lists, args.images)
    else:
        if not args.images.is_dir():
            raise ValueError(f"--images {args.images} is not a folder; name that of the classes")
        source = read_folders(args.images, args.layout, args.split or TRAIN, left_out)
        tell_left_out(left_out)
    _pack(source, args, args.images.resolve().name)


def _run_csv(args: argparse.Namespace) -> None:
    files: list[SplitFile] = args.annotations
    named = [file for file in files if file.split]
    if named and (args.split_field or len(named) < len(files)):
        raise ValueError(
            f"--annotations {named[0].split}={named[0].path}: give every file a split, and no "
            "--split-field; or one file alone"
        )
    if len(files) > 1 and not named:
        raise ValueError(
            "--annotations: several files need a split each, such as train=FILE test=FILE"
        )
    if not named:
        files = [SplitFile(args.split or TRAIN, files[0].path)]
    fields = (args.image_field, args.label_field, args.split_field, args.group_field)
    source = read_table_of_classes(files, args.images, *fields, apart=bool(named))
    _pack(source, args, files[0].path.stem)


def _pack(source: ClassSource, args: argparse.Namespace, usual_name: str) -> None:
    if args.split is not None and source.apart:
        raise ValueError(f"--split {args.split}: the pictures have splits already; leave it out")
    # It becomes part of the shards' file names, where readers take a dot for an extension's.
    name = args.name or usual_name.replace(".", "_").replace(" ", "_")
    datasets = class_sets(source, name, args.class_names)
    if args.features is not None:
        # Features are found by the names of pictures, without their folders.
        # cat/1.jpg and dog/1.jpg would both get the features 1.h5.
        stems = Counter(path.stem for shown in source.pictures for path in shown.sample.images)
        stem, count = stems.most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"--features: {count:,} pictures are called {stem!r}, in several folders; features "
                "are found by this name alone. Pack the pictures, then run `vlds features`"
            )
    division: ClassShares | GroupShares | None = None
    if args.split_sizes:
        # A dict has each split once: fewer shares than options means that one was named twice.
        shares, splits = dict(args.split_sizes), {dataset.split for dataset in datasets}
        if len(shares) < len(args.split_sizes) or splits & shares.keys() or TRAIN not in splits:
            raise ValueError(
                f"--split-sizes {', '.join(name for name, _ in args.split_sizes)}: the pictures "
                f"have the splits {', '.join(sorted(splits))}; parts of {TRAIN} can become other "
                "splits, each once"
            )
        by_group = getattr(args, "group_field", None) is not None
        division = (GroupShares if by_group else ClassShares)(shares, args.seed)
    apart = source.apart or division is not None
    pack_splits(
        datasets,
        division,
        args.out,
        shard_options(args),
        apart=apart,
        cure="Keep each picture in one split",
    )

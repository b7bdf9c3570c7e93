"""Splits one file into train and test, by picture, and packs each split into its folder."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.packing.duplicates import find_copies, tell_copies, tell_repeats, warn_of_leaks
from data_prep.packing.journal import Dropped
from data_prep.packing.pack import Options, check_folder, pack_ready, ready
from data_prep.packing.source import SourceSample, SourceSet

PARTS = ("test", "train")


@dataclass(frozen=True)
class HashSplit:
    """A fraction of the pictures is `test`, the others are `train`. Pictures that are added later
    do not move any."""

    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"--split-by-image {self.fraction}: give the test pictures' share, between 0 and 1"
            )

    def of(self, image: str) -> str:
        """The split of a picture and of all its questions."""
        digest = hashlib.blake2b(f"{self.seed}:{image}".encode(), digest_size=8).digest()
        return "test" if int.from_bytes(digest, "big") / 2**64 < self.fraction else "train"

    def require_both(self, parts: Iterable[str], copies: Sequence[Sequence[Path]]) -> None:
        """Refuse an empty split: with very few pictures, chance may put all into one."""
        empty = set(PARTS).difference(parts)
        if empty:
            largest = max(map(len, copies), default=0)
            alike = (
                f" ({largest:,} pictures have the same bytes, and stay together)" if copies else ""
            )
            raise ValueError(
                f"--split-by-image {self.fraction} leaves no picture for {' and '.join(empty)}"
                f"{alike}; change the fraction or --seed"
            )


def pack_splits(
    datasets: Sequence[SourceSet],
    split: HashSplit | None,
    out: Path,
    options: Options,
    *,
    apart: bool,
    noun: str | None = "id",
) -> None:
    """Check all data sets, then write them, each to OUT/SPLIT if `apart`, else the only one to OUT.

    With `split`, the only data set becomes two. `noun` is what messages call an id; None if ids are
    places such as "line 7".
    """
    check_folder(out)
    checked = ready(datasets, options)
    copies = find_copies(path for data in checked for s in data.samples for path in s.images)
    if split is not None:
        checked = _split_by_picture(checked[0], split, copies)
    warn_of_leaks(checked, copies)
    for dataset in checked:
        pack_ready(dataset, out / dataset.split if apart else out, options)
    tell_repeats(checked, noun)
    tell_copies(checked, copies)


def _split_by_picture(
    dataset: SourceSet, split: HashSplit, copies: Sequence[Sequence[Path]]
) -> list[SourceSet]:
    """Test and train; pictures of the same bytes (`copies`) go to the same one."""
    ids = {path: sample.id for sample in dataset.samples for path in sample.images}
    # All copies go where the one with the first id goes.
    first_id = {ids[path]: min(ids[other] for other in group) for group in copies for path in group}
    parts: dict[str, list[SourceSample]] = {}
    for sample in dataset.samples:
        parts.setdefault(split.of(first_id.get(sample.id, sample.id)), []).append(sample)
    split.require_both(parts, copies)
    dropped: dict[str, list[Dropped]] = {part: [] for part in PARTS}
    for row in dataset.dropped:
        dropped[split.of(row.id)].append(row)
    return [
        replace(dataset, split=part, samples=parts[part], dropped=tuple(dropped[part]))
        for part in PARTS
    ]


def split_of(args: argparse.Namespace) -> HashSplit | None:
    """The split of --split-by-image and --seed; None without the first."""
    fraction = getattr(args, "split_by_image", None)
    return None if fraction is None else HashSplit(fraction, args.seed)


def add_split_by_image(group: Any) -> None:
    """Add the option to a parser or a group."""
    group.add_argument(
        "--split-by-image",
        type=float,
        metavar="FRACTION",
        help="put this share of the pictures, with all their rows, into OUT/test and the others "
        "into OUT/train, by a hash of the picture's name and --seed; pictures with the same bytes "
        "stay together",
    )

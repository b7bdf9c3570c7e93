"""Splits one file into train and test, by picture, and packs each split into its folder."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from data_prep.packing.duplicates import find_copies, tell_copies, tell_repeats, warn_of_leaks
from data_prep.packing.journal import Dropped
from data_prep.packing.pack import Options, check_folder, pack_ready, ready
from data_prep.packing.source import SourceSample, SourceSet

PARTS = ("test", "train")


class Division(Protocol):
    """A rule that divides a data set into splits."""

    def divide(
        self, datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]
    ) -> list[SourceSet]:
        """The data sets of all splits; `copies` are groups of pictures with the same bytes."""
        ...


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
        share = int.from_bytes(hash_of(image, self.seed), "big") / 2**64
        return "test" if share < self.fraction else "train"

    def _require_both(self, parts: Iterable[str], copies: Sequence[Sequence[Path]]) -> None:
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

    def divide(
        self, datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]
    ) -> list[SourceSet]:
        """Test and train of the only data set; copies go to the same one."""
        (dataset,) = datasets
        leaders = leaders_of(dataset, copies)
        parts: dict[str, list[SourceSample]] = {}
        for sample in dataset.samples:
            parts.setdefault(self.of(leaders.get(sample.id, sample.id)), []).append(sample)
        self._require_both(parts, copies)
        dropped: dict[str, list[Dropped]] = {part: [] for part in PARTS}
        for row in dataset.dropped:
            dropped[self.of(row.id)].append(row)
        return [
            replace(dataset, split=part, samples=parts[part], dropped=tuple(dropped[part]))
            for part in PARTS
        ]


def hash_of(image: str, seed: int) -> bytes:
    """64 bits of a picture's name and the seed."""
    return hashlib.blake2b(f"{seed}:{image}".encode(), digest_size=8).digest()


def leaders_of(dataset: SourceSet, copies: Sequence[Sequence[Path]]) -> dict[str, str]:
    """Id of each sample whose picture has copies -> the first id among them, whose split they all
    get."""
    ids = {path: sample.id for sample in dataset.samples for path in sample.images}
    here = [[ids[path] for path in group if path in ids] for group in copies]
    return {name: min(group) for group in here for name in group}


def pack_splits(
    datasets: Sequence[SourceSet],
    split: Division | None,
    out: Path,
    options: Options,
    *,
    apart: bool,
    noun: str | None = "id",
    cure: str = "--split-by-image keeps a picture in one split",
) -> None:
    """Check all data sets, then write them, each to OUT/SPLIT if `apart`, else the only one to OUT.

    `split` divides one of them. `noun` is what messages call an id; None if ids are places such as
    "line 7". `cure`: what keeps a picture in one split.
    """
    check_folder(out)
    checked = ready(datasets, options)
    copies = find_copies(path for data in checked for s in data.samples for path in s.images)
    if split is not None:
        checked = split.divide(checked, copies)
    warn_of_leaks(checked, copies, cure)
    for dataset in checked:
        pack_ready(dataset, out / dataset.split if apart else out, options)
    tell_repeats(checked, noun)
    tell_copies(checked, copies)


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

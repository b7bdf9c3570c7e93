"""Train and test out of one file: a share of the pictures, with all that is said of them."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.packing.source import SourceSample, SourceSet

PARTS = ("test", "train")


@dataclass(frozen=True)
class HashSplit:
    """A fraction of the pictures is `test`, the others `train`; pictures added later move none."""

    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"--split-by-image {self.fraction}: give the test pictures' share, between 0 and 1"
            )

    def of(self, image: str) -> str:
        """All questions of a picture go the same way."""
        digest = hashlib.blake2b(f"{self.seed}:{image}".encode(), digest_size=8).digest()
        return "test" if int.from_bytes(digest, "big") / 2**64 < self.fraction else "train"

    def require_both(self, parts: Iterable[str], copies: Sequence[Sequence[Path]]) -> None:
        """Chance may leave a side of very few pictures empty."""
        empty = set(PARTS).difference(parts)
        if empty:
            largest = max(map(len, copies), default=0)
            alike = (
                f" ({largest:,} pictures have the same bytes, and go together)" if copies else ""
            )
            raise ValueError(
                f"--split-by-image {self.fraction} leaves no picture for {' and '.join(empty)}"
                f"{alike}; change the fraction or --seed"
            )


def split_by_picture(
    dataset: SourceSet, split: HashSplit, copies: Sequence[Sequence[Path]]
) -> list[SourceSet]:
    """Test and train; files of the same bytes (`copies`) go to one of them."""
    first = _first_ids(dataset, copies)
    parts: dict[str, list[SourceSample]] = {}
    for sample in dataset.samples:
        parts.setdefault(split.of(first.get(sample.id, sample.id)), []).append(sample)
    split.require_both(parts, copies)
    rows: dict[str, list[Mapping[str, str]]] = {part: [] for part in PARTS}
    for row in dataset.dropped:
        rows[split.of(row["id"])].append(row)
    return [
        replace(dataset, split=part, samples=parts[part], dropped=tuple(rows[part]))
        for part in PARTS
    ]


def _first_ids(dataset: SourceSet, copies: Sequence[Sequence[Path]]) -> dict[str, str]:
    """Id of each sample whose picture has copies -> the first id, by the alphabet, among them."""
    ids = {path: sample.id for sample in dataset.samples for path in sample.images}
    return {ids[path]: min(ids[other] for other in group) for group in copies for path in group}


def split_of(args: argparse.Namespace) -> HashSplit | None:
    """What --split-by-image and --seed say; None without the first."""
    return None if args.split_by_image is None else HashSplit(args.split_by_image, args.seed)


def add_split_by_image(group: Any) -> None:
    """The option, in a group of them."""
    group.add_argument(
        "--split-by-image",
        type=float,
        metavar="FRACTION",
        help="this share of the pictures, with all their rows, goes to OUT/test, the others to "
        "OUT/train, by a hash of the picture's name and --seed; pictures of the same bytes go "
        "together",
    )

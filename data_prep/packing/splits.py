"""How a data set is divided into splits: what belongs together stays together."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlds.data.shards.sample import joined

from .source import Dropped, SourceSample, SourceSet

TRAIN = "train"


class UnluckyDraw(ValueError):
    """A split without what it needs; another seed may draw better ones."""


@dataclass(frozen=True)
class HashSplit:
    """Shares of the pictures are `test` and other splits, the rest is `train`. What belongs
    together stays together: samples with a picture in common, or a copy of it, and those of one
    group. Pictures and groups that are added later do not move any."""

    shares: Mapping[str, float]
    """Split -> its share."""
    seed: int = 0
    option: str = "--split-sizes"
    """What gave the shares, for messages."""

    def __post_init__(self) -> None:
        given = ", ".join(f"{name}={share}" for name, share in self.shares.items())
        if not all(0 < share < 1 for share in self.shares.values()):
            raise ValueError(f"{self.option} {given}: give shares between 0 and 1")
        if sum(self.shares.values()) >= 1 or TRAIN in self.shares:
            raise ValueError(
                f"{self.option} {given}: give the shares of other splits than {TRAIN}, which gets "
                "what is left"
            )

    def of(self, name: str) -> str:
        """The split of a picture or group."""
        # Hashes are uniform in [0, 2^64), so the given share of them is below it.
        number = int.from_bytes(hash_of(name, self.seed), "big") / 2**64
        end = 0.0
        for split, share in self.shares.items():
            end += share
            if number < end:
                return split
        return TRAIN

    def divide(
        self, datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]
    ) -> list[SourceSet]:
        """The splits of the only data set."""
        (dataset,) = datasets
        leaders = leaders_of(dataset, copies)
        splits = [*self.shares, TRAIN]
        num, whole = len(set(leaders.values())), len(dataset.samples)
        if num < len(splits):  # no seed helps
            sets = (
                f", in {num:,} set{'s' * (num > 1)} that stay together (rows of one picture or "
                "group, pictures with the same bytes)"
            )
            raise ValueError(
                f"{self.option} leaves no picture for one of {', '.join(sorted(splits))}: there "
                f"{'are' if whole > 1 else 'is'} {whole:,} sample{'s' * (whole > 1)}"
                f"{sets if num < whole else ''}; add others, or give each row's split in a field, "
                "with --split-field"
            )
        parts: dict[str, list[SourceSample]] = {split: [] for split in splits}
        for sample in dataset.samples:
            parts[self.of(leaders[sample.id])].append(sample)
        if empty := [split for split in splits if not parts[split]]:  # chance may do it
            largest = max(Counter(leaders.values()).values(), default=0)
            alike = f" ({largest:,} samples stay together)" if largest > 1 else ""
            raise UnluckyDraw(
                f"{self.option} leaves no picture for {' and '.join(empty)}{alike}; change the "
                "shares or --seed"
            )
        dropped: dict[str, list[Dropped]] = {split: [] for split in splits}
        # A dropped row may not say of which picture it is: its own id decides where it is listed.
        for row in dataset.dropped:
            dropped[self.of(row.id)].append(row)
        return [
            replace(dataset, split=part, samples=parts[part], dropped=tuple(dropped[part]))
            for part in sorted(splits)
        ]


def hash_of(image: str, seed: int) -> bytes:
    """64 bits of a picture's name and the seed."""
    return hashlib.blake2b(f"{seed}:{image}".encode(errors="surrogatepass"), digest_size=8).digest()


def leaders_of(dataset: SourceSet, copies: Sequence[Sequence[Path]]) -> dict[str, str]:
    """Id of each sample -> what decides its split: the first group, or else the first lead or id,
    of all samples that belong together. `copies`: pictures with the same bytes, perhaps of several
    data sets."""
    first_of = {path: group[0] for group in copies for path in group}
    first_samples = joined(
        [
            [
                *(first_of.get(path, path) for path in sample.images),
                *sample.groups,
                *filter(None, [sample.lead]),
            ]
            for sample in dataset.samples
        ]
    )
    together: dict[int, list[SourceSample]] = {}
    for first, sample in zip(first_samples, dataset.samples, strict=True):
        together.setdefault(first, []).append(sample)
    leaders: dict[str, str] = {}
    for samples in together.values():
        groups = {group.name for sample in samples for group in sample.groups}
        leader = min(groups or {sample.lead or sample.id for sample in samples})
        leaders |= {sample.id: leader for sample in samples}
    return leaders


def split_of(args: argparse.Namespace) -> HashSplit | None:
    """The split of --split-by-image or --split-sizes, and --seed; None without both.

    Errors: ValueError for a split that is given twice.
    """
    if (fraction := getattr(args, "split_by_image", None)) is not None:
        return HashSplit({"test": fraction}, args.seed, "--split-by-image")
    if not (sizes := getattr(args, "split_sizes", None)):
        return None
    if len(shares := dict(sizes)) < len(sizes):
        raise ValueError("--split-sizes names a split twice; give each once")
    return HashSplit(shares, args.seed)


def share_of(text: str) -> tuple[str, float]:
    """Parse `test=0.2`."""
    name, _, number = text.partition("=")
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not name or not 0 < share < 1:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; give SPLIT=SHARE with a share between 0 and 1, such as test=0.2"
        )
    return name, share


SPLIT_BY_IMAGE: Mapping[str, Any] = {
    "type": float,
    "metavar": "FRACTION",
    "help": "put this share of the pictures, with all their rows, into OUT/test and the others "
    "into OUT/train, by a hash of the picture's name and --seed; pictures with the same bytes stay "
    "together",
}
"""What `add_argument` takes for --split-by-image."""
SPLIT_SIZES: Mapping[str, Any] = {
    "type": share_of,
    "nargs": "+",
    "metavar": "SPLIT=SHARE",
    "help": "put these shares of the pictures or groups, with all their rows, into OUT/SPLIT and "
    "the others into OUT/train, as in val=0.1 test=0.1",
}
NEAR_COPIES: Mapping[str, Any] = {
    "action": "store_true",
    "help": "report pictures of different splits that look much alike (needs vlds[near])",
}
GROUP_FIELD: Mapping[str, Any] = {
    "metavar": "NAME",
    "help": "field with the patient, document or scene: rows of one stay in one split where splits "
    "are drawn, and the intervals of reports draw them together",
}

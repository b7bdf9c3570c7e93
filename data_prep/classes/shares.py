"""Splits of classes: shares of each class's pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.packing.source import SourceSample, SourceSet
from data_prep.packing.split import hash_of, leaders_of

TRAIN = "train"
"""The split that is divided, and that keeps the rest."""


@dataclass(frozen=True)
class ClassShares:
    """Shares of each class's pictures, drawn by a hash of their names, become splits; `train` keeps
    the rest. Copies of a picture within a class stay together."""

    shares: Mapping[str, float]
    """Split -> share."""
    seed: int = 0

    def __post_init__(self) -> None:
        if sum(self.shares.values()) >= 1:
            raise ValueError(
                f"--split-sizes: the shares add up to {sum(self.shares.values()):g}; leave some "
                f"pictures for {TRAIN}"
            )

    def divide(
        self, datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]
    ) -> list[SourceSet]:
        """The data sets with parts instead of `train`."""
        (whole,) = (dataset for dataset in datasets if dataset.split == TRAIN)
        leaders = leaders_of(whole, copies)
        by_class: dict[str, list[SourceSample]] = {}
        for sample in whole.samples:
            if sample.annotations:
                by_class.setdefault(sample.annotations[0]["label"], []).append(sample)
        parts: dict[str, list[SourceSample]] = {name: [] for name in (TRAIN, *self.shares)}
        for label, samples in sorted(by_class.items()):
            for name, part in self._divided(samples, leaders).items():
                if not part:
                    raise ValueError(
                        f"--split-sizes leaves {name} no picture of class {label!r}, which has "
                        f"{len(samples)}; add some, or give other shares (pictures with the same "
                        "bytes stay together)"
                    )
                parts[name] += part
        others = [dataset for dataset in datasets if dataset is not whole]
        divided = [
            replace(whole, split=name, samples=part, dropped=whole.dropped if name == TRAIN else ())
            for name, part in parts.items()
        ]
        return [*divided, *others]

    def _divided(
        self, samples: Sequence[SourceSample], leaders: Mapping[str, str]
    ) -> dict[str, list[SourceSample]]:
        """The samples of one class by split: at least one for each share, then `train`."""

        def place(sample: SourceSample) -> tuple[bytes, str]:
            leader = leaders.get(sample.id, sample.id)
            return hash_of(leader, self.seed), leader

        ordered = sorted(samples, key=lambda sample: (place(sample), sample.id))
        parts, begin = {}, 0
        for name, share in self.shares.items():
            end = min(begin + max(1, round(share * len(ordered))), len(ordered))
            while begin < end < len(ordered) and place(ordered[end]) == place(ordered[end - 1]):
                end += 1
            parts[name], begin = ordered[begin:end], end
        return {TRAIN: ordered[begin:], **parts}


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

"""What every parser returns: samples that name their pictures, before any picture is opened.

A parser reads the annotation files only. `pack` checks that all pictures exist before it writes the
first shard; then it opens them one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.packing.feature_file import FeatureFile
from data_prep.packing.journal import Dropped
from data_prep.packing.raw_picture import RawPicture

Annotation = dict[str, Any]
TYPES = ("answer_type", "question_type")
"""Fields by which scores of questions are grouped, where a source has them."""
MOST_REASONS = 5
"""Reasons for dropped rows that an error shows."""
SHOWN = 5
"""Rows, pictures or classes that a message names."""


@dataclass(frozen=True)
class SourceSample:
    """One image or image pair with everything the source says about it."""

    id: str
    images: tuple[Path, ...]
    annotations: list[Annotation]
    source: dict[str, Any] = field(default_factory=dict)
    """Fields of the source that a sample's json keeps under "source"."""
    features: tuple[FeatureFile, ...] = ()
    """Stored features, if the sample has no images."""
    raw: tuple[RawPicture, ...] = ()
    """Pictures that are not files, if the sample has no images."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the sample's json: a clip's subtitles and span."""
    place: str = ""
    """Where the source names the sample's files: "line 7"."""

    @property
    def named_by(self) -> str:
        """The line or annotation that names its files."""
        first = self.annotations[0]["id"] if self.annotations else self.id
        return self.place or f"annotation {first}"

    @property
    def option(self) -> str:
        """The option that names the folder of its files."""
        return "--features" if self.features else "--images"


@dataclass(frozen=True)
class SourceSet:
    """A data set as its publisher wrote it."""

    name: str
    kind: str
    split: str
    files: tuple[Path, ...]
    """The annotation files, for the record in dataset.json."""
    samples: list[SourceSample]
    dropped: tuple[Dropped, ...] = ()
    """Rows that cannot be used."""
    left_out: tuple[Dropped, ...] = ()
    """Unwanted samples; `dropped` lists their annotations."""
    classes: tuple[str, ...] | None = None
    """Of kind image_class: all classes, in the order of their numbers."""
    listing: str = ""
    """sha256 of what a folder holds, if the folder is the source."""

    @property
    def source(self) -> str:
        """What it was made from, for messages."""
        return file_names(self.files) or self.name

    def check(self) -> None:
        """Refuse a data set without samples or with repeated ids."""
        if not self.samples:
            counts = count_reasons(row.reason for row in self.dropped)
            reasons = [f"{reason}: {count:,}" for reason, count in counts.items()]
            dropped = f"; dropped: {', '.join(reasons[:MOST_REASONS])}" if reasons else ""
            raise ValueError(f"{self.source}: no usable sample for split {self.split!r}{dropped}")
        for noun, ids in (
            ("sample", (sample.id for sample in self.samples)),
            ("annotation", (a["id"] for sample in self.samples for a in sample.annotations)),
        ):
            repeated = [name for name, count in Counter(ids).items() if count > 1]
            if repeated:
                raise ValueError(
                    f"{self.source}: {noun} id {repeated[0]} occurs more than once"
                    f"{and_more(len(repeated) - 1, 'id')}; ids must be unique"
                )


def samples_of(
    annotations: Mapping[str, list[Annotation]], picture: Callable[[str], Path]
) -> list[SourceSample]:
    """Picture id -> its annotations, as samples of one picture each."""
    return [SourceSample(key, (picture(key),), rows) for key, rows in annotations.items()]


def find_file(folder: Path, subfolders: Sequence[str], name: str) -> Path:
    """The file in the first of these subfolders that has it; if none has, its path in the first
    one, where publishers put it, for the error about a missing file."""
    candidates = [folder / subfolder / name for subfolder in subfolders]
    return next((path for path in candidates if path.is_file()), candidates[0])


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs, most frequent first."""
    return dict(Counter(reasons).most_common())


def file_names(files: Sequence[Path]) -> str:
    """The files without their folders."""
    return ", ".join(path.name for path in files)


def first_few(entries: Sequence[str]) -> str:
    """For messages: the first entries, and how many more there are."""
    more = f", and {len(entries) - SHOWN:,} more" if len(entries) > SHOWN else ""
    return ", ".join(entries[:SHOWN]) + more


def and_more(count: int, noun: str) -> str:
    """How many others there are: " (and 3 more ids)", or "" for none."""
    return f" (and {count} more {noun}{'s' if count > 1 else ''})" if count else ""

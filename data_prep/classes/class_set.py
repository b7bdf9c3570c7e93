"""Pictures with their classes -> one data set for each split, all with the same list of classes.

A class is known by its key, by which classes are sorted: the name of its folder, the text in a
table, or a number. A file may give the classes other names, which are then the labels.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlds.data.shards.info import KIND
from vlds.data.shards.sample import UNFIT
from vlds.runtime.terminal import tell
from vlds.schema import LONGEST_TEXT

from ..json_rows import clean, read_object, shown
from ..packing.source import Dropped, SourceSample, SourceSet, first_few
from ..packing.splits import HashSplit, UnluckyDraw, hash_of, leaders_of

TRAIN = "train"
"""The split that is divided, and that keeps the rest."""


@dataclass(frozen=True)
class ClassShares:
    """Shares of each class's pictures, drawn by a hash of their names, become splits; `train` keeps
    the rest. Copies of a picture within a class stay together. Of a class with fewer pictures than
    splits, `train` gets one before the others do."""

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

        # By the hash of a leader, which all copies share, and by its id where two hashes are equal.
        def place(sample: SourceSample) -> tuple[bytes, str]:
            leader = leaders.get(sample.id, sample.id)
            return hash_of(leader, self.seed), leader

        for label, samples in sorted(by_class.items()):
            ordered = sorted(samples, key=lambda sample: (place(sample), sample.id))
            places = sorted({place(sample) for sample in samples})
            if len(places) < len(parts):
                # Copies share a place; the first place is for `train`, which `parts` begins with.
                part_of = dict(zip(places, parts, strict=False))
                for sample in ordered:
                    parts[part_of[place(sample)]].append(sample)
                continue
            count, begin = len(ordered), 0
            of_class: dict[str, list[SourceSample]] = {TRAIN: []}
            for name, share in self.shares.items():
                # At least one picture: 0.1 of 3 -> 1.
                end = min(begin + max(1, round(share * count)), count)
                # Copies of a picture are neighbours; a part ends behind the last of them.
                while begin < end < count and place(ordered[end]) == place(ordered[end - 1]):
                    end += 1
                of_class[name], begin = ordered[begin:end], end
            of_class[TRAIN] = ordered[begin:]
            for name, part in of_class.items():
                if not part:
                    raise ValueError(
                        f"--split-sizes leaves {name} no picture of class {label!r}, which has "
                        f"{count}; add some, or give other shares (pictures with the same bytes "
                        "stay together)"
                    )
                parts[name] += part
        tell_missing({name: labels_of(part) for name, part in parts.items()})
        # A dropped row has no class by which to divide: one part lists all of them.
        others = [dataset for dataset in datasets if dataset is not whole]
        divided = [
            replace(whole, split=name, samples=part, dropped=whole.dropped if name == TRAIN else ())
            for name, part in parts.items()
        ]
        return [*divided, *others]


@dataclass(frozen=True)
class GroupShares(HashSplit):
    """Shares of the groups of pictures, whatever their classes are."""

    def divide(
        self, datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]
    ) -> list[SourceSet]:
        """The splits of the only data set.

        Errors: UnluckyDraw if a class is not in `train`.
        """
        divided = super().divide(datasets, copies)
        there = {data.split: labels_of(data.samples) for data in divided}
        if unlearned := missing_classes(there)[TRAIN]:
            raise UnluckyDraw(
                f"{self.option} leaves {TRAIN} no picture of {listed(unlearned)}; add groups, or "
                "change the shares or --seed"
            )
        tell_missing(there)
        return divided


@dataclass(frozen=True)
class Shown:
    """A picture and what it shows."""

    split: str
    key: str
    """Key of its class."""
    sample: SourceSample
    """Without its annotation."""


@dataclass(frozen=True)
class ClassSource:
    """What a reader found: pictures, and where they come from."""

    pictures: Sequence[Shown]
    files: tuple[Path, ...] = ()
    """Lists, tables or batches; empty if folders alone are the source."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Key -> name of its class, where they differ."""
    apart: bool = True
    """The source names splits: each is written to its own folder."""
    dropped: Sequence[tuple[str, Dropped]] = ()
    """Rows that cannot be used, with their split."""


def class_sets(source: ClassSource, name: str, names: Path | None) -> list[SourceSet]:
    """The data set of each split; `names` is a file that renames classes.

    Errors: ValueError that names the class, what is wrong with it, and the cure.
    """
    # The place of a key in this order is the number of its class in all splits, those without a
    # picture of it included.
    keys = sorted({picture.key for picture in source.pictures})
    given = {key: source.labels.get(key, key) for key in keys}
    labels = given if names is None else _renamed(given, names)
    _check_labels(given, labels)
    _check_splits(source.pictures, given)
    files = source.files if names is None else (*source.files, names)
    classes = tuple(labels.values())
    by_split: dict[str, list[SourceSample]] = defaultdict(list)
    for picture in source.pictures:
        sample = picture.sample
        annotations = [{"id": sample.id, "label": labels[picture.key]}]
        by_split[picture.split].append(replace(sample, annotations=annotations))
    return [
        SourceSet(
            name, KIND, split, files, samples,
            dropped=tuple(drop for of_split, drop in source.dropped if of_split == split),
            classes=classes,
            # If the folders are the source, record the names of their pictures, one a line.
            listing=""
            if source.files
            else hashlib.sha256("\n".join(sorted(s.id for s in samples)).encode()).hexdigest(),
        )
        for split, samples in sorted(by_split.items())
    ]  # fmt: skip


def _renamed(given: Mapping[str, str], path: Path) -> dict[str, str]:
    """Key -> the name that a JSON file {class: name} gives it."""
    content = read_object(path)
    if missing := [name for name in given.values() if name not in content]:
        raise ValueError(
            f"--class-names {path}: no name for {listed(missing)}; add CLASS: NAME for each"
        )
    if unused := set(content.fields).difference(given.values()):
        tell(f"{path} names classes that are not here: {listed(sorted(unused))}")
    return {key: clean(content.text(name)) for key, name in given.items()}


def _check_labels(given: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """Refuse fewer than two classes, names that no file or model can hold, and names that a person
    or a tokenizer may take for each other."""
    if len(labels) < 2:
        raise ValueError(
            f"one class: {listed(given.values())}; there must be two or more. In folders, each "
            "folder directly inside --images is a class (or a split: train, val, test)"
        )
    for key, label in labels.items():
        if not label.strip() or UNFIT.search(label) or len(label) > LONGEST_TEXT:
            raise ValueError(
                f"class {shown(given[key])}: its name {shown(label)} is empty, too long, or has a "
                "line break or control character; rename it with --class-names"
            )
    alike: dict[str, list[str]] = defaultdict(list)
    for key, label in labels.items():
        # What looks the same to a person, or is the same to a tokenizer, has one form here.
        alike[unicodedata.normalize("NFKC", clean(label)).casefold()].append(key)
    for group in (keys for keys in alike.values() if len(keys) > 1):
        shown_keys = " and ".join(repr(given[key]) for key in group)
        same = len({labels[key] for key in group}) == 1
        fault = f"get the same name {labels[group[0]]!r}" if same else "differ in case or form only"
        raise ValueError(
            f"classes {shown_keys} {fault}; if they are one class, put their pictures together, "
            "else rename one (--class-names)"
        )


def _check_splits(pictures: Iterable[Shown], given: Mapping[str, str]) -> None:
    """A class that no training picture shows cannot be learned; one without a picture in another
    split cannot be scored there, and is told."""
    keys: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        keys[picture.split].add(picture.key)
    # TRAIN may be missing altogether, as for a test set that is packed alone.
    if unlearned := missing_classes(keys).get(TRAIN):
        others = [split for split, there in keys.items() if unlearned[0] in there]
        more = f" (and {len(unlearned) - 1:,} more)" if len(unlearned) > 1 else ""
        raise ValueError(
            f"class {given[unlearned[0]]!r}{more} is in {' and '.join(others)}, but not in "
            f"{TRAIN}; add pictures there, correct its name, or remove it"
        )
    tell_missing({split: {given[key] for key in there} for split, there in keys.items()})


def labels_of(samples: Iterable[SourceSample]) -> set[str]:
    """The classes that pictures show."""
    return {sample.annotations[0]["label"] for sample in samples if sample.annotations}


def tell_missing(there: Mapping[str, set[str]]) -> None:
    """Tell the classes that a split lacks."""
    num = len(set[str]().union(*there.values()))
    for split, absent in missing_classes(there).items():
        if absent:
            tell(f"{split}: no picture of {len(absent):,} of {num:,} classes: {listed(absent)}")


def missing_classes(there: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Split -> the classes that others have, and it has not."""
    known = set[str]().union(*there.values())
    return {split: sorted(known - labels) for split, labels in sorted(there.items())}


def listed(names: Iterable[str]) -> str:
    """For messages: the first few names in quotes, and how many more there are."""
    return first_few([repr(name) for name in names])

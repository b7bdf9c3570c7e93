"""Lists that say which pictures belong to which split, as DTD has them and CoOp.

DTD's `labels/train1.txt` has a picture a line, `banded/banded_0002.jpg`; the first folder is the
class. CoOp's `split_zhou_NAME.json` holds {"train": [[picture, number, class], ...], "val": ...,
"test": ...} for eleven data sets; there the classes have the order of their numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.classes.class_set import ClassSource, Shown
from data_prep.json_rows import open_text, read_object, shown
from data_prep.packing.named_pictures import find_pictures
from data_prep.packing.source import SourceSample

NUMBER_DIGITS = 9


class SplitFile(NamedTuple):
    """A file of rows; it may be about one split."""

    split: str
    path: Path


class Entry(NamedTuple):
    """A row about a picture."""

    picture: str
    key: str
    split: str
    place: str
    """FILE, line 7."""
    source: Mapping[str, Any] = {}
    """Other columns of the row."""


def split_file(text: str) -> SplitFile:
    """Parse `train=FILE`, or FILE."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return SplitFile("", Path(text))
    if not name.isidentifier() or not path:
        raise argparse.ArgumentTypeError(f"got {text!r}; give SPLIT=FILE, such as train=FILE")
    return SplitFile(name, Path(path))


def read_lists(files: Sequence[SplitFile], images: Path) -> ClassSource:
    """The pictures of all lists.

    Errors: ValueError that names the line, and the cure.
    """
    entries: list[Entry] = []
    labels: dict[str, str] = {}
    paths = tuple(file.path for file in files)
    for split, path in files:
        if split:
            entries += _lines(path, split)
        else:
            entries += _rows_of_coop(path, labels)
    if not entries:
        raise ValueError(f"--lists {paths[0]}: no picture is listed; name other files")
    pictures, repeats = shown_pictures(entries, images)
    if repeats:
        first, again = repeats[0]
        raise ValueError(
            f"{first.place} and {again.place}: {first.picture} is listed twice; remove one of the "
            "lines"
        )
    return ClassSource(pictures, paths, labels)


def _lines(path: Path, split: str) -> Iterator[Entry]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            picture = line.strip().replace("\\", "/").removeprefix("./")
            key, slash, name = picture.partition("/")
            if picture and not (key and slash and name):
                raise ValueError(
                    f"{path}, line {number}: {shown(picture)} has no folder that names its class; "
                    "each line is CLASS/PICTURE"
                )
            if picture:
                yield Entry(picture, key, split, f"{path.name}, line {number}")


def _rows_of_coop(path: Path, labels: dict[str, str]) -> Iterator[Entry]:
    """Entries of a JSON file; adds its classes to `labels`."""
    if path.suffix.lower() != ".json":
        raise ValueError(f"--lists {path}: of which split? Give SPLIT={path}, such as train={path}")
    content = read_object(path)
    for split in content.fields:
        for number, row in enumerate(content.array(split), 1):
            place = f"{path}, {split}, row {number}"
            picture, label, name = _checked(row, place)
            key = f"{label:0{NUMBER_DIGITS}d}"
            if labels.setdefault(key, name) != name:
                raise ValueError(
                    f"{place}: class {label} is {shown(name)}, and {shown(labels[key])} before; "
                    "a number stands for one class"
                )
            yield Entry(picture, key, split, f"{path.name}, {split}, row {number}")


def _checked(row: Any, place: str) -> tuple[str, int, str]:
    match row:
        case [str(picture), int(label), str(name)] if picture and 0 <= label < 10**NUMBER_DIGITS:
            return picture, int(label), name
    raise ValueError(f"{place}: {shown(row)}; expected [picture, number of the class, class]")


def shown_pictures(
    entries: Sequence[Entry], images: Path
) -> tuple[list[Shown], list[tuple[Entry, Entry]]]:
    """Each picture once, and (first row, later row) where rows say the same of a picture.

    Errors: ValueError for a picture with two classes or in two splits.
    """
    pictures = find_pictures(images, (entry.picture for entry in entries))
    first: dict[str, Entry] = {}
    found, repeats = [], []
    for entry in entries:
        # By the file that was found: two rows may spell its name in two ways.
        picture = pictures[entry.picture]
        before = first.setdefault(picture.id, entry)
        if before is not entry:
            _check_repeat(picture.id, before, entry)
            repeats.append((before, entry))
            continue
        place = entry.place.partition(", ")[2]
        sample = SourceSample(picture.id, (picture.path,), [], dict(entry.source), place=place)
        found.append(Shown(entry.split, entry.key, sample))
    return found, repeats


def _check_repeat(picture: str, before: Entry, entry: Entry) -> None:
    both = f"{before.place} and {entry.place}: {picture}"
    if before.split != entry.split:
        raise ValueError(
            f"{both} is in {before.split} and in {entry.split}; keep it in one split, else a score "
            "says little about new pictures"
        )
    if before.key != entry.key:
        raise ValueError(
            f"{both} has two classes, {before.key!r} and {entry.key!r}; keep one of the rows"
        )

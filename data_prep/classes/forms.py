"""Readers of pictures with classes: CIFAR's batches, folders, lists (DTD, CoOp), and tables.

Folders are ROOT/CLASS/..., or ROOT/{train,val,test}/CLASS/..., read as torchvision does: all
pictures below a class's folder belong to it, however deep. Links are followed; `check_inside`
refuses those that lead out of ROOT.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from vlds.data.shards.sample import UNFIT
from vlds.runtime.checks import guess
from vlds.runtime.files import read_file
from vlds.runtime.terminal import tell
from vlds.schema import Group

from ..json_rows import clean, open_text, read_object, shown
from ..own_data.rows import UserRow, list_fields, read_rows, text_of
from ..packing.file_check import PICTURES
from ..packing.picture import find_pictures
from ..packing.source import CHANNELS, Dropped, RawPicture, SourceSample, and_more
from .class_set import ClassSource, Shown, listed

SIDE = 32
PIXELS = CHANNELS * SIDE * SIDE


@dataclass(frozen=True)
class CifarVersion:
    """CIFAR-10 or CIFAR-100 in the binary version (cs.toronto.edu/~kriz/cifar.html).

    For each picture there is a byte with its class (in CIFAR-100 two: superclass and class), then
    1,024 bytes of red, of green and of blue, row by row.
    """

    names: str
    """File of the classes' names, one a line."""
    superclasses: str | None = None
    """CIFAR-100's file of coarse classes."""


VERSIONS = (
    CifarVersion("batches.meta.txt"),
    CifarVersion("fine_label_names.txt", "coarse_label_names.txt"),
)
PICKLES = ("batches.meta", "meta")
"""Files of the Python version."""


def find_version(root: Path) -> CifarVersion | None:
    """Which of the two lies in a folder; None for other folders.

    Errors: ValueError for the Python version.
    """
    for version in VERSIONS:
        if (root / version.names).is_file():
            return version
    batches = any((root / name).is_file() for name in ("data_batch_1", "test_batch", "test"))
    # Both kinds of files: a folder of classes may hold one that is called `test` or `meta`.
    if batches and any((root / name).is_file() for name in PICKLES):
        raise ValueError(
            f"--images {root} is CIFAR's Python version, whose pickles can run any program when "
            "they are opened; download the binary version (cifar-10-binary.tar.gz or "
            "cifar-100-binary.tar.gz) and give its folder"
        )
    return None


def read_cifar(root: Path, version: CifarVersion) -> ClassSource:
    """The pictures of all batches; files called test... are the split test, the others train.

    Errors: ValueError that names the file, and the cure.
    """
    names = _names(root / version.names)
    coarse = [] if version.superclasses is None else _names(root / version.superclasses)
    batches = sorted(root.glob("*.bin"))
    if not batches:
        raise ValueError(f"--images {root}: {version.names} and no *.bin; copy the batches there")
    pictures: list[Shown] = []
    # Pictures are numbered over all batches of a split, in the order of the batches' names.
    counts = {"train": 0, "test": 0}
    for path in batches:
        split = "test" if path.name.startswith("test") else "train"
        for offset, numbers in _records(path, version, (names, coarse)):
            raw = RawPicture(path, offset, SIDE, SIDE)
            sample_id = f"{split}-{counts[split]:05d}"
            # The superclass comes first, the class last.
            source = {"superclass": coarse[numbers[0]]} if coarse else {}
            sample = SourceSample(sample_id, (), [], source, raw=(raw,))
            # 007, not 7: classes are sorted by key, and texts then have the order of numbers.
            pictures.append(Shown(split, f"{numbers[-1]:03d}", sample))
            counts[split] += 1
    labels = {f"{number:03d}": name for number, name in enumerate(names)}
    files = [root / version.names, *batches]
    if version.superclasses:
        files.append(root / version.superclasses)
    return ClassSource(pictures, tuple(files), labels)


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; copy it from the binary version")
    with open_text(path) as file:
        return [line.strip() for line in file if line.strip()]


def _records(
    path: Path, version: CifarVersion, names: tuple[Sequence[str], Sequence[str]]
) -> Iterator[tuple[int, bytes]]:
    """Where the pixels of each picture begin, and the bytes of its classes."""
    data = read_file(path)
    size = PIXELS + (1 if version.superclasses is None else 2)
    if not data or len(data) % size:
        raise ValueError(
            f"{path}: {len(data):,} bytes, a multiple of {size:,} expected; download it again"
        )
    fine, coarse = names
    for begin in range(0, len(data), size):
        # One byte of classes in CIFAR-10, two in CIFAR-100.
        numbers = data[begin : begin + size - PIXELS]
        if numbers[-1] >= len(fine) or (coarse and numbers[0] >= len(coarse)):
            raise ValueError(
                f"{path}, picture {begin // size}: no class has the number "
                f"{' or '.join(map(str, numbers))}, the names are {len(fine)}; download it again"
            )
        yield begin + len(numbers), numbers


ENDINGS = PICTURES - {""}
SPLITS: Mapping[str, str] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Name of a folder, in lower case -> the split."""
HIDDEN = "hidden"
LOOSE = "pictures beside the folders of classes"
OTHERS = "folders beside those of the splits"


def read_folders(root: Path, layout: str | None, split: str, left_out: Counter[str]) -> ClassSource:
    """The pictures below `root`; counts the files that are left out.

    `layout`: "classes" or "splits", None: whatever the folders' names say. Pictures of a folder
    without splits get `split`. Errors: ValueError that names the folder or file, and the cure.
    """
    inside = _folders(root, left_out)
    if not inside:
        loose = ", only pictures" if LOOSE in left_out else ""
        raise ValueError(
            f"--images {root}: no folders in it{loose}; give the folder that holds one folder for "
            "each class, or a table of pictures and classes to `csv-classes`"
        )
    if not _has_splits(root, inside, layout, left_out):
        if len(inside) == 1 and _folders(inside[0], Counter()):
            raise ValueError(
                f"--images {root}: the only folder in it is {inside[0].name!r}, which has folders "
                f"itself; if those are the classes, give --images {inside[0]}"
            )
        pictures = list(_pictures(root, root, inside, split, left_out))
        _check_classes(pictures)
        return ClassSource(pictures, apart=False)
    places: dict[str, Path] = {}
    for folder in inside:
        name = SPLITS.get(folder.name.lower(), "")
        if name in places:
            raise ValueError(
                f"{places[name]} and {folder} are both the split {name!r}; keep one of them"
            )
        if name:
            places[name] = folder
    found: list[Shown] = []
    for name, folder in places.items():
        classes = _folders(folder, left_out)
        if not classes:
            raise ValueError(f"{folder}: no folders of classes in it; {name} needs them, too")
        found += _pictures(root, folder, classes, name, left_out)
    _check_classes(found)
    return ClassSource(found)


def _check_classes(pictures: Sequence[Shown]) -> None:
    """Errors: ValueError for a file with two classes, in one of them as a link."""
    first: dict[Hashable, Shown] = {}
    for picture in pictures:
        before = first.setdefault(_identity(picture.sample.images[0]), picture)
        if before.key != picture.key:
            raise ValueError(
                f"{before.sample.id} and {picture.sample.id} are the same file, and so one picture "
                f"of two classes, {before.key!r} and {picture.key!r}; keep one of them"
            )


def _has_splits(root: Path, inside: list[Path], layout: str | None, left_out: Counter[str]) -> bool:
    """True if the folders of `root` are splits.

    Errors: ValueError if some are and others are not, and nobody says which is meant.
    """
    splits = [folder for folder in inside if folder.name.lower() in SPLITS]
    others = [folder for folder in inside if folder not in splits]
    if layout is None and splits and others:
        raise ValueError(
            f"--images {root}: {listed(f.name for f in splits)} may be splits or classes, beside "
            f"{listed(f.name for f in others)}; give --layout splits (which leaves the others out) "
            "or --layout classes"
        )
    if layout == "splits" and not splits:
        raise ValueError(
            f"--layout splits: {root} has no folder {', '.join(sorted(set(SPLITS.values())))}"
        )
    if layout == "classes" or not splits:
        return False
    if others:
        left_out[OTHERS] += len(others)
    return True


def _folders(place: Path, left_out: Counter[str]) -> list[Path]:
    """The folders in a folder, sorted; counts other entries."""
    folders = []
    for entry in _entries(place):
        if entry.name.startswith("."):
            left_out[HIDDEN] += 1
        elif entry.is_dir():
            folders.append(Path(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
            left_out[LOOSE] += 1
        else:
            left_out[_sort_of(entry.name)] += 1
    return folders


def _pictures(
    root: Path, place: Path, classes: list[Path], split: str, left_out: Counter[str]
) -> Iterator[Shown]:
    """The pictures of each class; those in `place` itself are counted by `_folders`."""
    # A link to one of the folders around a picture would lead into a circle.
    around = frozenset({_identity(root), _identity(place)})
    unfit: list[Path] = []
    for folder in classes:
        paths = list(_below(folder, left_out, around))
        if not paths:
            raise ValueError(
                f"{folder}: no picture in it; every folder in {place} is a class. Remove it, or "
                "give --images the folder of the classes"
            )
        for path in paths:
            name = path.relative_to(root).as_posix()
            if UNFIT.search(name):  # finds surrogates too, which stand for bytes that are not UTF-8
                unfit.append(path)
            else:
                yield Shown(split, folder.name, SourceSample(name, (path,), [], place=name))
    if unfit:
        raise ValueError(
            f"{os.fsencode(unfit[0])!r}: its name is not UTF-8, or has a line break or control "
            f"character{and_more(len(unfit) - 1, 'such file')}; rename it, or its folder"
        )


def _below(folder: Path, left_out: Counter[str], around: frozenset[Hashable]) -> Iterator[Path]:
    """The pictures in a folder and its folders; `around` are the identities of those around it."""
    waiting = [(folder, around)]  # not by recursion: folders may be very deep
    while waiting:
        place, above = waiting.pop()
        if (identity := _identity(place)) in above:
            raise ValueError(f"{place} is a link to a folder that contains it; remove the link")
        for entry in _entries(place):
            if entry.name.startswith("."):
                left_out[HIDDEN] += 1
            elif entry.is_dir():
                waiting.append((Path(entry.path), above | {identity}))
            elif os.path.splitext(entry.name)[1].lower() not in ENDINGS:
                left_out[_sort_of(entry.name)] += 1
            elif not entry.is_file():
                what = "a link that leads nowhere" if entry.is_symlink() else "not a file"
                raise ValueError(f"{entry.path} is {what}; restore or remove it")
            else:
                yield Path(entry.path)


def _identity(path: Path) -> Hashable:
    """Device and inode of a folder, links followed; some network disks have no inodes."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _sort_of(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()
    return f"with the extension {ascii(ending)[1:-1]}" if ending else "without an extension"


def tell_left_out(left_out: Counter[str]) -> None:
    """Print how many files of which sort were left out."""
    if left_out:
        parts = [f"{sort} ({count:,})" for sort, count in left_out.most_common()]
        tell(f"left out: {', '.join(parts)}")


NUMBER_DIGITS = 9


class SplitFile(NamedTuple):
    """A file of rows; it may be about one split."""

    split: str
    path: Path


class ListedPicture(NamedTuple):
    """A row of a list or table about a picture."""

    picture: str
    key: str
    split: str
    place: str
    """FILE, line 7."""
    source: Mapping[str, Any] = {}
    """Other columns of the row."""


def split_file(text: str) -> SplitFile:
    """Parse `train=FILE`, or FILE."""
    # A file that exists may have = in its name.
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return SplitFile("", Path(text))
    if not name.isidentifier() or not path:
        raise argparse.ArgumentTypeError(f"got {text!r}; give SPLIT=FILE, such as train=FILE")
    return SplitFile(name, Path(path))


def read_lists(files: Sequence[SplitFile], images: Path) -> ClassSource:
    """The pictures of all lists that say which pictures belong to which split.

    DTD's `labels/train1.txt` has a picture a line, `banded/banded_0002.jpg`; the first folder is
    the class. CoOp's `split_zhou_NAME.json` holds {"train": [[picture, number, class], ...], "val":
    ..., "test": ...}; there the classes have the order of their numbers.

    Errors: ValueError that names the line, and the cure.
    """
    entries: list[ListedPicture] = []
    labels: dict[str, str] = {}
    paths = tuple(file.path for file in files)
    for split, path in files:
        entries += _rows_of_dtd(path, split) if split else rows_of_coop(path, labels)
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


def _rows_of_dtd(path: Path, split: str) -> Iterator[ListedPicture]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            picture = line.strip().replace("\\", "/").removeprefix("./")
            key, slash, name = picture.partition("/")
            # Blank lines are skipped; `./` and backslashes come from find and from Windows.
            if picture and not (key and slash and name):
                raise ValueError(
                    f"{path}, line {number}: {shown(picture)} has no folder that names its class; "
                    "each line is CLASS/PICTURE"
                )
            if picture:
                yield ListedPicture(picture, key, split, f"{path.name}, line {number}")


def rows_of_coop(path: Path, labels: dict[str, str]) -> Iterator[ListedPicture]:
    """Entries of a JSON file; adds its classes to `labels`."""
    if path.suffix.lower() != ".json":
        raise ValueError(f"--lists {path}: of which split? Give SPLIT={path}, such as train={path}")
    content = read_object(path)
    for split in content.fields:
        for number, row in enumerate(content.array(split), 1):
            place = f"{path}, {split}, row {number}"
            match row:
                case [str(picture), int(label), str(name)] if (
                    picture and 0 <= label < 10**NUMBER_DIGITS
                ):
                    label = int(label)  # JSON's true is an int
                case _:
                    raise ValueError(
                        f"{place}: {shown(row)}; expected [picture, number of the class, class]"
                    )
            # Classes are sorted by key: with leading zeros, texts have the order of numbers.
            key = f"{label:0{NUMBER_DIGITS}d}"
            if labels.setdefault(key, name) != name:
                raise ValueError(
                    f"{place}: class {label} is {shown(name)}, and {shown(labels[key])} before; "
                    "a number stands for one class"
                )
            yield ListedPicture(picture, key, split, f"{path.name}, {split}, row {number}")


def shown_pictures(
    entries: Sequence[ListedPicture], images: Path, group: str | None = None
) -> tuple[list[Shown], list[tuple[ListedPicture, ListedPicture]]]:
    """Each picture once, and (first row, later row) where rows say the same of a picture.
    `group`: the column that says what pictures of one split may have in common.

    Errors: ValueError for a picture with two classes or in two splits.
    """
    pictures = find_pictures(images, (entry.picture for entry in entries))
    first: dict[str, ListedPicture] = {}
    found, repeats = [], []
    for entry in entries:
        # By the file that was found: two rows may spell its name in two ways.
        picture = pictures[entry.picture]
        before = first.setdefault(picture.id, entry)
        if before is not entry:
            both = f"{before.place} and {entry.place}: {picture.id}"
            if before.split != entry.split:
                raise ValueError(
                    f"{both} is in {before.split} and in {entry.split}; keep it in one split, else "
                    "a score says little about new pictures"
                )
            if before.key != entry.key:
                raise ValueError(
                    f"{both} has two classes, {before.key!r} and {entry.key!r}; keep one of the "
                    "rows"
                )
            repeats.append((before, entry))
            continue
        place = entry.place.partition(", ")[2]  # FILE, line 7 -> line 7
        sample = SourceSample(picture.id, (picture.path,), [], dict(entry.source), place=place)
        if group is not None:
            shared = Group(group, clean(text_of(entry.source, group)))
            sample = replace(sample, groups=(shared,))
        found.append(Shown(entry.split, entry.key, sample))
    return found, repeats


def read_table_of_classes(
    files: Sequence[SplitFile],
    images: Path,
    image: str,
    label: str,
    split: str | None,
    group: str | None = None,
    *,
    apart: bool,
) -> ClassSource:
    """The pictures of all tables: CSV or TSV, JSON lines or a JSON list.

    `image`, `label`, `split` and `group` name columns; `apart`: each file is a split.

    Errors: ValueError that names the line, the column and the cure.
    """
    entries: list[ListedPicture] = []
    dropped: list[tuple[str, Dropped]] = []
    used = (image, label, split)
    for of_file, path in files:
        for row in read_rows(path):
            place = f"{path.name}, {row.place}"
            cells = {
                "picture": _cell(row, image, path),
                "class": _cell(row, label, path),
                "split": of_file if split is None else _cell(row, split, path),
            }
            if group is not None and not _cell(row, group, path):
                raise ValueError(
                    f"{path}, {row.place}: {group!r} is empty; give each row its group, or one of "
                    "its own"
                )
            part = cells["split"]
            if missing := [what for what, cell in cells.items() if not cell]:
                dropped.append((part, Dropped(place, f"no {missing[0]}")))
            else:
                rest = {name: cell for name, cell in row.fields.items() if name not in used}
                entries.append(ListedPicture(cells["picture"], cells["class"], part, place, rest))
    if not entries:
        raise ValueError(f"{files[0].path}: no row with a picture and a class")
    pictures, repeats = shown_pictures(entries, images, group)
    dropped += [
        (entry.split, Dropped(entry.place, "the picture and class of an earlier row"))
        for _, entry in repeats
    ]
    known = {picture.split for picture in pictures}
    # Some data set must list each dropped row, even if its split is empty or has no pictures.
    dropped = [(of if of in known else max(known), drop) for of, drop in dropped]
    paths = tuple(file.path for file in files)
    return ClassSource(pictures, paths, dropped=dropped, apart=apart or split is not None)


def _cell(row: UserRow, name: str, path: Path) -> str:
    """The text in a column, on one line."""
    if name not in row.fields:
        raise ValueError(
            f"{path}, {row.place}: no field {name!r}; {guess(name, map(str, row.fields))}"
            f"{list_fields(row.fields)}. Name the columns with --image-field, --label-field and "
            "--split-field; the first line of a table must name them"
        )
    value = row.fields[name]
    if isinstance(value, (dict, list, bool)):
        raise ValueError(
            f"{path}, {row.place}: {name!r} is {shown(value)}; expected text or a number"
        )
    return "" if value is None else clean(str(value))

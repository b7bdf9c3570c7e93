"""Pictures in folders of classes: ROOT/CLASS/..., or ROOT/{train,val,test}/CLASS/....

As torchvision reads them: each folder is a class, and all pictures below it belong to it, however
deep. Links are followed; `check_inside` refuses those that lead out of ROOT.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

from data_prep.classes.class_set import ClassSource, Shown, listed
from data_prep.packing.file_check import PICTURES
from data_prep.packing.source import SourceSample, and_more
from vlds.data.shards.sample import UNFIT
from vlds.runtime.terminal import tell

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
    return ClassSource(found)


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


def _identity(folder: Path) -> Hashable:
    """Device and inode of a folder, links followed; some network disks have no inodes."""
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


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

"""Files that annotations name: a detector's boxes; whether all exist, and in the given folders.

A detector's features have boxes and names, as VL-T5 and LXMERT store them: HDF5 groups or .npz
files with `features`, `boxes` (x1, y1, x2, y2 in pixels), `img_w`, `img_h`, and the numbers of
predicted objects and attributes, `obj_id` and `attr_id`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np

from vlds.runtime.terminal import tell

from ..json_rows import clean, open_text
from .picture import CLIP_ENDINGS, ENDINGS, MOST_FILES, folded, is_there
from .source import (
    BadFeatures,
    FeatureFile,
    SourceSample,
    SourceSet,
    and_more,
    file_names,
    find_missing,
    locate,
)

VOCABULARIES = {"obj_id": "objects_vocab.txt", "attr_id": "attributes_vocab.txt"}
"""Array of numbers -> the file with their names, as the detector's authors publish it."""


@dataclass(frozen=True)
class DetectorFile(FeatureFile):
    """Where the boxes of one picture are stored."""

    num_box_channels: ClassVar[int] = 4

    vocabulary: Path | None = None
    """Folder of the names; None: annotations get none."""

    def read(self) -> np.ndarray:
        """(tokens, dim + 4) float16: the features of each box, then its x1, x2, y1, y2 as shares of
        the picture's width and height.

        The visual embedding computes an area from this order. The original code stores x1, y1, x2,
        y2, so that its fifth number, (y2 - x2) (y1 - x1), is not an area. Errors: BadFeatures.
        """
        features = super().read()
        boxes, width, height = (self.array(name) for name in ("boxes", "img_w", "img_h"))
        if boxes.shape != (len(features), self.num_box_channels) or boxes.dtype.kind not in "fiu":
            raise BadFeatures(f"boxes of shape {boxes.shape} for {len(features)} features")
        for size in (width, height):
            if size.size != 1 or size.dtype.kind not in "fiu" or not 0 < size.item() < np.inf:
                raise BadFeatures("no width and height of the picture")
        # x1, y1, x2, y2 in pixels -> x1, x2, y1, y2 as shares.
        shares = boxes[:, [0, 2, 1, 3]] / np.array([width, width, height, height], float).ravel()
        if not np.isfinite(shares).all():
            raise BadFeatures("boxes are not finite")
        # Boxes may reach a little beyond the picture.
        return np.concatenate([features, shares.clip(0, 1).astype(np.float16)], 1)

    def annotated(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """The annotation with a name for each box, "ATTRIBUTE OBJECT".

        Errors: BadFeatures.
        """
        if self.vocabulary is None:
            return annotation
        words = []
        for array_name, file_name in VOCABULARIES.items():
            names, numbers = names_in(self.vocabulary / file_name), self.array(array_name)
            if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
                raise BadFeatures(f"{array_name} is {numbers.dtype} {numbers.shape}")
            if not ((numbers >= 0) & (numbers < len(names))).all():
                raise BadFeatures(f"{array_name} has numbers outside of {file_name}")
            words.append([names[number] for number in numbers.tolist()])
        objects, attributes = words  # in the order of VOCABULARIES
        if len(objects) != len(attributes):
            raise BadFeatures(f"{len(objects)} objects, {len(attributes)} attributes")
        regions = [f"{of} {thing}" for of, thing in zip(attributes, objects, strict=True)]
        return {**annotation, "regions": regions}


@cache
def names_in(path: Path) -> tuple[str, ...]:
    """The names of a vocabulary: of "cat,kitty", the first. A process reads each file once.

    Errors: ValueError if the file is missing or has an empty line.
    """
    with open_text(path) as file:
        names = tuple(clean(line.split(",")[0]).lower() for line in file)
    if not names or "" in names:
        raise ValueError(f"{path}: line {names.index('') + 1 if names else 1} has no name")
    return names


def locate_boxes(place: Path, name: str, vocabulary: Path | None = None) -> DetectorFile:
    """Features and boxes of one picture in a folder or file."""
    file = locate(place, name)
    return DetectorFile(file.path, file.name, vocabulary=vocabulary)


SHOWN = 10
"""Missing files that a message names."""
PICTURES = {*ENDINGS, *CLIP_ENDINGS, ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
ADDRESS = re.compile(r"(^|/)(https?|s3|gs|hf):/")
"""In a path, of which one slash is left."""
MOST_SHOWN = 200
"""Characters of a path that a message shows: its last ones."""


@dataclass(frozen=True)
class MissingFile:
    """A picture or features that an annotation names."""

    name: str
    """Kind and path, such as "picture a.jpg"."""
    sample: SourceSample
    source: str
    """Names of the annotation files."""
    picture: Path | None = None
    """None for features."""

    @property
    def is_folder(self) -> bool:
        """True for a picture's path that leads to a folder."""
        return self.picture is not None and os.path.isdir(self.picture)


def check_missing(datasets: Sequence[SourceSet], folder: Path | None, skip: bool) -> None:
    """Say which files are missing, with similar names from the pictures' folder.

    Errors: ValueError, unless `skip` leaves their rows out.
    """
    missing: list[MissingFile] = []
    num_files = 0
    for dataset in datasets:
        # A file that several turns or samples name is looked for, and counted, once.
        pictures = {path for sample in dataset.samples for path in sample.images}
        absent = {path for path in pictures if not is_there(path)}
        for sample in dataset.samples if absent else ():
            for number, path in enumerate(sample.images):
                if path in absent:
                    absent.remove(path)
                    what = "clip" if number in sample.clips else "picture"
                    # A path has lost one of an address's two slashes.
                    shown = ADDRESS.sub(r"\1\2://", str(path))
                    name = f"{what} {shown[-MOST_SHOWN:]}"
                    missing.append(MissingFile(name, sample, dataset.source, path))
        located = {file: sample for sample in dataset.samples for file in sample.features}
        num_files += len(pictures) + len(located)
        missing += [
            MissingFile(f"features {file}", located[file], dataset.source)
            for file in find_missing(located)
        ]
    if not missing:
        return
    if skip:
        tell(_message(missing, num_files, folder, "Their rows are left out"), error=True)
        return
    what = "the file, or leave its" if len(missing) == 1 else "the files, or leave their"
    cure = f"Check {missing[0].sample.option}, add {what} rows out with --skip-missing"
    raise ValueError(_message(missing, num_files, folder, cure))


def _message(missing: Sequence[MissingFile], num_files: int, folder: Path | None, cure: str) -> str:
    """One line for a single missing file of `num_files`, else a list; similar names come from
    `folder`.

    Errors: ValueError if there is no such folder.
    """
    if folder is not None and missing[0].picture is not None and not folder.is_dir():
        raise ValueError(
            f"{missing[0].sample.option} {folder} is not a folder; name the folder of the pictures"
        )
    near = NearNames(folder) if folder else None
    if len(missing) == 1:
        (file,) = missing
        hint = _hint(file, near)
        hint = f"{hint[0].upper()}{hint[1:]} " if hint else ""
        named = f"{file.sample.named_by} of {file.source} names it"
        fault = "is not a file" if file.is_folder else "is missing"
        return f"{file.name} {fault}; {named}. {hint}{cure}"
    nouns = {file.name.split()[0] for file in missing}
    plural = {"picture": "pictures", "clip": "clips"}
    noun = " and ".join(plural.get(noun, noun) for noun in sorted(nouns))
    lines = [f"{len(missing):,} of {num_files:,} {noun} are missing. {cure}"]
    for file in missing[:SHOWN]:
        hint = _hint(file, near)
        where = f"{file.source}, {file.sample.named_by}"
        lines.append(f"  {where}: {file.name}{'; ' if hint else ''}{hint}")
    if len(missing) > SHOWN:
        lines.append(f"  and {len(missing) - SHOWN:,} more")
    return "\n".join(lines)


def _hint(file: MissingFile, near: NearNames | None) -> str:
    """A similar name, or what is wrong with this one; "" without any."""
    if file.is_folder:
        return "it is a folder; name a picture in it."
    if file.picture is not None and ADDRESS.search(file.picture.as_posix()):
        return "it is an address, and nothing here downloads pictures."
    if file.picture is None or near is None or not (similar := near.of(file.picture)):
        return ""
    return f"did you mean {similar}?"


class NearNames:
    """Pictures below a folder by their names without case, ending and folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_stem: dict[str, list[PurePosixPath]] = {}
        for path in islice(_pictures_below(folder), MOST_FILES):
            self.by_stem.setdefault(folded(path.stem), []).append(path)

    def of(self, missing: Path) -> str:
        """The most similar file, as a row would name it, or "". It may differ in case or ending,
        backslashes, %20, or a folder too many or too few."""
        named = missing.relative_to(self.folder) if missing.is_relative_to(self.folder) else missing
        wanted = PurePosixPath(unquote(str(named)).replace("\\", "/"))
        # The whole name too: "photo.v2" may stand for photo.v2.jpg, and its own stem is "photo".
        stems = (folded(wanted.stem), folded(wanted.name))
        similar = [path for stem in stems for path in self.by_stem.get(stem, [])]
        return str(max(similar, key=lambda path: _likeness(path, wanted), default=""))


def _pictures_below(folder: Path) -> Iterator[PurePosixPath]:
    for place, folders, names in os.walk(folder):
        folders.sort()  # in place: os.walk goes on in this order, and MOST_FILES may cut it
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in PICTURES:
                yield PurePosixPath(Path(place, name).relative_to(folder).as_posix())


def _likeness(path: PurePosixPath, wanted: PurePosixPath) -> tuple[int, bool]:
    """How many folders agree, counted from the last; then whether the ending does."""
    pairs = zip(reversed(path.parent.parts), reversed(wanted.parent.parts), strict=False)
    # a/b/x.jpg and c/b/x.png: one folder agrees, the ending does not.
    agree = (folded(folder) == folded(other) for folder, other in pairs)
    num_agreeing = sum(1 for _ in takewhile(bool, agree))
    return num_agreeing, path.suffix.lower() == wanted.suffix.lower()


def check_inside(dataset: SourceSet, folders: Sequence[Path]) -> None:
    """Refuse rows that name files outside of the user's folders.

    Rows may come from strangers: `../../secret.png`, an absolute path or a link that leads out
    would put any picture of this machine into shards that are handed on. Errors: ValueError that
    names the first such row.
    """
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    real_folder = cache(os.path.realpath)

    def is_inside(path: Path) -> bool:
        # Many pictures share a folder, and few are links: resolve each folder once.
        real = Path(real_folder(path.parent)) / path.name
        if os.path.islink(path) or path.name == "..":
            real = Path(os.path.realpath(path))
        return any(real == root or root in real.parents for root in roots)

    outside = [
        (path, sample)
        for sample in dataset.samples
        for path in (*sample.images, *(file.path for file in sample.features))
        if not is_inside(path)
    ]
    if outside and not dataset.files:
        path, sample = outside[0]
        raise ValueError(
            f"{path} is a link to a file outside {' and '.join(map(str, folders))}"
            f"{and_more(len(outside) - 1, 'such file')}. Copy it into the folder, or give "
            "--images-anywhere if you trust the links"
        )
    if outside:
        path, sample = outside[0]
        raise ValueError(
            f"{path} is outside {' and '.join(map(str, folders))}; {sample.named_by} of "
            f"{file_names(dataset.files)} names it{and_more(len(outside) - 1, 'such file')}. Give "
            f"the folder that holds all of them as {sample.option}, or --images-anywhere if you "
            "trust the rows"
        )

"""Pictures and features that are not there: all of them at once, with the files they may mean."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from data_prep.packing.feature_file import find_missing
from data_prep.packing.named_pictures import ENDINGS, is_there
from data_prep.packing.source import SourceSample, SourceSet, file_names
from vlds.runtime.terminal import tell

SHOWN = 10
"""Missing files that a message names."""
MOST_FILES = 500_000
"""Files of the pictures' folder that are looked through for near names."""
PICTURES = {*ENDINGS, ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}


@dataclass(frozen=True)
class MissingFile:
    """A picture or features that an annotation names."""

    what: str
    sample: SourceSample
    source: str
    """Names of the files that hold the annotation."""
    path: Path | None = None
    """Of a picture."""


def check_missing(datasets: Sequence[SourceSet], folder: Path | None, skip: bool) -> None:
    """Say what is missing, with near names from the pictures' folder.

    Errors: ValueError, unless `skip` leaves their rows out.
    """
    missing = missing_files(datasets)
    if not missing:
        return
    num_files = sum(len(s.images) + len(s.features) for data in datasets for s in data.samples)
    if skip:
        tell(tell_missing(missing, num_files, folder, "Their rows are left out"), error=True)
        return
    what = "the file, or leave its" if len(missing) == 1 else "the files, or leave their"
    cure = f"Check {missing[0].sample.option}, add {what} rows out with --skip-missing"
    raise ValueError(tell_missing(missing, num_files, folder, cure))


def missing_files(datasets: Sequence[SourceSet]) -> list[MissingFile]:
    """Files that do not exist, in the order of the samples."""
    found = []
    for dataset in datasets:
        source = file_names(dataset.files)
        found += [
            MissingFile(f"picture {path}", sample, source, path)
            for sample in dataset.samples
            for path in sample.images
            if not is_there(path)
        ]
        features = {file: sample for sample in dataset.samples for file in sample.features}
        found += [
            MissingFile(f"features {file}", features[file], source)
            for file in find_missing(features)
        ]
    return found


def tell_missing(
    missing: Sequence[MissingFile], num_files: int, folder: Path | None, cure: str
) -> str:
    """One line for a single one of all `num_files`, else a list; `folder` is where near names are
    looked for.

    Errors: ValueError where there is no such folder.
    """
    if folder is not None and missing[0].path is not None and not folder.is_dir():
        raise ValueError(
            f"{missing[0].sample.option} {folder} is not a folder; name the folder of the pictures"
        )
    near = NearNames(folder) if folder else None
    if len(missing) == 1:
        (file,) = missing
        hint = _hint(file, near)
        hint = f"{hint[0].upper()}{hint[1:]} " if hint else ""
        named = f"{file.sample.named_by} of {file.source} names it"
        return f"{file.what} is missing; {named}. {hint}{cure}"
    nouns = {file.what.split()[0] for file in missing}
    noun = "pictures" if nouns == {"picture"} else " and ".join(sorted(nouns))
    lines = [f"{len(missing):,} of {num_files:,} {noun} are missing. {cure}"]
    for file in missing[:SHOWN]:
        hint = _hint(file, near)
        place = f"{file.source}, {file.sample.named_by}"
        lines.append(f"  {place}: {file.what}{'; ' if hint else ''}{hint}")
    if len(missing) > SHOWN:
        lines.append(f"  and {len(missing) - SHOWN:,} more")
    return "\n".join(lines)


def _hint(file: MissingFile, near: NearNames | None) -> str:
    if file.path is None or near is None:
        return ""
    found = near.of(file.path)
    return f"did you mean {found}?" if found else ""


class NearNames:
    """Pictures below a folder by their names without case, ending and folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_stem: dict[str, list[PurePosixPath]] = {}
        for path in islice(_files_below(folder), MOST_FILES):
            self.by_stem.setdefault(_folded(path.stem), []).append(path)

    def of(self, missing: Path) -> str:
        """The most alike of the files, as a row would name it; "" where there is none. Found are
        another case or ending, backslashes, %20, a folder too many or too few."""
        named = missing.relative_to(self.folder) if missing.is_relative_to(self.folder) else missing
        wanted = PurePosixPath(unquote(str(named)).replace("\\", "/"))
        stems = (_folded(wanted.stem), _folded(wanted.name))
        alike = [path for stem in stems for path in self.by_stem.get(stem, [])]
        return str(max(alike, key=lambda path: _likeness(path, wanted), default=""))


def _files_below(folder: Path) -> Iterator[PurePosixPath]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in PICTURES:
                yield PurePosixPath(Path(place, name).relative_to(folder).as_posix())


def _likeness(path: PurePosixPath, wanted: PurePosixPath) -> tuple[int, bool]:
    """How many folders agree, from the last on; then whether the ending does."""
    pairs = zip(reversed(path.parent.parts), reversed(wanted.parent.parts), strict=False)
    agreeing = 0
    for own, other in pairs:
        if _folded(own) != _folded(other):
            break
        agreeing += 1
    return agreeing, path.suffix.lower() == wanted.suffix.lower()


def _folded(name: str) -> str:
    """Without case, and with accents in one of the two ways in which disks write them."""
    return unicodedata.normalize("NFC", name).casefold()

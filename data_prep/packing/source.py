"""What every parser returns: samples that name their pictures, before any picture is opened.

A parser reads the annotation files only. `pack` checks that all pictures exist before it writes the
first shard; then it opens them one by one. Here are the samples and data sets, what a picture may
be besides an ordinary file (pixels inside a larger file, features in HDF5 or NumPy), and the
journal of a data set that is being written.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlds.data.order.epoch_order import differences
from vlds.data.shards.info import ShardInfo
from vlds.data.shards.shard_index import load_index
from vlds.runtime.disk import append
from vlds.runtime.files import LARGEST_FILE, open_file, read_text, write_whole
from vlds.runtime.json_files import parse_json, parse_record, sha256
from vlds.schema import Group

CHANNELS = 3


@dataclass(frozen=True)
class RawPicture:
    """Plain pixels inside a larger file, such as the batches of CIFAR: the red, green and blue
    planes follow each other, row by row, one byte each."""

    path: Path
    offset: int
    height: int
    width: int

    def read(self) -> bytes:
        """The picture as PNG, which keeps every pixel.

        Errors: ValueError if the file is shorter than it was.
        """
        shape = CHANNELS, self.height, self.width
        with open_file(self.path) as file:
            file.seek(self.offset)
            data = file.read(CHANNELS * self.height * self.width)
        if len(data) < CHANNELS * self.height * self.width:
            raise ValueError(f"{self.path} ends before byte {self.offset + len(data) + 1}")
        # (3, h, w) planes -> (h, w, 3), as PNG has them.
        pixels = np.frombuffer(data, np.uint8).reshape(shape).transpose(1, 2, 0)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        return buffer.getvalue()


class Dropped(NamedTuple):
    """A sample or row of the source that is not in the shards."""

    id: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """A written shard, with the samples that were dropped before its last one."""

    shard: ShardInfo
    dropped: Sequence[Dropped]


class Journal:
    """Progress of a data set that is being written: one line for each finished shard.

    The first line identifies the preparation, so that only the same one can continue. The file is
    removed once dataset.json, which holds the same, exists.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> None:
        """`classes`: of a data set whose samples have one each."""
        self.path = path
        self.classes = classes
        self.identity = json.dumps(identity, sort_keys=True)

    def finished(self, is_whole: Callable[[ShardInfo], bool] | None = None) -> list[Finished]:
        """The shards that need not be written again: those whose files are still what was written,
        which `is_whole` says of shards that are kept elsewhere.

        Errors: ValueError if another preparation wrote here.
        """
        if not self.path.is_file():
            return []
        first, *lines = read_text(self.path).splitlines()
        if first != self.identity:
            raise ValueError(
                f"{self.path} belongs to a preparation with other files or options: "
                f"{'; '.join(differences(parse_json(first), parse_json(self.identity)))}; "
                "give the same again, or leave out --resume to start over"
            )
        entries = []
        for line in lines:
            try:
                entry = parse_record(Finished, line)
                if not (is_whole or self._is_here)(entry.shard):
                    break
            except (OSError, ValueError):  # cut off in writing, of another version, or untrue
                break  # later shards too: samples go on from shard to shard
            entries.append(entry)
        return entries

    def _is_here(self, shard: ShardInfo) -> bool:
        load_index(self.path.parent, shard, classes=self.classes)
        return sha256(self.path.parent / shard.name) == shard.sha256

    def begin(self, finished: Sequence[Finished]) -> None:
        """Continue after these shards, and forget all others."""
        write_whole(self.path, "".join([self.identity + "\n", *map(_line, finished)]))

    def add(self, entry: Finished) -> None:
        """Record a shard that is whole and on disk."""
        append(self.path, _line(entry))

    def end(self) -> None:
        """Remove the journal: dataset.json exists."""
        self.path.unlink(missing_ok=True)


def _line(entry: Finished) -> str:
    return json.dumps({"shard": vars(entry.shard), "dropped": entry.dropped}) + "\n"


HDF5 = (".h5", ".hdf5")
ENDINGS = (*HDF5, ".npz", ".npy")
ARRAYS = ("features", "feat")
"""Names of the array in a file with several."""
ELSEWHERE = "a link, or values of another file"
"""HDF5 can refer to files outside of the folder that the user gives."""
DAMAGED = "missing or damaged"
FLOAT16_MAX = float(np.finfo(np.float16).max)


class BadFeatures(Exception):
    """Unusable features; the message is the reason that the summary counts."""


@dataclass(frozen=True)
class FeatureFile:
    """Where the features of one picture or clip are stored.

    The layouts of VL-T5, VL-Adapter and VALUE: one HDF5 file per picture, or one for all pictures
    with a group per picture, each with an array `features`; one .npz per picture or clip with
    `features` or `feat`; one .npy per picture.
    """

    path: Path
    name: str
    """The picture's; it names the group, if the file holds several."""
    frames: int | None = None
    """Rows to return: a shorter clip is padded with zeros, a longer one pooled over time."""

    def read(self) -> np.ndarray:
        """(tokens, dim) float16.

        Errors: BadFeatures.
        """
        array = self.array()
        if array.ndim < 2 or not array.size or array.dtype.kind != "f":
            raise BadFeatures(f"not a matrix of numbers: {array.dtype} {array.shape}")
        # A grid of features becomes rows, line by line.
        array = array.reshape(-1, array.shape[-1])
        # So written, NaN fails too.
        if not (np.abs(array) <= FLOAT16_MAX).all():
            raise BadFeatures("not finite in float16")
        return fit(array.astype(np.float16), self.frames)

    def annotated(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """The annotation with what the file says about the picture: nothing."""
        return annotation

    def array(self, name: str | None = None) -> np.ndarray:
        """An array of the file; by default the features.

        Errors: BadFeatures.
        """
        try:
            return np.asarray(self._load(name))
        except BadFeatures:
            raise
        except Exception:  # damaged bytes make NumPy, zipfile and HDF5 raise anything
            raise BadFeatures(DAMAGED) from None

    def _load(self, name: str | None) -> Any:
        if self.path.suffix == ".npy":
            return np.load(self.path, allow_pickle=False)
        if self.path.suffix == ".npz":
            with np.load(self.path, allow_pickle=False) as arrays:
                # The archive's directory says how large each array is, before any is unpacked.
                _check_size(max(entry.file_size for entry in arrays.zip.infolist()))
                return arrays[name or _array_name(arrays.files)]
        group = _opened(self.path)
        for part in filter(None, self.name.split("/")):
            group = _member(group, part)
        array = _member(group, name or _array_name(list(group)))
        if array.is_virtual or array.external:
            raise BadFeatures(ELSEWHERE)
        _check_size(array.nbytes)
        return array[()]

    def __str__(self) -> str:
        if self.path.suffix not in ENDINGS:  # no file of any ending exists
            return f"{self.path} ({', '.join(ENDINGS)})"
        return f"{self.path}" if self.path.stem == self.name else f"{self.name} in {self.path}"


@lru_cache(maxsize=4)
def _opened(path: Path) -> Any:
    """An HDF5 file, kept open: it may hold all pictures, and opening takes longer than reading.
    Pre-training reads three in turns."""
    return _hdf5().File(path, "r")


def _member(group: Any, name: str) -> Any:
    """A member of an HDF5 group. Links are not followed: they may lead to any file of this machine,
    and HDF5 would wait forever on a named pipe."""
    link = group.get(name, getlink=True)
    if link is None:
        raise BadFeatures(DAMAGED)
    if not isinstance(link, _hdf5().HardLink):
        raise BadFeatures(ELSEWHERE)
    return group[name]


def _check_size(num_bytes: int) -> None:
    """Refuse to unpack huge arrays: a few bytes can stand for any number of zeros."""
    if num_bytes > LARGEST_FILE:
        raise BadFeatures(f"more than {LARGEST_FILE:,} bytes")


def _array_name(names: list[str]) -> str:
    return next((name for name in ARRAYS if name in names), ARRAYS[0])


def fit(array: np.ndarray, frames: int | None) -> np.ndarray:
    """(n, dim) -> (frames, dim): pad with zeros, or take the maximum over stretches of about equal
    length, as torch's adaptive_max_pool1d and VL-Adapter do."""
    if frames is None or len(array) == frames:
        return array
    if len(array) < frames:
        return np.pad(array, ((0, frames - len(array)), (0, 0)))
    # Frame n is made of the rows from floor(n * rows / frames) to ceil((n + 1) * rows / frames).
    # 5 rows in 3 frames: rows 0 1, 1 2 3 and 3 4.
    edges = [(n * len(array) // frames, -(-(n + 1) * len(array) // frames)) for n in range(frames)]
    return np.stack([array[start:end].max(0) for start, end in edges])


def locate(place: Path, name: str, frames: int | None = None) -> FeatureFile:
    """Features of one picture or clip in a folder or file; `find_missing` checks that they
    exist."""
    if place.is_file():
        return FeatureFile(place, name, frames)
    # If none exists, the path without an ending stands for all in the error.
    paths = (place / f"{name}{ending}" for ending in ENDINGS)
    path = next((path for path in paths if path.is_file()), place / name)
    return FeatureFile(path, name, frames)


def find_missing(files: Iterable[FeatureFile]) -> list[FeatureFile]:
    """The files that do not exist.

    Errors: ValueError if h5py is needed and not installed, or an HDF5 file with many pictures
    cannot be opened.
    """

    @cache
    def groups_of(path: Path) -> set[str]:
        # Listed once for all pictures in it, which may be a hundred thousand.
        try:
            with _hdf5().File(path, "r") as opened:
                return set(opened)
        except OSError as error:
            raise ValueError(f"--features {path} cannot be opened as HDF5: {error}") from error

    def exists(file: FeatureFile) -> bool:
        if not file.path.is_file():
            return False
        if file.path.suffix in HDF5:
            # NAME.h5 is about one picture; any other file has a group for each.
            _hdf5()
            return file.path.stem == file.name or file.name in groups_of(file.path)
        return True

    return [file for file in files if not exists(file)]


def _hdf5() -> Any:
    """The optional package h5py."""
    try:
        import h5py
    except ImportError:
        raise ValueError(
            "features in HDF5 need the package h5py: pip install 'vlds[features]'"
        ) from None
    return h5py


Annotation = dict[str, Any]
TYPES = ("answer_type", "question_type")
"""Fields by which scores of questions are grouped, where a source has them."""
MOST_REASONS = 5
"""Reasons for dropped rows that an error shows."""
SHOWN = 5
"""Rows, pictures or classes that a message names."""
MOST_FAULTS = 10
"""Different faults of rows that a message tells."""


class Span(NamedTuple):
    """The part of a clip that a row names, in seconds from the clip's first frame."""

    start: float = 0.0
    end: float | None = None
    """None: the clip's end."""


WHOLE = Span()


@dataclass(frozen=True)
class SourceSample:
    """One image or image pair with everything the source says about it."""

    id: str
    images: tuple[Path, ...]
    """Files of the pictures and clips, in the order in which the annotations show them."""
    annotations: list[Annotation]
    source: dict[str, Any] = field(default_factory=dict)
    """Fields of the source that a sample's json keeps under "source"."""
    features: tuple[FeatureFile, ...] = ()
    """Stored features, if the sample has no images."""
    raw: tuple[RawPicture, ...] = ()
    """Pictures that are not files, if the sample has no images."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the sample's json: a clip's subtitles and span."""
    clips: Mapping[int, Span] = field(default_factory=dict)
    """Which of `images` are clips: its number -> the part that is wanted."""
    groups: tuple[Group, ...] = ()
    """What else it has in common with others: the patients, documents or scenes of its rows. A
    sample's json keeps them: reports draw groups for their intervals."""
    lead: str = ""
    """Of a sample without groups: the name that decides its split, and keeps it with others that
    have it; default: its id."""
    place: str = ""
    """Where the source names the sample's files: "line 7"."""

    @property
    def named_by(self) -> str:
        """The line or annotation that names its files."""
        first = self.annotations[0]["id"] if self.annotations else self.id
        return self.place or f"annotation {first}"

    @property
    def files(self) -> list[Path]:
        """The files from which it is packed."""
        features, raw = [f.path for f in self.features], [r.path for r in self.raw]
        return [*self.images, *features, *raw]

    @property
    def option(self) -> str:
        """The option that names the folder of its files."""
        if self.clips:
            return "--videos" if len(self.clips) == len(self.images) else "--images and --videos"
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
    """All classes of an image_class set, in the order of their numbers."""
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


def parts_of(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Texts, pictures and clips of a conversation's turn, whose content may be a text alone."""
    content = turn["content"]
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


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


def in_lines(path: Path, faults: Iterable[tuple[str, str]]) -> str:
    """One message of all faulty rows, given as (place, fault), so that one round mends them."""
    places: dict[str, list[str]] = {}
    for place, fault in faults:
        places.setdefault(fault, []).append(place)
    if len(places) == 1:
        return f"{path}, {first_few(places[fault])}: {fault}"
    lines = [f"{path}:"]
    lines += [f"  {first_few(places[fault])}: {fault}" for fault in [*places][:MOST_FAULTS]]
    if len(places) > MOST_FAULTS:
        lines.append(f"  and {len(places) - MOST_FAULTS:,} other faults")
    return "\n".join(lines)


def and_more(count: int, noun: str) -> str:
    """How many others there are: " (and 3 more ids)", or "" for none."""
    return f" (and {count} more {noun}{'s' if count > 1 else ''})" if count else ""

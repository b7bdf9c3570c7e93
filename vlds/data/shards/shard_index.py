"""The index of a shard: the files `.idx`, `.cnt` and `.crc` beside it.

For a shard of n samples `NAME.tar.idx` holds little-endian u64[n+1], the offset of each sample's
first header and the end of the last one's data (the layout of Megatron-Energon); `NAME.tar.cnt`
holds u32[n, 2], annotations and pictures of each sample; `NAME.tar.crc` holds u32[n], the crc32 of
each sample's bytes, from one offset to the next. Pictures of classes also have `NAME.tar.cls`
(info.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
from zlib_ng.zlib_ng import crc32

from vlds.data.errors import ShardError
from vlds.data.shards.info import (
    CLS_TYPE,
    DATASET_FILE,
    REBUILD,
    ShardInfo,
    class_number,
    numbered,
    sample_jsons,
)
from vlds.data.shards.sample import FEATURES, UNUSABLE, UnfitId, check_ids, is_picture
from vlds.data.shards.tar import Member, Reader, members, split_name
from vlds.runtime.files import check_file, open_file, read_file
from vlds.runtime.json_files import in_words, parse_member

IDX_TYPE = np.dtype("<u8")
CNT_TYPE = np.dtype("<u4")
CRC_TYPE = np.dtype("<u4")
AGAIN = "copy it again, or prepare the data set again"
KEPT_SAMPLES = 1 << 22
"""Samples whose index a process keeps, 20 bytes each. Up to so many, the index of a data set is
read and checked as a whole when it is opened."""


class Counts(NamedTuple):
    """What the index knows of a sample."""

    annotations: int
    pictures: int
    """Stored features, if it has no pictures."""

    def __str__(self) -> str:
        return f"{self.annotations} annotations and {self.pictures} pictures"


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of one shard begin, and counts and checksum of each."""

    offsets: np.ndarray
    """u64[n+1]."""
    counts: np.ndarray
    """u32[n]: annotations."""
    pictures: np.ndarray
    """u32[n]: pictures, or stored features."""
    checksums: np.ndarray
    """u32[n]."""
    classes: np.ndarray | None = None
    """u32[n]: number of each sample's class, or NO_CLASS; None if the data set has no classes."""

    @classmethod
    def of(
        cls,
        offsets: Sequence[int],
        counts: Sequence[Counts],
        checksums: Sequence[int],
        classes: Sequence[int] | None = None,
    ) -> ShardIndex:
        """The index of samples that were just read or written."""
        # reshape: a shard without samples makes an array without columns.
        table = np.array(counts, CNT_TYPE).reshape(len(counts), 2)
        return cls(
            np.array(offsets, IDX_TYPE),
            table[:, 0],
            table[:, 1],
            np.array(checksums, CRC_TYPE),
            None if classes is None else np.array(classes, CLS_TYPE),
        )

    def files(self) -> dict[str, bytes]:
        """Suffix of each file beside the shard -> its content."""
        counts = np.stack([self.counts, self.pictures], axis=1)
        files = {
            ".idx": self.offsets.astype(IDX_TYPE).tobytes(),
            ".cnt": counts.astype(CNT_TYPE).tobytes(),
            ".crc": self.checksums.astype(CRC_TYPE).tobytes(),
        }
        if self.classes is not None:
            files[".cls"] = self.classes.astype(CLS_TYPE).tobytes()
        return files

    @classmethod
    def parse(cls, files: Mapping[str, bytes], shard: ShardInfo, path: str) -> ShardIndex:
        """Parse the files beside a shard; messages name it `path`.

        Errors: ShardError for an index that does not fit the shard as dataset.json describes it.
        """
        n = shard.samples
        sizes = index_sizes(n)
        for suffix in shard.index_hashes:
            if len(files[suffix]) != (size := sizes[suffix]):
                raise ShardError(
                    f"{path}{suffix} has {len(files[suffix])} bytes, {n} samples take {size}; "
                    f"{REBUILD}"
                )
        offsets = np.frombuffer(files[".idx"], IDX_TYPE)
        counts = np.frombuffer(files[".cnt"], CNT_TYPE).reshape(n, 2)
        # No differences: those of u64 would wrap, and hide offsets that descend.
        if (offsets[1:] <= offsets[:-1]).any() or int(offsets[-1]) > shard.bytes:
            raise ShardError(
                f"{path}.idx: its offsets do not ascend within the {shard.bytes} bytes of the "
                f"shard; {REBUILD}"
            )
        if (total := int(counts[:, 0].sum())) != shard.annotations:
            raise ShardError(
                f"{path}.cnt counts {total} annotations, {DATASET_FILE} says "
                f"{shard.annotations}; {REBUILD}"
            )
        checksums = np.frombuffer(files[".crc"], CRC_TYPE)
        classes = np.frombuffer(files[".cls"], CLS_TYPE) if shard.cls_sha256 else None
        return cls(offsets, counts[:, 0], counts[:, 1], checksums, classes)


class Indexes(Sequence[ShardIndex]):
    """The index of each shard of a data set. Small data sets have all from the beginning; of larger
    ones those that were used last are here, and the others are read when somebody wants them."""

    def __init__(
        self,
        load: Callable[[int], ShardIndex],
        number: int,
        here: Iterable[ShardIndex] = (),
        at_once: int = 1,
    ) -> None:
        """`at_once`: how many `load` reads at a time."""
        self._load, self._number, self._at_once = load, number, at_once
        self._here = dict(enumerate(here))
        self._samples = sum(len(index.counts) for index in self._here.values())
        self._most = max(KEPT_SAMPLES, self._samples)

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, number: int) -> ShardIndex: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[ShardIndex]: ...
    def __getitem__(self, number: int | slice) -> ShardIndex | Sequence[ShardIndex]:
        """Errors: ShardError if the index is not as dataset.json describes it."""
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(self._number))]
        if not 0 <= number < self._number:
            raise IndexError(number)
        if (index := self._here.get(number)) is None:
            index = self._keep(number, self._load(number))
        return index

    def several(self, numbers: Sequence[int]) -> list[ShardIndex]:
        """Those of some shards, at once where that is faster. Errors: ShardError."""
        found = {number: self._here.get(number) for number in numbers}
        missing = [number for number, index in found.items() if index is None]
        if self._at_once > 1 and len(missing) > 1:
            with ThreadPoolExecutor(self._at_once) as pool:
                loaded = list(pool.map(self._load, missing))
        else:
            loaded = [self._load(number) for number in missing]
        new = dict(zip(missing, loaded, strict=True))
        for number, index in new.items():
            self._keep(number, index)
        return [found[number] or new[number] for number in numbers]

    def _keep(self, number: int, index: ShardIndex) -> ShardIndex:
        """Keep an index; the oldest go, even if they were just used: positions rise, so that they
        are left soon."""
        if self._here.setdefault(number, index) is index:
            self._samples += len(index.counts)
        while self._samples > self._most and len(self._here) > 1:
            oldest = next(iter(self._here))
            self._samples -= len(self._here.pop(oldest).counts)
        return index


class Column(Sequence[np.ndarray]):
    """One array of each shard's index."""

    def __init__(self, indexes: Indexes, name: Literal["counts", "pictures"]) -> None:
        self._indexes, self._name = indexes, name

    def __len__(self) -> int:
        return len(self._indexes)

    @overload
    def __getitem__(self, number: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, number: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        column: np.ndarray = getattr(self._indexes[number], self._name)
        return column


def load_index(
    folder: Path,
    shard: ShardInfo,
    *,
    foreign: bool = False,
    classes: Sequence[str] | None = None,
) -> ShardIndex:
    """The index of a shard, from the files beside it or, if one is missing, from the shard itself.

    Errors: ShardError if the shard or its index is not as dataset.json describes it.
    """
    tar = folder / shard.name
    try:
        size = check_file(tar)
    except OSError as error:
        raise ShardError(f"shard {tar} cannot be read ({error.strerror}); {AGAIN}") from None
    if size != shard.bytes:
        what = "cut" if size < shard.bytes else "another one"
        raise ShardError(
            f"shard {tar} has {size} bytes, {DATASET_FILE} says {shard.bytes}: the file is {what}; "
            f"{AGAIN}"
        )
    # Folders that are copied often come without the small files; only the tar is needed.
    paths = {suffix: beside(tar, suffix) for suffix in shard.index_hashes}
    if all(path.exists() for path in paths.values()):
        files = {suffix: read_file(path) for suffix, path in paths.items()}
        cure = f"remove it, so that it is rebuilt from the shard, or {REBUILD}"
    else:
        files = build_index(tar, foreign=foreign, classes=classes).files()
        cure = f"it was rebuilt from the shard, so the shard is another one too: {AGAIN}"
    for suffix, expected in shard.index_hashes.items():
        if sha256(files[suffix]).hexdigest() != expected:
            raise ShardError(
                f"{paths[suffix]} is not the one that {DATASET_FILE} describes (other sha256); "
                f"{cure}"
            )
    return ShardIndex.parse(files, shard, str(tar))


def index_sizes(samples: int) -> dict[str, int]:
    """Suffix of each file beside a shard -> its size in bytes."""
    return {
        ".idx": (samples + 1) * IDX_TYPE.itemsize,
        ".cnt": 2 * samples * CNT_TYPE.itemsize,
        ".crc": samples * CRC_TYPE.itemsize,
        ".cls": samples * CLS_TYPE.itemsize,
    }


def beside(tar: Path, suffix: str) -> Path:
    """Path of a file that lies beside a shard: NAME.tar + suffix."""
    return tar.with_name(tar.name + suffix)


def build_index(
    tar: Path, *, foreign: bool = False, classes: Sequence[str] | None = None
) -> ShardIndex:
    """Make the index of a shard from its headers and its samples' json; `foreign` samples have one
    annotation each, and those of a data set with `classes` have one of them.

    Errors: ShardError for damage, and for samples without json, with unfit ids or other classes.
    """
    sample: list[Member] = []
    begins: list[int] = []
    counts: list[Counts] = []
    end = 0
    with open_file(tar) as file:
        size = os.fstat(file.fileno()).st_size

        def read(offset: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, offset)

        # Only headers and json are read, not the pictures between them.
        try:
            for member in members(read, 0, None):
                # A new key begins a new sample: members of one stand side by side.
                if not sample or split_name(member.name)[0] != split_name(sample[0].name)[0]:
                    if sample:
                        counts.append(_counts(sample, read, foreign))
                    sample = []
                    begins.append(member.header)
                if member.start + member.size > size:
                    raise ShardError(f"it is cut inside {member.name}")
                sample.append(member)
                end = member.end
            if sample:
                counts.append(_counts(sample, read, foreign))
            if end > size:  # inside the padding of the last member
                raise ShardError("it is cut there")
        except ValueError as error:
            is_message = isinstance(error, (ShardError, UnfitId))
            reason = error if is_message else f"unusable json ({in_words(error)})"
            raise ShardError(
                f"shard {tar}, sample {len(counts)}: {reason}; copy or prepare it again"
            ) from None
    # A second pass, for classes alone: few data sets have them.
    offsets = [*begins, end]
    try:
        numbers = None
        if classes is not None:
            known = numbered(classes)
            numbers = [class_number(json, known) for json in sample_jsons(tar, offsets)]
    except UNUSABLE as error:
        raise ShardError(f"shard {tar}: {error}; prepare it again") from None
    return ShardIndex.of(offsets, counts, tar_checksums(tar, offsets), numbers)


def _counts(sample: Sequence[Member], read: Reader, foreign: bool) -> Counts:
    """Errors: as `counts_of`, and ShardError for a sample without json."""
    key, _ = split_name(sample[0].name)
    extensions = [split_name(member.name)[1] for member in sample]
    num_features = sum(extension.endswith(FEATURES) for extension in extensions)
    if foreign:
        check_ids({"id": key, "annotations": []})
        return Counts(1, sum(map(is_picture, extensions)) or num_features)
    members_by_extension = dict(zip(extensions, sample, strict=True))
    if (json := members_by_extension.get("json")) is None:
        raise ShardError(
            f'sample {key} has no member "json", which holds its annotations; for samples '
            "that others have written, see `vlds data index --fields`"
        )
    return counts_of(bytes(read(json.start, json.size)), num_features)


def counts_of(data: bytes, num_features: int) -> Counts:
    """Read the json of a sample with `num_features` stored features.

    Errors: ValueError for malformed json, and unfit ids.
    """
    fields = parse_member(data)
    check_ids(fields)
    images = fields.get("images")
    pictures = len(images) if isinstance(images, list) else 0
    return Counts(len(fields["annotations"]), pictures or num_features)


def tar_checksums(tar: Path, offsets: Sequence[int]) -> list[int]:
    """crc32 of the bytes between one offset of a shard and the next."""
    with open_file(tar) as file:
        spans = pairwise(offsets)
        return [crc32(os.pread(file.fileno(), end - begin, begin)) for begin, end in spans]

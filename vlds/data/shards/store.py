"""Samples of indexed shards by their index: one pread a sample, headers parsed in memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from zlib_ng.zlib_ng import crc32

from vlds.data.errors import ChangedSample, FetchError, ShardError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.class_numbers import KIND, NO_CLASS
from vlds.data.shards.info import DATASET_FILE, REBUILD, DatasetInfo, ShardInfo
from vlds.data.shards.remote import RemoteFiles, is_url
from vlds.data.shards.sample import UNUSABLE, parse_sample
from vlds.data.shards.shard_index import Counts, ShardIndex, load_index
from vlds.data.shards.shard_stream import is_pattern
from vlds.data.shards.tar import read_members
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import open_descriptor, read_text
from vlds.schema import Sample, SkipSample

OPEN_FILES = 128
QUARANTINE_FILE = "quarantine.jsonl"


class LocalFiles:
    """The files of a data set in a folder.

    Descriptors of the files read last stay open; they are not pickled: each process opens its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def open(self) -> tuple[DatasetInfo, list[ShardIndex]]:
        """dataset.json, and the index of every shard."""
        info = DatasetInfo.load(self.folder)
        options: Any = {"foreign": info.fields is not None, "classes": info.indexed_classes}
        return info, [load_index(self.folder, shard, **options) for shard in info.shards]

    def location(self, shard: ShardInfo) -> str:
        """Where a shard is, for messages."""
        return str(self.folder / shard.name)

    def cure(self, shard: ShardInfo) -> str:
        """What to do about damage in a shard."""
        return "copy the shard again, or prepare the data set again"

    def renew(self, shard: ShardInfo) -> bool:
        """False: there is no other copy."""
        return False

    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        """Bytes of a shard; pread, so that a descriptor inherited by fork may be shared."""
        data = os.pread(self._descriptor(shard.name), size, offset)
        if len(data) < size:
            end, expected = offset + len(data), offset + size
            raise ShardError(f"the file ends at byte {end}, {expected} expected")
        return data

    def quarantine(self, info: DatasetInfo) -> Mapping[int, str]:
        """Index of each sample that `data_prep verify` rejected -> what is wrong with it. A run
        replaces them without reading them.

        Errors: ValueError that names the file and line.
        """
        path = self.folder / QUARANTINE_FILE
        if not path.is_file():
            return {}
        counts = accumulate((shard.samples for shard in info.shards), initial=0)
        first = dict(zip((shard.name for shard in info.shards), counts, strict=False))
        faults = {}
        # splitlines would also split at U+2028, which may be what is wrong with an id.
        for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
            try:
                entry = parse_json(line)
                faults[first[entry["shard"]] + entry["i"]] = f"in {path}: {entry['reason']}"
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not what `data_prep verify` writes ({error!r}); run "
                    "it again, or remove the file"
                ) from None
        return faults

    def _descriptor(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
        else:
            self._open[name] = open_descriptor(self.folder / name)
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


Files: TypeAlias = LocalFiles | RemoteFiles


def open_dataset(folder: str | Path, cache: ShardCache | None = None) -> Dataset:
    """Open the data set in a folder, its shards and indexes checked against dataset.json.

    The folder may be a URL: its files are read through copies in `cache`, by default the user's.

    Errors: ValueError that names folder or shard, what is wrong, and the cure.
    """
    if is_pattern(folder):
        raise ValueError(
            f"{folder} names shards, not a data set: to train on them as they are, set data.reader "
            "to sequential; for all else put them into a folder and index it: `python -m data_prep "
            "index`"
        )
    if is_url(folder):
        return Dataset(RemoteFiles(str(folder), cache or ShardCache()))
    return Dataset(LocalFiles(Path(folder)))


class Dataset:
    """The samples of one data set by number. Files are opened at the first read in each process."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.folder = files.folder
        """Path or URL."""
        self.key = str(self.folder)
        """Tells its samples from those of other data sets."""
        self.info, indexes = files.open()
        self.name, self.kind, self.split = self.info.name, self.info.kind, self.info.split
        self.label = f"{self.name}-{self.split}"
        """For messages."""
        self.num_samples, self.num_annotations = self.info.samples, self.info.annotations
        self.quarantine = files.quarantine(self.info)
        """Index -> fault of samples that are known to be bad."""
        self.counts = [index.counts for index in indexes]
        """Annotations of each sample, shard by shard."""
        self.pictures = [index.pictures for index in indexes]
        """Pictures, or else stored features, of each sample, shard by shard."""
        self._classes = [index.classes for index in indexes]
        self._offsets = [index.offsets.astype(np.int64) for index in indexes]
        self._checksums = [index.checksums for index in indexes]
        self._first_sample = [0, *accumulate(len(counts) for counts in self.counts)]

    @property
    def is_remote(self) -> bool:
        """Whether its shards are read through copies in a cache."""
        return isinstance(self._files, RemoteFiles)

    def fingerprint(self) -> str:
        """Changes with the bytes of any shard."""
        text = "".join(shard.sha256 + shard.cnt_sha256 for shard in self.info.shards)
        return sha256(text.encode()).hexdigest()[:16]

    def class_numbers(self) -> np.ndarray:
        """(n,) int64: the place of each sample's class in `info.classes`, or NO_CLASS for one
        without a label; no sample is read.

        Errors: ValueError if its samples have no class; ShardError if a number is too large.
        """
        classes = self.info.indexed_classes
        if classes is None:
            raise ValueError(
                f"data set {self.folder}: it has kind {self.kind} and no classes; name one of kind "
                f"{KIND}, which `python -m data_prep imagefolder` writes"
            )
        parts = [part for part in self._classes if part is not None]
        numbers = np.concatenate([*parts, np.empty(0)]).astype(np.int64)
        if (odd := (numbers >= len(classes)) & (numbers != NO_CLASS)).any():
            raise ShardError(
                f"data set {self.folder}: class {numbers[odd][0]} in the index of a shard, but "
                f"{DATASET_FILE} lists {len(classes):,}; {REBUILD}"
            )
        return numbers

    def shard_of(self, sample: int) -> str:
        """File name of the shard that holds a sample."""
        return self.info.shards[self._shard(sample)[0]].name

    def read(self, sample: int) -> Sample:
        """Read a sample by its index.

        Errors: ShardError for a damaged shard, SkipSample for a damaged sample.
        """
        shard, row = self._shard(sample)
        try:
            return self._read(shard, row)
        except FetchError:
            raise
        except (ShardError, ChangedSample):
            if not self._files.renew(self.info.shards[shard]):
                raise
        return self._read(shard, row)

    def _read(self, shard_index: int, row: int) -> Sample:
        info, shard = self.info, self.info.shards[shard_index]
        begin, end = self._offsets[shard_index][row : row + 2].tolist()
        try:
            data = memoryview(self._files.read(shard, begin, end - begin))
            key, content = read_members(data, begin)
        except FetchError:
            raise
        except (OSError, ShardError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            location, cure = self._files.location(shard), self._files.cure(shard)
            raise ShardError(f"shard {location}, sample {row}: {reason}; {cure}") from None
        what = f"sample {self.label} {key} ({shard.name})"
        if crc32(data) != self._checksums[shard_index][row]:
            raise ChangedSample(
                f"{what}: its bytes are not those that were indexed (another crc32); "
                f"{self._files.cure(shard)}"
            )
        try:
            sample = parse_sample(key, content, info.name, info.kind, info.fields)
        except UNUSABLE as error:
            raise SkipSample(f"{what}: {error!r}") from error
        counts = Counts(len(sample.annotations), len(sample.images) or len(sample.features))
        indexed = Counts(int(self.counts[shard_index][row]), int(self.pictures[shard_index][row]))
        if counts != indexed:
            raise SkipSample(f"{what}: it has {counts}, its index says {indexed}; {REBUILD}")
        return sample

    def _shard(self, sample: int) -> tuple[int, int]:
        shard = bisect_right(self._first_sample, sample) - 1
        return shard, sample - self._first_sample[shard]

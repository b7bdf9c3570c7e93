"""Data sets of indexed shards: any sample by its number, with one pread.

The files of a data set lie in a folder of this machine, or at a URL (remote.py).
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from vlds.data.errors import ChangedSample, FetchError, ShardError
from vlds.data.shards.cache import ShardCache
from vlds.data.shards.info import (
    DATASET_FILE,
    KIND,
    NO_CLASS,
    QUARANTINE_FILE,
    REBUILD,
    DatasetInfo,
    ShardInfo,
)
from vlds.data.shards.remote import AT_ONCE, RemoteFiles, is_url, parse_quarantine
from vlds.data.shards.sample import UNUSABLE, parse_sample
from vlds.data.shards.shard_index import (
    KEPT_SAMPLES,
    Column,
    Counts,
    Indexes,
    ShardIndex,
    load_index,
)
from vlds.data.shards.shard_stream import is_pattern
from vlds.data.shards.tar import read_members
from vlds.runtime.files import open_descriptor, read_file
from vlds.runtime.json_files import in_words
from vlds.runtime.terminal import Away
from vlds.schema import Sample, SkipSample


class LocalFiles:
    """The files of a data set in a folder.

    Descriptors of the files read last stay open; they are not pickled: each process opens its own.
    """

    def __init__(self, folder: Path, info: DatasetInfo | None = None) -> None:
        """`info`: of a part of the data set, instead of dataset.json."""
        self.folder, self._info = folder, info
        self._open: OrderedDict[str, int] = OrderedDict()

    def open(self) -> tuple[DatasetInfo, list[ShardIndex]]:
        """dataset.json, and of a small data set the index of every shard."""
        info = self._info or DatasetInfo.load(self.folder)
        return info, [self.index(info, n) for n in range(len(info.shards)) if is_small(info)]

    def index(self, info: DatasetInfo, number: int) -> ShardIndex:
        """The index of a shard. Errors: ShardError."""
        is_foreign, classes = info.fields is not None, info.indexed_classes
        return load_index(self.folder, info.shards[number], foreign=is_foreign, classes=classes)

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
        name = shard.name
        if name in self._open:
            self._open.move_to_end(name)
        else:
            self._open[name] = open_descriptor(self.folder / name)
            # Systems allow 1024 open files by default, and torch's queues take some.
            if len(self._open) > 128:
                os.close(self._open.popitem(last=False)[1])
        data = os.pread(self._open[name], size, offset)
        if len(data) < size:
            end, expected = offset + len(data), offset + size
            raise ShardError(f"the file ends at byte {end}, {expected} expected")
        return data

    def quarantine(self, info: DatasetInfo) -> Mapping[int, str]:
        """See `parse_quarantine`."""
        path = self.folder / QUARANTINE_FILE
        if self._info is not None or not path.is_file():
            return {}
        return parse_quarantine(read_file(path), str(path), info)

    def gather(self, wanted: Sequence[tuple[ShardInfo, int, int]]) -> None:
        """Nothing: the system reads ahead."""

    def expect(self, shards: Sequence[ShardInfo]) -> None:
        """Nothing: they are here."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict()}

    def __del__(self) -> None:
        # os.open gives plain numbers, which nothing else closes.
        for descriptor in self._open.values():
            os.close(descriptor)


class Files(Protocol):
    """The files of a data set: `LocalFiles`, `RemoteFiles`."""

    @property
    def folder(self) -> str | Path: ...
    def open(self) -> tuple[DatasetInfo, list[ShardIndex]]: ...
    def index(self, info: DatasetInfo, number: int) -> ShardIndex: ...
    def location(self, shard: ShardInfo) -> str: ...
    def cure(self, shard: ShardInfo) -> str: ...
    def renew(self, shard: ShardInfo) -> bool: ...
    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes: ...
    def quarantine(self, info: DatasetInfo) -> Mapping[int, str]: ...
    def gather(self, wanted: Sequence[tuple[ShardInfo, int, int]]) -> None: ...
    def expect(self, shards: Sequence[ShardInfo]) -> None: ...


def open_dataset(
    folder: str | Path, cache: ShardCache | None = None, *, copies: bool = True
) -> Dataset:
    """Open the data set in a folder, its shards and indexes checked against dataset.json.

    The folder may be a URL: its files are read through copies in `cache`, by default the user's.
    Without `copies`, samples of an object store are read by themselves: for a few of them.

    Errors: ValueError that names folder or shard, what is wrong, and the cure.
    """
    if is_pattern(folder):
        raise ValueError(
            f"{folder} names shards, not a data set: to train on them as they are, set data.reader "
            "to sequential; otherwise put them into a folder and index it: `vlds data "
            "index`"
        )
    if is_url(folder):
        return Dataset(RemoteFiles(str(folder), cache or ShardCache(), copies=copies))
    return Dataset(LocalFiles(Path(folder)))


def is_small(info: DatasetInfo) -> bool:
    """Whether to read the whole index of a data set when it is opened."""
    return info.samples <= KEPT_SAMPLES


class Dataset:
    """The samples of one data set by number. Files are opened at the first read in each process."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.is_remote = isinstance(files, RemoteFiles)
        """Whether its shards are read through copies in a cache."""
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
        self.is_small = is_small(self.info)
        """Whether its whole index was checked when it was opened."""
        load = partial(files.index, self.info)
        at_once = AT_ONCE if self.is_remote else 1
        self._indexes = Indexes(load, len(self.info.shards), indexes, at_once)
        self.counts: Sequence[np.ndarray] = Column(self._indexes, "counts")
        """Annotations of each sample, shard by shard."""
        self.pictures: Sequence[np.ndarray] = Column(self._indexes, "pictures")
        """Pictures, or else stored features, of each sample, shard by shard."""
        self.shard_samples = self.info.table.column("samples")
        self.shard_annotations = self.info.table.column("annotations")
        first_samples = np.concatenate([[0], np.cumsum(self.shard_samples)])
        # bisect is faster in it than in NumPy's, and it is smaller than a list.
        self._first_sample = array("q", first_samples.astype(np.int64).tobytes())

    def counts_of(self, shards: Sequence[int]) -> list[np.ndarray]:
        """`counts` of some shards. Errors: ShardError."""
        return [index.counts for index in self._indexes.several(shards)]

    def fingerprint(self) -> str:
        """Changes with the bytes of any shard."""
        # Counts too: the order of examples depends on them, and tools may count differently.
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self.info.table.digest("sha256", "cnt_sha256")

    def class_numbers(self) -> np.ndarray:
        """(n,) int64: the place of each sample's class in `info.classes`, or NO_CLASS for one
        without a label; no sample is read.

        Errors: ValueError if its samples have no class; ShardError if a number is too large.
        """
        classes = self.info.indexed_classes
        if classes is None:
            raise ValueError(
                f"data set {self.folder}: it has kind {self.kind} and no classes; name one of kind "
                f"{KIND}, which `vlds data imagefolder` writes"
            )
        # With an empty array: np.concatenate refuses the empty list of a data set without shards.
        parts = [part.classes for part in self._indexes if part.classes is not None]
        numbers = np.concatenate([*parts, np.empty(0)]).astype(np.int64)
        if (odd := (numbers >= len(classes)) & (numbers != NO_CLASS)).any():
            raise ShardError(
                f"data set {self.folder}: class {numbers[odd][0]} in the index of a shard, but "
                f"{DATASET_FILE} lists {len(classes):,}; {REBUILD}"
            )
        return numbers

    def place_of(self, annotation: int) -> tuple[int, int]:
        """Sample that has the n-th of all annotations, and which of its annotations that is."""
        # First the shard, whose index alone is needed: 5 and 4 annotations end at 5 and 9.
        shard_ends = np.cumsum(self.shard_annotations)
        shard = int(np.searchsorted(shard_ends, annotation, side="right"))
        annotation -= int(shard_ends[shard - 1]) if shard else 0
        ends = np.cumsum(self.counts[shard], dtype=np.int64)
        row = int(np.searchsorted(ends, annotation, side="right"))
        first = int(self.shard_samples[:shard].sum())
        return first + row, annotation - (int(ends[row - 1]) if row else 0)

    def shard_of(self, sample: int) -> str:
        """File name of the shard that holds a sample."""
        return self.info.shards[bisect_right(self._first_sample, sample) - 1].name

    def read(self, sample: int) -> Sample:
        """Read a sample by its index.

        Errors: ShardError for a damaged shard, SkipSample for a damaged sample.
        """
        shard, row = self._place(sample)
        try:
            return self._read(shard, row)
        except FetchError:  # a ShardError, but fetching again would fail again
            raise
        except (ShardError, ChangedSample):
            if not self._files.renew(self.info.shards[shard]):
                raise
        return self._read(shard, row)

    def gather(self, samples: Sequence[int]) -> None:
        """Read the bytes of remote samples at once, for the calls of `read` that follow."""
        wanted = []
        for shard, row in map(self._place, samples):
            begin, end = self._indexes[shard].offsets[row : row + 2].tolist()
            wanted.append((self.info.shards[shard], begin, end - begin))
        self._files.gather(wanted)

    def expect(self, samples: Sequence[int]) -> None:
        """Fetch the shards of remote samples that will be read soon, in the background."""
        shards = dict.fromkeys(shard for shard, _ in map(self._place, samples))
        self._files.expect([self.info.shards[shard] for shard in shards])

    def _place(self, sample: int) -> tuple[int, int]:
        """Shard of a sample, and its row there."""
        # Shards of 3 and 2 samples begin at 0, 3 and 5: sample 3 is row 0 of shard 1.
        shard = bisect_right(self._first_sample, sample) - 1
        return shard, sample - self._first_sample[shard]

    def _read(self, shard_index: int, row: int) -> Sample:
        info, shard, index = self.info, self.info.shards[shard_index], self._indexes[shard_index]
        begin, end = index.offsets[row : row + 2].tolist()
        try:
            data = memoryview(self._files.read(shard, begin, end - begin))
            key, content = read_members(data, begin)
        except (FetchError, Away):
            raise
        except (OSError, ShardError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            location, cure = self._files.location(shard), self._files.cure(shard)
            raise ShardError(f"shard {location}, sample {row}: {reason}; {cure}") from None
        what = f"sample {self.label} {key} ({shard.name})"
        # After the headers, whose faults tell more; before the members, whose faults would not say
        # that the file has changed.
        if crc32(data) != index.checksums[row]:
            raise ChangedSample(
                f"{what}: its bytes are not those that were indexed (another crc32); "
                f"{self._files.cure(shard)}"
            )
        try:
            sample = parse_sample(key, content, info.name, info.kind, info.fields)
        except UNUSABLE as error:
            raise SkipSample(f"{what}: {in_words(error)}") from error
        counts = Counts(len(sample.annotations), len(sample.images) or len(sample.features))
        indexed = Counts(int(index.counts[row]), int(index.pictures[row]))
        if counts != indexed:
            raise SkipSample(f"{what}: it has {counts}, its index says {indexed}; {REBUILD}")
        return sample


class Subset(Dataset):
    """Some samples of a data set, numbered from 0 in its order."""

    def __init__(self, whole: Dataset, chosen: NDArray[np.int64]) -> None:
        """`chosen`: numbers of samples, rising."""
        # Not by Dataset's __init__, which reads the index: both use one index and the same files.
        vars(self).update(vars(whole))
        self._whole, self.chosen = whole, chosen
        self._print = sha256(chosen.tobytes()).hexdigest()[:16]
        self.key = f"{whole.key}#{self._print}"
        # Counts stay in a list by shard: cut where the chosen numbers pass a shard's end.
        ends = np.cumsum(whole.shard_samples)
        cuts = np.searchsorted(chosen, ends[:-1])
        self.counts = np.split(np.concatenate(whole.counts)[chosen], cuts)
        self.pictures = np.split(np.concatenate(whole.pictures)[chosen], cuts)
        self.num_samples = len(chosen)
        self.shard_samples = np.array([len(counts) for counts in self.counts], np.int64)
        self.shard_annotations = np.array([counts.sum() for counts in self.counts], np.int64)
        self.num_annotations = int(np.concatenate(self.counts).sum())
        # Faults of samples that are not chosen have no number here.
        places = {int(number): place for place, number in enumerate(chosen)}
        self.quarantine = {places[n]: f for n, f in whole.quarantine.items() if n in places}

    def counts_of(self, shards: Sequence[int]) -> list[np.ndarray]:
        return [self.counts[shard] for shard in shards]

    def fingerprint(self) -> str:
        """Changes with the bytes of any shard, and with the choice."""
        return sha256(f"{self._whole.fingerprint()} {self._print}".encode()).hexdigest()[:16]

    def class_numbers(self) -> NDArray[np.int64]:
        return self._whole.class_numbers()[self.chosen]

    def shard_of(self, sample: int) -> str:
        return self._whole.shard_of(int(self.chosen[sample]))

    def read(self, sample: int) -> Sample:
        return self._whole.read(int(self.chosen[sample]))

    def gather(self, samples: Sequence[int]) -> None:
        self._whole.gather(self.chosen[list(samples)].tolist())

    def expect(self, samples: Sequence[int]) -> None:
        self._whole.expect(self.chosen[list(samples)].tolist())


def of_classes(dataset: Dataset, names: tuple[str, ...]) -> Subset:
    """The samples of some classes."""
    classes = dataset.info.classes or ()
    wanted = [number for number, name in enumerate(classes) if name in set(names)]
    return Subset(dataset, np.flatnonzero(np.isin(dataset.class_numbers(), wanted)))


def few_shots(dataset: Dataset, shots: int, seed: int) -> Subset:
    """Samples drawn for each class, `shots` of each that has any.

    A class's draw depends on the seed and its name, and more shots contain the fewer. Errors:
    ValueError for a class with too few samples, or none with a label.
    """
    numbers, chosen = dataset.class_numbers(), []
    classes = dataset.info.classes or ()
    for number in np.unique(numbers[numbers != NO_CLASS]):
        samples = np.flatnonzero(numbers == number)
        name = classes[number]
        if len(samples) < shots:
            raise ValueError(
                f"shots: {shots}, but data set {dataset.folder} has {len(samples)} of class "
                f"{name!r}; give at most {len(samples)}"
            )
        # By name, not by number: a class has the same shots in data sets with other classes.
        words = sha256(f"{seed}/{name}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(words, np.uint32))
        chosen.append(rng.permutation(samples)[:shots])
    if not chosen:
        raise ValueError(
            f"shots: {shots}, but no sample of data set {dataset.folder} has a label; name a split "
            "for training"
        )
    return Subset(dataset, np.sort(np.concatenate(chosen)))

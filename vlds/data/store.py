"""Samples by number, out of the shards: one pread a sample, headers parsed in memory."""

from __future__ import annotations

import io
import json
import os
from ast import literal_eval
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from vlds.data.cache import ShardCache
from vlds.data.errors import FetchError, ShardError
from vlds.data.foreign import foreign_json
from vlds.data.index import ShardIndex, load_index
from vlds.data.info import DatasetInfo, ShardInfo
from vlds.data.quarantine import read_quarantine
from vlds.data.remote import RemoteFiles, is_url
from vlds.data.shard_stream import is_pattern
from vlds.data.tar import members, split_name
from vlds.schema import Sample, SkipSample

OPEN_FILES = 128
FEATURES = "features.npy"
FEATURE_TYPE = np.dtype("<f2")
UNUSABLE = (ValueError, KeyError, TypeError, AttributeError)
"""What a sample raises whose members are not what they should be."""


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

    def __init__(self, files: LocalFiles | RemoteFiles) -> None:
        self._files = files
        self.folder = files.folder
        """Path or URL."""
        self.info, indexes = files.open()
        folder = files.folder
        self.quarantine = read_quarantine(folder, self.info) if isinstance(folder, Path) else {}
        """Number -> fault of samples that are known to be bad."""
        self.counts = [index.counts for index in indexes]
        """Annotations of each sample, shard by shard."""
        self._offsets = [index.offsets.astype(np.int64) for index in indexes]
        self._first_sample = np.cumsum([0, *(len(counts) for counts in self.counts)])
        for shard, index in zip(self.info.shards, indexes, strict=True):
            if len(index.counts) != shard.samples or len(index.offsets) != shard.samples + 1:
                raise ShardError(
                    f"shard {files.place(shard)}: its index has {len(index.counts)} samples, "
                    f"dataset.json says {shard.samples}; write the index anew with "
                    "`python -m data_prep index`"
                )

    @property
    def name(self) -> str:
        """Name from dataset.json."""
        return self.info.name

    @property
    def kind(self) -> str:
        """Kind of the annotations."""
        return self.info.kind

    @property
    def split(self) -> str:
        """Split of the source."""
        return self.info.split

    @property
    def label(self) -> str:
        """Name and split, for messages."""
        return f"{self.info.name}-{self.info.split}"

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return self.info.samples

    @property
    def num_annotations(self) -> int:
        """Annotations in all shards."""
        return self.info.annotations

    @property
    def is_remote(self) -> bool:
        """Whether its shards are read through copies in a cache."""
        return isinstance(self._files, RemoteFiles)

    def fingerprint(self) -> str:
        """Changes with the bytes of any shard."""
        text = "".join(shard.sha256 + shard.cnt_sha256 for shard in self.info.shards)
        return sha256(text.encode()).hexdigest()[:16]

    def shard_of(self, sample: int) -> str:
        """File name of the shard that holds a sample."""
        return self.info.shards[self._shard(sample)[0]].name

    def read(self, sample: int) -> Sample:
        """Read a sample by its number.

        Errors: ShardError where the shard is damaged, SkipSample where only the sample is.
        """
        number, row = self._shard(sample)
        shard = self.info.shards[number]
        begin, end = self._offsets[number][row : row + 2].tolist()
        try:
            data = self._files.read(shard, begin, end - begin)
            key, content = _members_of(data, begin)
        except FetchError:
            raise
        except (OSError, ShardError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            place, cure = self._files.place(shard), self._files.cure(shard)
            raise ShardError(f"shard {place}, sample {row}: {reason}; {cure}") from None
        try:
            info = self.info
            return parse_sample(key, content, info.name, info.kind, info.fields)
        except UNUSABLE as error:
            raise SkipSample(f"sample {self.label} {key} ({shard.name}): {error!r}") from error

    def _shard(self, sample: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_sample, sample, side="right")) - 1
        return shard, sample - int(self._first_sample[shard])


def parse_sample(
    key: str,
    content: Mapping[str, memoryview],
    name: str,
    kind: str,
    fields: Mapping[str, str] | None,
) -> Sample:
    """A sample of its members (extension -> bytes). `fields` say which hold what, where others
    have written it.

    Errors: UNUSABLE where they are not what they should be.
    """
    if fields is None:
        about = json.loads(bytes(content["json"]))
    else:
        about = foreign_json(key, content, fields)
    pictures = tuple(bytes(content[member]) for member in about.pop("images", ()))
    stored = sorted(member for member in content if member.endswith(FEATURES))
    return Sample(
        key=key,
        dataset=name,
        id=about.pop("id"),
        kind=kind,
        images=pictures,
        features=tuple(parse_features(content[member]) for member in stored),
        annotations=tuple(about.pop("annotations")),
        extra=about,
    )


class LocalFiles:
    """The files of a data set in a folder.

    Descriptors of those read last are kept; not pickled, so that each process opens its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[Path, int] = OrderedDict()

    def open(self) -> tuple[DatasetInfo, list[ShardIndex]]:
        """dataset.json, and the index of every shard."""
        info = DatasetInfo.load(self.folder)
        foreign = info.fields is not None
        return info, [load_index(self.folder, shard, foreign=foreign) for shard in info.shards]

    def place(self, shard: ShardInfo) -> str:
        """Where a shard is, for messages."""
        return str(self.folder / shard.name)

    def cure(self, shard: ShardInfo) -> str:
        """What to do about damage in a shard."""
        return "copy the shard again, or prepare the data set again"

    def read(self, shard: ShardInfo, offset: int, size: int) -> bytes:
        """Bytes of a shard; pread, so that a descriptor inherited by fork may be shared."""
        path = self.folder / shard.name
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        data = os.pread(self._open[path], size, offset)
        if len(data) < size:
            raise ShardError(
                f"the file ends at byte {offset + len(data)}, {offset + size} expected"
            )
        return data

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _members_of(data: bytes, begin: int) -> tuple[str, dict[str, memoryview]]:
    """Key and extension -> bytes of a sample that starts at byte `begin` of its shard."""
    view = memoryview(data)
    end = begin + len(data)
    key, content = None, {}
    for member in members(lambda o, n: view[o - begin : o - begin + n], begin, end):
        member_key, extension = split_name(member.name)
        key = key or member_key
        if member_key != key or member.end > end:
            raise ShardError(f"its members ({key}, {member_key}) are not where the index says")
        start = member.start - begin
        content[extension] = view[start : start + member.size]
    if key is None:
        raise ShardError("no member where the index says")
    return key, content


def feature_bytes(array: np.ndarray) -> bytes:
    """Features (tokens, dim) as the member that `parse_features` reads."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, FEATURE_TYPE))
    return buffer.getvalue()


def parse_features(data: memoryview) -> np.ndarray:
    """A .npy file as float16 without a copy (np.load costs five times as much)."""
    if bytes(data[:6]) != b"\x93NUMPY" or data[6] not in (1, 2):
        raise ValueError("not a .npy file")
    width = 2 if data[6] == 1 else 4
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    shape, dtype = _npy_header(bytes(data[8 + width : start]))
    features = np.frombuffer(data[start:], dtype).reshape(shape)
    return features.astype(FEATURE_TYPE, copy=False)


@lru_cache(maxsize=256)
def _npy_header(text: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    fields = literal_eval(text.decode("latin1"))
    if fields["fortran_order"] or np.dtype(fields["descr"]).kind != "f":
        raise ValueError("features must be a row-major array of floats")
    if len(fields["shape"]) != 2:
        raise ValueError(f"features of shape {fields['shape']}, (tokens, dim) expected")
    return fields["shape"], np.dtype(fields["descr"])

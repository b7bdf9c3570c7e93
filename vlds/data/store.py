"""Samples by number, out of the shards: one pread a sample, headers parsed in memory."""

from __future__ import annotations

from bisect import bisect_right
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import numpy as np
import orjson

from vlds.data.cache import ShardCache
from vlds.data.errors import FetchError, ShardError
from vlds.data.features import FEATURES, parse_features
from vlds.data.foreign import foreign_json
from vlds.data.info import ShardInfo
from vlds.data.local_files import LocalFiles
from vlds.data.remote import RemoteFiles, is_url
from vlds.data.sample_bytes import Content, Room, members_of, read_in_place
from vlds.schema import Sample, SkipSample


def open_dataset(folder: str | Path, cache: ShardCache | None = None) -> Dataset:
    """Open the data set in a folder, its shards and indexes checked against dataset.json.

    The folder may be a URL: its files are read through copies in `cache`, by default the user's.

    Errors: ValueError that names folder or shard, what is wrong, and the cure.
    """
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
        self.counts = [index.counts for index in indexes]
        """Annotations of each sample, shard by shard."""
        self._offsets = [index.offsets.astype(np.int64) for index in indexes]
        self._first_sample = [0, *accumulate(len(counts) for counts in self.counts)]
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

    def read(self, sample: int, room: Room | None = None) -> Sample:
        """Read a sample by its number. `room` is asked where its features may lie at once.

        Errors: ShardError where the shard is damaged, SkipSample where only the sample is.
        """
        number, row = self._shard(sample)
        shard = self.info.shards[number]
        begin, end = self._offsets[number][row : row + 2].tolist()
        try:
            key, content, features = self._content(shard, begin, end, room)
        except FetchError:
            raise
        except (OSError, ShardError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            place, cure = self._files.place(shard), self._files.cure(shard)
            raise ShardError(f"shard {place}, sample {row}: {reason}; {cure}") from None
        try:
            return self._sample(key, content, features)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SkipSample(f"sample {self.label} {key} ({shard.name}): {error!r}") from error

    def _shard(self, sample: int) -> tuple[int, int]:
        shard = bisect_right(self._first_sample, sample) - 1
        return shard, sample - self._first_sample[shard]

    def _content(
        self, shard: ShardInfo, begin: int, end: int, room: Room | None
    ) -> tuple[str, Content, dict[str, np.ndarray]]:
        """Key, members, and what of the features already lies where `room` said."""
        if room is not None and isinstance(self._files, LocalFiles):
            found = read_in_place(self._files, shard, begin, end, room)
            if found is not None:
                return found
        data = memoryview(self._files.read(shard, begin, end - begin))
        return *members_of(data, begin), {}

    def _sample(self, key: str, content: Content, features: dict[str, np.ndarray]) -> Sample:
        if self.info.fields is None:
            fields = orjson.loads(content["json"])
        else:
            fields = foreign_json(key, content, self.info.fields)
        for name in content:
            if name.endswith(FEATURES):
                features[name] = parse_features(content[name])
        return Sample(
            key=key,
            dataset=self.info.name,
            id=fields.pop("id"),
            kind=self.info.kind,
            images=tuple([content[name] for name in fields.pop("images", ())]),
            features=tuple([features[name] for name in sorted(features)]),
            annotations=tuple(fields.pop("annotations")),
            extra=fields,
        )

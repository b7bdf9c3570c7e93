"""The index of a shard, from the shard itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zlib import crc32

from vlds.data.errors import ShardError
from vlds.data.shards.features import FEATURES
from vlds.data.shards.foreign import is_picture
from vlds.data.shards.ids import UnfitId, check_ids
from vlds.data.shards.shard_index import Counts, ShardIndex
from vlds.data.shards.tar import Reader, members, split_name
from vlds.runtime.json_file import parse_member
from vlds.runtime.regular_file import open_file


@dataclass
class _Found:
    """A sample whose members are being read."""

    key: str
    foreign: bool
    json: bytes | None = None
    pictures: int = 0
    """Of foreign samples; in ours the json lists them."""
    features: int = 0

    def counts(self) -> Counts:
        """Errors: ShardError where it has no json; KeyError, TypeError, AttributeError or
        ValueError where that is not what it should be."""
        if self.foreign:
            check_ids({"id": self.key, "annotations": []})
            return Counts(1, self.pictures or self.features)
        if self.json is None:
            raise ShardError(
                f'sample {self.key} has no member "json", which holds its annotations; for samples '
                "that others have written, see `python -m data_prep index --fields`"
            )
        return counts_of(self.json, self.features)


def build_index(tar: Path, *, foreign: bool = False) -> ShardIndex:
    """Index of a shard from its headers and its samples' json; `foreign` ones have one annotation
    each.

    Errors: ShardError on damage, and where a sample has no json, or ids that are not fit.
    """
    sample: _Found | None = None
    begins: list[int] = []
    counts: list[Counts] = []
    end = 0
    with open_file(tar) as file:
        size = os.fstat(file.fileno()).st_size

        def read(offset: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, offset)

        try:
            for member in members(read, 0, None):
                key, extension = split_name(member.name)
                if sample is None or key != sample.key:
                    if sample is not None:
                        counts.append(sample.counts())
                    sample = _Found(key, foreign)
                    begins.append(member.header)
                if member.start + member.size > size:
                    raise ShardError(f"it is cut inside {member.name}")
                sample.features += extension.endswith(FEATURES)
                sample.pictures += is_picture(extension)
                if extension == "json":
                    sample.json = read(member.start, member.size)
                end = member.end
            if sample is not None:
                counts.append(sample.counts())
            if end > size:
                raise ShardError("it is cut there")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = isinstance(error, (ShardError, UnfitId))
            reason = error if said else f"unusable json ({error!r})"
            raise ShardError(
                f"shard {tar}, sample {len(counts)}: {reason}; copy or prepare it again"
            ) from None
        offsets = [*begins, end]
        checksums = list(_checksums(read, offsets))
    return ShardIndex.of(offsets, counts, checksums)


def counts_of(data: bytes, num_features: int) -> Counts:
    """Read the json of a sample with `num_features` stored features.

    Errors: ValueError for ids that are not fit; KeyError, TypeError or AttributeError where the
    json is not what it should be.
    """
    fields = parse_member(data)
    check_ids(fields)
    images = fields.get("images")
    pictures = len(images) if isinstance(images, list) else 0
    return Counts(len(fields["annotations"]), pictures or num_features)


def tar_checksums(tar: Path, offsets: Sequence[int]) -> list[int]:
    """crc32 of the bytes between one offset of a shard and the next."""
    with open_file(tar) as file:
        return list(_checksums(lambda at, size: os.pread(file.fileno(), size, at), offsets))


def _checksums(read: Reader, offsets: Sequence[int]) -> Iterator[int]:
    for begin, end in pairwise(offsets):
        yield crc32(read(begin, end - begin))

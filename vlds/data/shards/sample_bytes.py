"""From the bytes of a sample to its members."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple, TypeAlias
from zlib import crc32

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.shards.features import FEATURE_TYPE, FEATURES, npy_header
from vlds.data.shards.info import ShardInfo
from vlds.data.shards.local_files import LocalFiles
from vlds.data.shards.remote import RemoteFiles
from vlds.data.shards.tar import BLOCK, FILES, members, parse_header, split_name

Content: TypeAlias = dict[str, memoryview]
"""Extension -> bytes of a member."""
Room: TypeAlias = Callable[[tuple[int, int]], np.ndarray]
"""Shape of features -> where they are to lie."""
SampleFiles: TypeAlias = LocalFiles | RemoteFiles
HEAD = 1024
"""Bytes that hold the first member's header, and that of the features in it."""


class SampleBytes(NamedTuple):
    """What stands between two offsets of a shard."""

    key: str
    content: Content
    features: dict[str, np.ndarray]
    """Those that are not among the members, because they lie where `room` said."""
    checksum: int
    """crc32 of all its bytes."""


def read_sample(
    files: SampleFiles, shard: ShardInfo, begin: int, end: int, room: Room | None
) -> SampleBytes:
    """Read the sample between two offsets of a shard. `room` is asked where its features may lie.

    Errors: ShardError where it is not one sample; OSError where it cannot be read.
    """
    if room is not None and isinstance(files, LocalFiles):
        found = read_in_place(files, shard, begin, end, room)
        if found is not None:
            return found
    data = memoryview(files.read(shard, begin, end - begin))
    key, content = members_of(data, begin)
    return SampleBytes(key, content, {}, crc32(data))


def members_of(data: memoryview, begin: int, key: str | None = None) -> tuple[str, Content]:
    """Key and members of what starts at byte `begin` of a shard; `key` is that of the members
    before.

    Errors: ShardError where they are not those of one sample.
    """
    end = begin + len(data)
    content = {}
    for name, _, start, size in members(lambda o, n: data[o - begin : o - begin + n], begin, end):
        member_key, extension = split_name(name)
        key = key or member_key
        if member_key != key or start + size > end:
            raise ShardError(f"its members ({key}, {member_key}) are not where the index says")
        content[extension] = data[start - begin : start - begin + size]
    if key is None:
        raise ShardError("no member where the index says")
    return key, content


def read_in_place(
    files: LocalFiles, shard: ShardInfo, begin: int, end: int, room: Room
) -> SampleBytes | None:
    """A sample that begins with features, which are read to where they are to lie: that spares a
    copy. None where it begins otherwise."""
    head = memoryview(files.read(shard, begin, min(HEAD, end - begin)))
    name, size, kind = parse_header(head[:BLOCK], begin)
    if kind not in FILES or not name.endswith(FEATURES):
        return None
    try:
        start, shape, dtype = npy_header(head[BLOCK:])
    except ValueError:
        return None
    if BLOCK + start > len(head) or not prod(shape):
        return None
    start += begin + BLOCK
    values_end = start + 2 * prod(shape)
    if dtype != FEATURE_TYPE or values_end != begin + BLOCK + size or values_end > end:
        return None
    values = room(shape)
    rest = bytearray(end - values_end)
    files.fill(shard, start, [values.data.cast("B"), rest])
    key, extension = split_name(name)
    padding = -size % BLOCK
    _, content = members_of(memoryview(rest)[padding:], values_end + padding, key)
    checksum = crc32(head[: start - begin])
    checksum = crc32(rest, crc32(values.data.cast("B"), checksum))
    return SampleBytes(key, content, {extension: values}, checksum)

"""From the bytes of a sample to its members."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeAlias

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.features import FEATURE_TYPE, FEATURES, npy_header
from vlds.data.info import ShardInfo
from vlds.data.local_files import LocalFiles
from vlds.data.tar import BLOCK, FILES, members, parse_header, split_name

Content: TypeAlias = dict[str, memoryview]
"""Extension -> bytes of a member."""
Room: TypeAlias = Callable[[tuple[int, int]], np.ndarray]
"""Shape of features -> where they are to lie."""
HEAD = 1024
"""Bytes that hold the first member's header, and that of the features in it."""


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
) -> tuple[str, Content, dict[str, np.ndarray]] | None:
    """Key and members of a sample that begins with features; these are not among the members, but
    read to where they are to lie, which spares a copy. None where it begins otherwise."""
    head = memoryview(files.read(shard, begin, min(HEAD, end - begin)))
    name, size, kind = parse_header(head[:BLOCK], begin)
    if kind not in FILES or not name.endswith(FEATURES):
        return None
    try:
        start, shape, dtype = npy_header(head[BLOCK:])
    except ValueError:
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
    return key, content, {extension: values}

"""Where weights lie in ZeRO's flat partitions.

Their layout is private to DeepSpeed 0.19; engine.py and this file alone know it. Each rank holds
one flat tensor of fp32 masters for each group of parameters. Stages 1 and 2 join the parameters of
a group and cut the whole; stage 3 cuts each parameter and joins the rank's parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from vlds.training.adamw import SHARED, Segments


class Piece(NamedTuple):
    """Consecutive elements of one parameter in a flat partition."""

    parameter: nn.Parameter
    place: int
    """Where they begin in the partition."""
    start: int
    """Where they begin in the flattened parameter."""
    size: int


class Partition(NamedTuple):
    """A rank's part of a group: its masters, and what lies where. The rest is padding."""

    flat: Tensor
    pieces: list[Piece]
    length: int


def partitions(zero: Any, stage: int, global_rank: int) -> list[Partition]:
    """This rank's partitions under a ZeRO optimizer."""
    if stage == 3:
        groups = zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
        return [parts_of_each(flat, group, global_rank) for flat, group in groups]
    flats = zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
    return [part_of_all(flat, group) for flat, group in flats]


def part_of_all(flat: Tensor, group: Sequence[Any]) -> Partition:
    """Stages 1 and 2, which note at each parameter what this rank has of it."""
    pieces = []
    for parameter in group:
        if (mapping := parameter._hp_mapping) is not None:
            inside, part = mapping.hp_fragment_address, mapping.lp_fragment_address
            pieces.append(Piece(parameter, inside.start, part.start, part.numel))
    return Partition(flat, sorted(pieces, key=lambda piece: piece.place), flat.numel())


def parts_of_each(flat: Tensor, group: Sequence[Any], global_rank: int) -> Partition:
    """Stage 3: equal parts of each parameter, the last one padded."""
    pieces, place = [], 0
    for parameter in group:
        size = parameter.partition_numel()
        start = global_rank * size
        if (held := min(size, parameter.ds_numel - start)) > 0:
            pieces.append(Piece(parameter, place, start, held))
        place += size
    return Partition(flat, pieces, place)


def segments_of(partition: Partition, slices: Mapping[nn.Parameter, int]) -> Segments:
    """Cut a partition by owner. `slices`: parameter that is stacked over tasks -> elements of one
    task's slice."""
    ends: list[int] = []
    owners: list[int] = []

    def up_to(end: int, owner: int) -> None:
        if end > (ends[-1] if ends else 0):
            ends.append(end)
            owners.append(owner)

    for piece in partition.pieces:
        up_to(piece.place, SHARED)
        last = piece.start + piece.size
        if (size := slices.get(piece.parameter)) is not None:
            for task in range(piece.start // size, -(-last // size)):
                end = min((task + 1) * size, last)
                up_to(piece.place + end - piece.start, 1 + task)
        up_to(piece.place + piece.size, SHARED)
    up_to(partition.length, SHARED)
    return Segments(np.diff(ends, prepend=0), np.array(owners))

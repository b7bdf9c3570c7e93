"""The class of each sample of an image_class data set, known without a look into the shards.

`NAME.tar.cls` holds u32[n]: the place of each sample's label in the list "classes" of dataset.json,
or NO_CLASS for a sample without a label (a test split).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from vlds.data.shards.tar import read_members
from vlds.runtime.json_file import parse_member
from vlds.runtime.regular_file import open_file

KIND = "image_class"
"""Kind of the samples that have a class."""
CLS_TYPE = np.dtype("<u4")
NO_CLASS = 0xFFFFFFFF
MOST_SHOWN = 60
"""Characters of a label that a message shows."""


def numbered(classes: Sequence[str]) -> dict[str, int]:
    """Class -> its number."""
    return {name: number for number, name in enumerate(classes)}


def class_number(json: bytes, numbers: Mapping[str, int]) -> int:
    """The number of a sample's class, from its json.

    Errors: ValueError for a sample with several annotations, or an unknown class.
    """
    labels = labels_of(json)
    if len(labels) != 1:
        raise ValueError(f"it has {len(labels)} annotations; a picture of a class has one")
    if (label := labels[0]) is None:
        return NO_CLASS
    if label not in numbers:
        raise ValueError(f"{label[:MOST_SHOWN]!r} is not one of the {len(numbers):,} classes")
    return numbers[label]


def labels_of(json: bytes) -> list[str | None]:
    """The label of each annotation of a sample, None for one without.

    Errors: ValueError for a label that is not text; UNUSABLE for malformed json.
    """
    labels = [annotation.get("label") for annotation in parse_member(json)["annotations"]]
    if odd := [label for label in labels if not isinstance(label, str | None)]:
        raise ValueError(f"its label is {odd[0]!r:.60}, text expected")
    return labels


def tar_classes(tar: Path, offsets: Sequence[int], classes: Sequence[str]) -> list[int]:
    """The class number of each sample between one offset of a shard and the next.

    Errors: as `class_number`.
    """
    numbers = numbered(classes)
    return [class_number(json, numbers) for json in _jsons(tar, offsets)]


def tar_labels(tar: Path, offsets: Sequence[int]) -> set[str]:
    """All labels of a shard.

    Errors: as `labels_of`.
    """
    labels = {label for json in _jsons(tar, offsets) for label in labels_of(json)}
    return {label for label in labels if label is not None}


def _jsons(tar: Path, offsets: Sequence[int]) -> Iterator[bytes]:
    """The json of each sample."""
    with open_file(tar) as file:
        for begin, end in pairwise(offsets):
            data = memoryview(os.pread(file.fileno(), end - begin, begin))
            yield bytes(read_members(data, begin)[1]["json"])

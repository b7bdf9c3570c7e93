"""One sample of a source -> the record that a shard stores, or why it is dropped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from data_prep.packing.feature_file import BadFeatures
from data_prep.packing.journal import Dropped
from data_prep.packing.named_pictures import is_there
from data_prep.packing.picture import BadPicture, PictureRule, prepare_picture
from data_prep.packing.source import SourceSample
from data_prep.packing.writer import SampleRecord
from vlds.data.shards.sample import feature_bytes
from vlds.runtime.regular_file import read_file

PAIR = ("left", "right")
Shape = tuple[int, int]
"""Of features: (tokens, dim)."""


def common_shape(samples: Iterable[SourceSample]) -> Shape | None:
    """Shape of the first readable features; None without any."""
    for sample in samples:
        for file in sample.features:
            try:
                tokens, dim = file.read().shape
            except BadFeatures:
                continue
            return tokens, dim
    return None


def try_record(
    sample: SourceSample, rule: PictureRule, shape: Shape | None, skip_missing: bool = False
) -> SampleRecord | Dropped:
    """The record of a sample, or why it is dropped; all features must have the given shape."""
    if not sample.annotations:
        return Dropped(sample.id, "no annotation")
    if skip_missing and not all(map(is_there, sample.images)):
        return Dropped(sample.id, "picture: missing")
    try:
        return _make_record(sample, rule, shape)
    except BadPicture as reason:
        return Dropped(sample.id, f"picture: {reason}")
    except BadFeatures as reason:
        return Dropped(sample.id, f"features: {reason}")


def _make_record(sample: SourceSample, rule: PictureRule, shape: Shape | None) -> SampleRecord:
    encoded = [*map(read_file, sample.images), *(raw.read() for raw in sample.raw)]
    pictures = [prepare_picture(data, rule) for data in encoded]
    members = [(picture.extension, picture.data) for picture in pictures]
    annotations = sample.annotations
    for file in sample.features:
        array = file.read()
        if array.shape != shape:
            raise BadFeatures(f"{array.shape[0]} x {array.shape[1]}, the first have {shape}")
        members.append(("features.npy", feature_bytes(array)))
        annotations = [file.annotated(annotation) for annotation in annotations]
    if len(members) == len(PAIR):
        members = [
            (f"{side}.{name}", data) for side, (name, data) in zip(PAIR, members, strict=True)
        ]
    content: dict[str, Any] = {
        "size": [[picture.width, picture.height] for picture in pictures],
        "annotations": annotations,
        **sample.extra,
    }
    if sample.source:
        content["source"] = sample.source
    return SampleRecord(id=sample.id, members=members, json=content)

"""A parsed data set -> shards: open every picture, write the good ones, account for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.packing.annotation import text_fault
from data_prep.packing.feature_file import BadFeatures, FeatureFile
from data_prep.packing.features import common_shape, with_features
from data_prep.packing.journal import Dropped
from data_prep.packing.missing import check_missing
from data_prep.packing.named_pictures import is_there
from data_prep.packing.outside import check_inside
from data_prep.packing.parallel import check_workers, ordered_map
from data_prep.packing.picture import BadPicture, PictureRule, prepare_picture
from data_prep.packing.progress import follow
from data_prep.packing.source import SourceSample, SourceSet, count_reasons
from data_prep.packing.writer import DatasetWriter, Limits, SampleRecord, shard_order
from vlds.data.shards.info import DatasetInfo, check_names
from vlds.data.shards.sample import feature_bytes
from vlds.runtime.folder_lock import folder_lock
from vlds.runtime.regular_file import read_file
from vlds.runtime.terminal import tell

PAIR = ("left", "right")
SHOWN = 5
"""Ids of dropped rows that the summary names for each reason."""


@dataclass(frozen=True)
class Options:
    """What all commands share."""

    rule: PictureRule = field(default_factory=PictureRule)
    limits: Limits = field(default_factory=Limits)
    workers: int = 1
    """Processes that open pictures; the shards do not depend on it."""
    resume: bool = False
    """Keep the shards that an interrupted command finished."""
    features: Path | None = None
    """Features to store in the place of pictures: a folder, or one HDF5 file."""
    encoder: str | None = None
    """What made the features, for the record in dataset.json."""
    seed: int = 0
    """Of the order in which samples go into shards."""
    images: Path | None = None
    """Where pictures lie: near names of missing ones are looked for there."""
    skip_missing: bool = False
    """Leave out samples whose picture or features are not there."""
    folders: tuple[Path, ...] = ()
    """Where all pictures and features that rows name must lie; none: anywhere."""
    arguments: Mapping[str, Any] | None = None
    """The command line, for the record in dataset.json."""

    def __post_init__(self) -> None:
        check_workers(self.workers)


def pack(dataset: SourceSet, out: Path, options: Options) -> DatasetInfo:
    """Write a data set and print what became of every sample."""
    _check_folder(out)
    return pack_ready(ready([dataset], options)[0], out, options)


def pack_ready(dataset: SourceSet, out: Path, options: Options) -> DatasetInfo:
    """The same for a data set that `ready` has checked."""
    check_names(dataset.name, dataset.split)
    _check_folder(out)
    with folder_lock(out):
        return _pack(dataset, out, options)


def _pack(dataset: SourceSet, out: Path, options: Options) -> DatasetInfo:
    order = in_order(dataset, options.seed)
    shape = common_shape(order)
    features = shape and {"tokens": shape[0], "dim": shape[1], "encoder": options.encoder}
    image = None if shape else options.rule.record()
    writer = DatasetWriter(
        out,
        name=dataset.name,
        kind=dataset.kind,
        split=dataset.split,
        limits=options.limits,
        source=dataset.files,
        image=image,
        features=features,
        arguments=options.arguments,
        resume=options.resume,
    )
    make = partial(try_record, rule=options.rule, shape=shape, skip_missing=options.skip_missing)
    made = ordered_map(make, order[writer.start :], options.workers)
    info = writer.write(
        follow(made, f"{dataset.name} {dataset.split}", writer.start, len(order)),
        rows_dropped=[Dropped(**entry) for entry in (*dataset.dropped, *dataset.left_out)],
    )
    tell(summary(dataset, info, out))
    return info


def ready(datasets: Sequence[SourceSet], options: Options) -> list[SourceSet]:
    """Data sets with features where they are asked for, of which all files are there.

    Errors: ValueError that names what is missing in any of them.
    """
    checked = [_with_options(dataset, options) for dataset in datasets]
    check_missing(checked, options.images, options.skip_missing)
    for dataset in checked:
        if options.folders:
            check_inside(dataset, options.folders)
    return [without_unfit_texts(dataset) for dataset in checked]


def _with_options(dataset: SourceSet, options: Options) -> SourceSet:
    check_names(dataset.name, dataset.split)
    if options.features is not None and any(sample.images for sample in dataset.samples):
        dataset = with_features(dataset, options.features)
    _check_options(dataset, options)
    dataset.check()
    return dataset


def without_unfit_texts(dataset: SourceSet) -> SourceSet:
    """A data set whose annotations can be read; the others are among the dropped rows."""
    dropped = [
        {"id": annotation["id"], "reason": fault}
        for sample in dataset.samples
        for annotation in sample.annotations
        if (fault := text_fault(annotation))
    ]
    if not dropped:
        return dataset
    samples = [
        replace(sample, annotations=[a for a in sample.annotations if not text_fault(a)])
        for sample in dataset.samples
    ]
    return replace(dataset, samples=samples, dropped=(*dataset.dropped, *dropped))


def _check_folder(out: Path) -> None:
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"--out {out}: {there} is a file; give a folder")


def _check_options(dataset: SourceSet, options: Options) -> None:
    """Options that would have no effect are a mistake."""
    if options.encoder is not None and any(sample.images for sample in dataset.samples):
        raise ValueError("--encoder says what made the --features, and there are none; give both")
    if options.rule.size is not None and any(sample.features for sample in dataset.samples):
        raise ValueError(
            "--image-size and --square change pictures, and features are stored in their place; "
            "leave them out"
        )


def summary(dataset: SourceSet, info: DatasetInfo, out: Path) -> str:
    """One line where everything was written; else in = written + dropped, with the reasons."""
    title = f"{info.name} {info.split}:"
    if not info.dropped:
        return f"{title} {info.samples:,} samples, {info.annotations:,} annotations -> {out}"
    rows = len(dataset.dropped)
    given = rows + sum(len(sample.annotations) for sample in dataset.samples)
    samples = len(dataset.samples) + len(dataset.left_out)
    lines = [
        f"{title} -> {out}",
        _account("samples", samples, info.samples),
        _account("annotations", given, info.annotations),
    ]
    lines += [
        f"    dropped: {reason}: {count:,} ({_first_ids(info, reason)})"
        for reason, count in count_reasons(info.dropped).items()
    ]
    return "\n".join(lines)


def _first_ids(info: DatasetInfo, reason: str) -> str:
    """Ids of what was dropped for a reason; dataset.json has all of them."""
    ids = [str(entry["id"]) for entry in info.dropped if entry["reason"] == reason]
    more = ", ..." if len(ids) > SHOWN else ""
    return f"id{'s' if len(ids) > 1 else ''} {', '.join(ids[:SHOWN])}{more}"


def _account(noun: str, given: int, written: int) -> str:
    return f"  {noun:<11} {given:>9,} in = {written:,} written + {given - written:,} dropped"


def in_order(dataset: SourceSet, seed: int) -> list[SourceSample]:
    """The samples in the order in which they go into shards."""
    samples = {sample.id: sample for sample in dataset.samples}
    return [samples[sample_id] for sample_id in shard_order(samples, seed)]


def try_record(
    sample: SourceSample,
    rule: PictureRule,
    shape: tuple[int, int] | None,
    skip_missing: bool = False,
) -> SampleRecord | Dropped:
    """A sample as the shards hold it, or why they do not; features must have the given shape."""
    if not sample.annotations:
        return Dropped(sample.id, "no annotation")
    if skip_missing and not all(map(is_there, sample.images)):
        return Dropped(sample.id, "picture: missing")
    try:
        return make_record(sample, rule, shape)
    except BadPicture as reason:
        return Dropped(sample.id, f"picture: {reason}")
    except BadFeatures as reason:
        return Dropped(sample.id, f"features: {reason}")


def make_record(
    sample: SourceSample, rule: PictureRule, shape: tuple[int, int] | None
) -> SampleRecord:
    """Open a sample's pictures or features and put it together as the shards hold it."""
    pictures = [prepare_picture(read_file(path), rule) for path in sample.images]
    members = [(picture.extension, picture.data) for picture in pictures]
    members += [("features.npy", feature_bytes(checked(file, shape))) for file in sample.features]
    if len(members) == len(PAIR):
        members = [
            (f"{side}.{name}", data) for side, (name, data) in zip(PAIR, members, strict=True)
        ]
    content: dict[str, Any] = {
        "size": [[picture.width, picture.height] for picture in pictures],
        "annotations": sample.annotations,
        **sample.extra,
    }
    if sample.source:
        content["source"] = sample.source
    return SampleRecord(id=sample.id, members=members, json=content)


def checked(file: FeatureFile, shape: tuple[int, int] | None) -> np.ndarray:
    """Features of the shape that all have."""
    array = file.read()
    if array.shape != shape:
        raise BadFeatures(f"{array.shape[0]} x {array.shape[1]}, the first have {shape}")
    return array

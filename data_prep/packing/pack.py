"""A parsed data set -> shards: open every picture, write the good ones, account for the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from data_prep.packing.annotation import text_fault
from data_prep.packing.detector_file import DetectorFile, locate_boxes
from data_prep.packing.feature_file import HDF5, locate
from data_prep.packing.file_check import check_inside, check_missing
from data_prep.packing.journal import Dropped
from data_prep.packing.parallel import ordered_map
from data_prep.packing.picture import PictureRule
from data_prep.packing.record import Shape, common_shape, try_record
from data_prep.packing.source import SourceSample, SourceSet, count_reasons
from data_prep.packing.writer import DatasetWriter, Limits
from vlds.data.shards.info import DatasetInfo, check_names
from vlds.runtime.folder_lock import folder_lock
from vlds.runtime.progress import follow
from vlds.runtime.terminal import tell

SHOWN = 5
"""Ids of dropped rows that the summary names for each reason."""


@dataclass(frozen=True)
class Options:
    """The options of all commands that write shards."""

    rule: PictureRule = field(default_factory=PictureRule)
    limits: Limits = field(default_factory=Limits)
    workers: int = 1
    """Processes that open pictures; their number does not change the shards."""
    resume: bool = False
    """Keep the shards that an interrupted command finished."""
    features: Path | None = None
    """Features to store instead of pictures: a folder, or one HDF5 file."""
    boxes: bool = False
    """The feature files hold a detector's boxes; store them too."""
    encoder: str | None = None
    """The encoder of the features, for the record in dataset.json."""
    seed: int = 0
    """Of the order in which samples go into shards."""
    images: Path | None = None
    """Folder of the pictures, where similar names of missing ones are looked for."""
    skip_missing: bool = False
    """Leave out samples whose picture or features do not exist."""
    folders: tuple[Path, ...] = ()
    """Folders that must contain all pictures and features; empty: they may be anywhere."""
    arguments: Mapping[str, Any] | None = None
    """The command line, for the record in dataset.json."""


def pack(dataset: SourceSet, out: Path, options: Options) -> DatasetInfo:
    """Check a data set, write it and print what became of every sample."""
    check_folder(out)
    return pack_ready(ready([dataset], options)[0], out, options)


def pack_ready(dataset: SourceSet, out: Path, options: Options) -> DatasetInfo:
    """Write a data set that `ready` has checked, and print what became of every sample."""
    check_folder(out)
    by_id = {sample.id: sample for sample in dataset.samples}
    samples = [by_id[sample_id] for sample_id in shard_order(by_id, options.seed)]
    with folder_lock(out):
        shape = common_shape(samples)
        writer = DatasetWriter(
            out,
            name=dataset.name,
            kind=dataset.kind,
            split=dataset.split,
            limits=options.limits,
            source=dataset.files,
            image=None if shape else options.rule.record(),
            features=shape and _features_record(samples[0], shape, options.encoder),
            arguments=options.arguments,
            classes=dataset.classes,
            listing=dataset.listing,
            resume=options.resume,
        )
        make = partial(
            try_record, rule=options.rule, shape=shape, skip_missing=options.skip_missing
        )
        records = ordered_map(make, samples[writer.start :], options.workers)
        info = writer.write(
            follow(records, f"{dataset.name} {dataset.split}", len(samples), writer.start),
            rows_dropped=(*dataset.dropped, *dataset.left_out),
        )
    tell(_summary(dataset, info, out))
    return info


def _features_record(first: SourceSample, shape: Shape, encoder: str | None) -> dict[str, Any]:
    """What dataset.json says of features; boxes that are stored with them are no channels."""
    record: dict[str, Any] = {"tokens": shape[0], "dim": shape[1], "encoder": encoder}
    if any(isinstance(file, DetectorFile) for file in first.features):
        record |= {"dim": shape[1] - DetectorFile.num_box_channels, "boxes": True}
    return record


def check_folder(out: Path) -> None:
    """Errors: ValueError if the output, or a folder above it, is a file."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--out {out}: {existing} is a file; give a folder")


def shard_order(ids: Iterable[str], seed: int = 0) -> list[str]:
    """Ids in the order in which samples go into shards: by a hash of the id and the seed (64 bits),
    so that each shard is a mixture."""
    salt = seed.to_bytes(8, "little")
    return sorted(ids, key=lambda id: (blake2b(id.encode(), digest_size=8, salt=salt).digest(), id))


def ready(datasets: Sequence[SourceSet], options: Options) -> list[SourceSet]:
    """Check all data sets before any is written: their features are located if asked for, all files
    exist in the allowed folders, and unusable texts are dropped.

    Errors: ValueError that names what is missing in any of them.
    """
    checked = [_with_options(dataset, options) for dataset in datasets]
    check_missing(checked, options.images, options.skip_missing)
    for dataset in checked:
        if options.folders:
            check_inside(dataset, options.folders)
    return [_without_unfit_texts(dataset) for dataset in checked]


def _with_options(dataset: SourceSet, options: Options) -> SourceSet:
    check_names(dataset.name, dataset.split)
    if options.features is not None and any(sample.images for sample in dataset.samples):
        dataset = _with_features(dataset, options.features, options.boxes)
    # An option without effect is a mistake.
    if options.boxes and any(sample.images for sample in dataset.samples):
        raise ValueError("--boxes reads those of --features, which is missing; give both")
    if options.encoder is not None and any(sample.images for sample in dataset.samples):
        raise ValueError("--encoder names the encoder of --features, which is missing; give both")
    if options.rule.size is not None and any(sample.features for sample in dataset.samples):
        raise ValueError(
            "--image-size and --square change pictures, but features are stored instead; leave "
            "them out"
        )
    if options.rule.size is not None and dataset.kind == "refer":
        raise ValueError(
            f"--image-size {options.rule.size} resizes pictures, and the boxes of {dataset.name} "
            "are in pixels of the original ones; leave it out"
        )
    dataset.check()
    return dataset


def _with_features(dataset: SourceSet, place: Path, boxes: bool) -> SourceSet:
    """The data set with features, located by the pictures' names, instead of pictures.

    `place` is a folder or one HDF5 file. Errors: ValueError if it is neither.
    """
    if not place.exists():
        raise ValueError(f"--features {place} does not exist; give a folder or an HDF5 file")
    if place.is_file() and place.suffix not in HDF5:
        raise ValueError(
            f"--features {place}: one file for all pictures must be HDF5 ({', '.join(HDF5)}); if "
            "there is one file for each picture, give their folder"
        )
    samples = []
    for sample in dataset.samples:
        find = locate_boxes if boxes else locate
        features = tuple(find(place, picture.stem) for picture in sample.images)
        samples.append(replace(sample, images=(), features=features))
    return replace(dataset, samples=samples)


def _without_unfit_texts(dataset: SourceSet) -> SourceSet:
    """Move annotations whose text cannot be packed to the dropped rows."""
    dropped = [
        Dropped(annotation["id"], fault)
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


def _summary(dataset: SourceSet, info: DatasetInfo, out: Path) -> str:
    """One line if everything was written; else in = written + dropped, with the reasons."""
    title = f"{info.name} {info.split}:"
    if not info.dropped:
        return f"{title} {info.samples:,} samples, {info.annotations:,} annotations -> {out}"
    samples = len(dataset.samples) + len(dataset.left_out)
    annotations = len(dataset.dropped) + sum(len(s.annotations) for s in dataset.samples)
    lines = [f"{title} -> {out}"]
    for noun, given, written in (
        ("samples", samples, info.samples),
        ("annotations", annotations, info.annotations),
    ):
        dropped = given - written
        lines.append(f"  {noun:<11} {given:>9,} in = {written:,} written + {dropped:,} dropped")
    for reason, count in count_reasons(entry["reason"] for entry in info.dropped).items():
        ids = [str(entry["id"]) for entry in info.dropped if entry["reason"] == reason]
        noun = "ids" if len(ids) > 1 else "id"
        more = ", ..." if len(ids) > SHOWN else ""  # dataset.json has all of them
        lines.append(f"    dropped: {reason}: {count:,} ({noun} {', '.join(ids[:SHOWN])}{more})")
    return "\n".join(lines)

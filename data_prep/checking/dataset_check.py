"""What can be wrong with a data set though each of its shards is well: ids twice, odd features,
annotations that got lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.checking.annotation_ids import read_annotation_ids
from data_prep.checking.finding import Finding
from data_prep.checking.sample_check import CheckedSample
from data_prep.checking.shard_check import CheckedShard
from vlds.data.shards.info import DATASET_FILE, DatasetInfo


def check_together(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """Compare the samples of one data set with each other."""
    yield from _check_twice(shards)
    yield from _check_shapes(shards)
    yield from _check_labels(shards)


def _check_twice(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    keys: dict[str, tuple[str, CheckedSample]] = {}
    ids: dict[str, set[str]] = {"sample id": set(), "annotation id": set()}
    for place, sample in _samples(shards):
        if sample.key in keys:
            shard, first = keys[sample.key]
            if shard == place.file and not (first.has_json and sample.has_json):
                yield place._replace(reason="members not side by side")
            else:
                yield place._replace(reason="key twice", detail=f"first in {shard}")
        elif sample.key:
            keys[sample.key] = place.file, sample
        for noun, names in (
            ("sample id", [sample.id] if sample.id else []),
            ("annotation id", sample.annotations),
        ):
            for name in names:
                if name in ids[noun]:
                    yield place._replace(reason=f"{noun} twice", detail=name)
                ids[noun].add(name)


def _check_shapes(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """The shape that most samples have is the right one."""
    counts = Counter(sample.shapes for _, sample in _samples(shards) if not sample.findings)
    if not counts:
        return
    usual = counts.most_common(1)[0][0]
    for place, sample in _samples(shards):
        if sample.shapes != usual and not sample.findings:
            detail = f"{_text(sample.shapes)}, most have {_text(usual)}"
            yield place._replace(reason="features of another shape", detail=detail)


def _check_labels(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """A split has labels or has none; a run that trains on it stops at an annotation without."""
    placed = [(place, sample) for place, sample in _samples(shards) if not sample.findings]
    if all(sample.unlabelled == len(sample.annotations) for _, sample in placed):
        return
    for place, sample in placed:
        if sample.unlabelled:
            detail = f"{sample.unlabelled} of {len(sample.annotations)}; others have one"
            yield place._replace(reason="annotations without a label", detail=detail)


def _text(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes) or "none"


Wanted = dict[str, dict[str, bool]]
"""File -> id of each annotation in it -> whether it is on record as dropped."""


def read_wanted(infos: Sequence[DatasetInfo], files: Sequence[Path]) -> Wanted:
    """The annotations that must be in the shards.

    Errors: ValueError for a file without ids.
    """
    splits = {info.split for info in infos}
    dropped = {entry["id"] for info in infos for entry in info.dropped}
    return {str(path): read_annotation_ids(path, splits, dropped) for path in files}


def check_annotations(wanted: Wanted, shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """Is every annotation of the files in the shards or dropped, and none else?"""
    there = {name for _, sample in _samples(shards) for name in sample.annotations}
    known = set[str]()
    for file, names in wanted.items():
        for name, is_dropped in names.items():
            if name not in there and not is_dropped and name not in known:
                detail = f"nor among the dropped of {DATASET_FILE}"
                yield Finding("annotation in no shard", detail, file, id=name)
        known.update(names)
    for place, sample in _samples(shards):
        for name in sample.annotations:
            if name not in known:
                yield place._replace(reason="annotation in no file", detail=name)


def _samples(shards: Sequence[CheckedShard]) -> Iterator[tuple[Finding, CheckedSample]]:
    """Each sample with its place, to be filled in with what is wrong."""
    for shard in shards:
        for i, sample in enumerate(shard.samples):
            yield Finding("", file=shard.label, i=i, key=sample.key, id=sample.id), sample

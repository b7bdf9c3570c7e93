"""Faults of a data set whose shards are all good: repeated ids, odd features, lost annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.checking.sample_check import CheckedSample, Finding, shapes_text
from data_prep.checking.shard_check import CheckedShard
from data_prep.json_rows import JsonRow, read_json, read_lines
from data_prep.official.coco import KARPATHY_SPLITS
from vlds.data.shards.info import DATASET_FILE, DatasetInfo
from vlds.runtime.json_file import NotFinite

ID_FIELDS = (
    "question_id", "questionId", "identifier", "sentid", "sent_id", "pairID", "qid", "qa_id",
    "region_id", "desc_id", "clip_id", "id",
)  # fmt: skip
"""The first of these that a row has is the id of its annotation."""
LISTS = ("questions", "annotations", "images")
"""Where an official file keeps its rows."""
NESTED = ("sentences", "qas", "regions", "descs")
"""Lists of annotations inside a row about a picture or clip."""
SAMPLE_FIELDS = (
    "image_id", "imageId", "img_id", "cocoid", "image", "id", "Flickr30K_ID", "vid_name", "clip_id",
)  # fmt: skip
"""Fields after which a sample may be named."""
Row = Mapping[str, Any]
Wanted = dict[str, dict[str, bool]]
"""File -> id of each annotation in it -> True if dataset.json lists it as dropped."""


def check_together(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """Compare the samples of one data set with each other."""
    yield from _check_repeats(shards)
    good = [(place, sample) for place, sample in _samples(shards) if not sample.findings]
    yield from _check_shapes(good)
    yield from _check_labels(good)


def _check_repeats(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
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


def _check_shapes(good: Sequence[tuple[Finding, CheckedSample]]) -> Iterator[Finding]:
    """Features must have the most frequent shape."""
    counts = Counter(sample.shapes for _, sample in good)
    usual = max(counts, key=counts.__getitem__, default=())
    for place, sample in good:
        if sample.shapes != usual:
            detail = f"{shapes_text(sample.shapes)}, most have {shapes_text(usual)}"
            yield place._replace(reason="features of another shape", detail=detail)


def _check_labels(good: Sequence[tuple[Finding, CheckedSample]]) -> Iterator[Finding]:
    """All annotations of a split have labels, or none: training stops at the first without."""
    if all(sample.unlabelled == len(sample.annotations) for _, sample in good):
        return
    for place, sample in good:
        if sample.unlabelled:
            detail = f"{sample.unlabelled} of {len(sample.annotations)}; others have one"
            yield place._replace(reason="annotations without a label", detail=detail)


def check_annotations(wanted: Wanted, shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """Every annotation of the files must be in the shards or dropped, and no other may be there."""
    packed = {name for _, sample in _samples(shards) for name in sample.annotations}
    known = set[str]()
    for file, names in wanted.items():
        for name, is_dropped in names.items():
            if name not in packed and not is_dropped and name not in known:
                detail = f"nor among the dropped of {DATASET_FILE}"
                yield Finding("annotation in no shard", detail, file, id=name)
        known.update(names)
    for place, sample in _samples(shards):
        for name in sample.annotations:
            if name not in known:
                yield place._replace(reason="annotation in no file", detail=name)


def _samples(shards: Sequence[CheckedShard]) -> Iterator[tuple[Finding, CheckedSample]]:
    """Each sample with a finding that has its place and no reason yet."""
    for shard in shards:
        for i, sample in enumerate(shard.samples):
            yield Finding("", file=shard.label, i=i, key=sample.key, id=sample.id), sample


def read_wanted(infos: Sequence[DatasetInfo], files: Sequence[Path]) -> Wanted:
    """The annotations that must be in the shards.

    Errors: ValueError for a file without ids.
    """
    splits = {info.split for info in infos}
    dropped = {entry["id"] for info in infos for entry in info.dropped}
    return {str(path): _read_ids(path, splits, dropped) for path in files}


def _read_ids(path: Path, splits: Collection[str], dropped: Collection[str]) -> dict[str, bool]:
    """Id of each annotation in a file -> True if it or its whole sample is in `dropped`.

    Any official file of the data sets that are packed here will do, and any in LXMERT's form: rows
    and ids are recognized by the names of their fields. Rows of other splits, as in Karpathy's
    file, are skipped. Errors: ValueError if there are no ids.
    """
    ids = {}
    official = {part for split in splits for part in KARPATHY_SPLITS.get(split, (split,))}
    for number, (outer, row) in enumerate(_annotations(_read(path))):
        if "split" in outer and str(outer["split"]) not in official:
            continue
        field = next((field for field in ID_FIELDS if field in row), None)
        if field is None:
            raise ValueError(
                f"{path}: a row has none of {', '.join(ID_FIELDS)}; it has {', '.join(row)}. "
                "Give the official file, or one in LXMERT's form"
            )
        annotation_id = JsonRow(row, f"{path}, annotation {number}").id(field)
        # NLVR2 names a pair of pictures like its sentences, without their last number.
        pair = annotation_id.rpartition("-")[0]
        sample_ids = [str(outer[field]) for field in SAMPLE_FIELDS if field in outer]
        ids[annotation_id] = any(name in dropped for name in (annotation_id, pair, *sample_ids))
    if not ids:
        raise ValueError(
            f"{path}: no annotation of split {', '.join(sorted(splits))} in it; "
            "give the files that the data set is made from"
        )
    return ids


def _read(path: Path) -> Any:
    """JSON, or JSON lines whatever the file is called."""
    if not path.exists():
        raise ValueError(f"--annotations {path} does not exist; check the path")
    try:
        return read_json(path)
    except NotFinite:
        raise
    except ValueError:
        return [row.fields for _, row in read_lines(path)]


def _annotations(content: Any) -> Iterator[tuple[Row, Row]]:
    """(row, annotation in it); both are the same if a row is one annotation."""
    for row in _rows(content):
        lists = [row[name] for name in NESTED if isinstance(row.get(name), list)]
        nested = [entry for entry in chain(*lists) if isinstance(entry, dict)]
        yield from ((row, annotation) for annotation in (nested if lists else (row,)))


def _rows(content: Any) -> list[Row]:
    """The rows of a file in any of the official forms."""
    if isinstance(content, dict):
        lists = [content[name] for name in LISTS if isinstance(content.get(name), list)]
        if lists:
            content = lists[0]
        elif any(name in content for name in ID_FIELDS):  # JSON lines with a single line
            return [content]
        else:  # GQA's questions by id
            rows = [(key, row) for key, row in content.items() if isinstance(row, dict)]
            return [{**row, "questionId": key} for key, row in rows]
    return [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []

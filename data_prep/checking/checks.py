"""Faults of one sample (its members, json, pictures, features), and of one shard with all samples.

Each check yields `Finding`s and goes on: a damaged shard is checked as far as it can be read.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from zlib_ng.zlib_ng import crc32

from vlds.data.errors import ShardError
from vlds.data.shards.info import DatasetInfo, ShardInfo, class_number, numbered
from vlds.data.shards.remote_folder import Folder, fetched
from vlds.data.shards.sample import (
    FEATURE_TYPE,
    FEATURES,
    UNUSABLE,
    foreign_json,
    id_fault,
    parse_sample,
)
from vlds.data.shards.shard_index import Counts, ShardIndex, beside, build_index
from vlds.data.shards.tar import members, read_members, split_name
from vlds.runtime.files import open_file, read_file
from vlds.runtime.json_files import in_words, parse_member
from vlds.runtime.json_files import sha256 as file_sha256

from ..packing.pack import fault_of
from ..packing.picture import picture_fault

Members = dict[str, bytes]
"""Extension -> bytes."""


class Finding(NamedTuple):
    """One fault of a data set; fields of its place are empty if unknown."""

    reason: str
    """The same words for all findings of a kind, which are counted by them."""
    detail: str = ""
    file: str = ""
    """Shard or other file, relative to the checked folder."""
    i: int | None = None
    """Number of the sample in its shard, from 0; None if the finding is not about one sample."""
    key: str = ""
    id: str = ""

    def __str__(self) -> str:
        words = [self.file]
        if self.i is not None:
            words.append(f"sample {self.i}" + (f" (key {self.key})" if self.key else ""))
        if self.id:
            words.append(f"id {self.id}")
        return ", ".join(words) + (f": {self.detail}" if self.detail else "")

    def line(self) -> str:
        """The line of a bad sample in quarantine.jsonl."""
        reason = f"{self.reason}: {self.detail}" if self.detail else self.reason
        content = {
            "shard": self.file, "i": self.i, "key": self.key, "id": self.id, "reason": reason,
        }  # fmt: skip
        return json.dumps(content, ensure_ascii=False) + "\n"


@dataclass
class CheckedSample:
    """What the checks of a whole data set need to know about a sample."""

    key: str = ""
    id: str = ""
    has_json: bool = False
    annotations: list[str] = field(default_factory=list)
    """Ids."""
    counts: Counts | None = None
    """None if a run cannot read the sample."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of its features, in the order of their names."""
    class_number: int | None = None
    """None if the data set has no classes, or the sample none of them."""
    unlabelled: int = 0
    """Annotations that cannot be trained on."""
    findings: list[Finding] = field(default_factory=list)


def check_sample(data: bytes, begin: int, end: int, dataset: DatasetInfo) -> CheckedSample:
    """Check the sample between two offsets of its shard; `data` are its readable bytes."""
    sample = CheckedSample()
    view = memoryview(data)
    try:
        sample.findings += _check_names(sample, view, begin)
        # Where the file ends early, reading gives fewer bytes and no error.
        if len(data) < end - begin:
            raise ShardError(f"its bytes from {begin + len(data)} to {end} are not there")
        _, views = read_members(view, begin)
    except ValueError as error:
        sample.findings.append(Finding("sample smashed or cut off", str(error)))
        return sample
    content = {name: bytes(member) for name, member in views.items()}
    if dataset.fields is not None:
        # Tars that others wrote: check the json that a run derives from their members.
        content.pop("json", None)
        try:
            content["json"] = json.dumps(foreign_json(sample.key, views, dataset.fields)).encode()
        except (ValueError, KeyError, TypeError) as error:
            sample.findings.append(Finding("fields cannot be read", in_words(error)))
    sample.has_json = "json" in content
    sample.findings += _check_json(sample, content, dataset)
    sample.findings += _check_features(sample, content)
    # Read it as a run does. Last: what stops a run counts only where no other check has told why.
    fault = ""
    try:
        read = parse_sample(sample.key, views, dataset.name, dataset.kind, dataset.fields)
    except UNUSABLE as error:
        fault = in_words(error)
    else:
        sample.counts = Counts(len(read.annotations), len(read.images) or len(read.features))
        from vlds.data.streams.stream import ask_all

        asked = ask_all(read)
        sample.unlabelled = len(read.annotations) - len(asked.labelled)
        fault = asked.faults[0] if asked.faults else ""
    if fault and not sample.findings:
        sample.findings.append(Finding("sample unusable", fault))
    return sample


def _check_names(sample: CheckedSample, view: memoryview, begin: int) -> Iterator[Finding]:
    """Note the key, and look for repeated names, of which a run takes the last.

    Errors: ValueError (ShardError) if a header cannot be read.
    """
    # Offsets are those of the shard, and `view` begins at `begin` of it.
    seen = set[str]()
    for member in members(lambda o, n: view[o - begin : o - begin + n], begin, begin + len(view)):
        key, extension = split_name(member.name)
        sample.key = sample.key or key
        if key == sample.key and extension in seen:
            yield Finding("member twice", extension)
        seen.add(extension)


def _check_json(sample: CheckedSample, content: Members, dataset: DatasetInfo) -> Iterator[Finding]:
    """Check the ids, the annotations and the pictures that the json names."""
    if "json" not in content:
        yield Finding("no json", f"it has {', '.join(sorted(content)) or 'nothing'}")
        return
    try:
        fields = parse_member(content["json"])
    except ValueError as error:
        yield Finding("json cannot be read", str(error))
        return
    if not isinstance(fields, dict):
        yield Finding("json cannot be read", f"it is {type(fields).__name__}, not an object")
        return
    if fault := id_fault(fields.get("id")):
        yield Finding("sample id unfit", fault)
    else:
        sample.id = fields["id"]
    if not isinstance(annotations := fields.get("annotations"), list):
        detail = f'"annotations" is {json.dumps(annotations)}'
        yield Finding("no list of annotations", detail)
        annotations = []
    for number, annotation in enumerate(annotations):
        annotation_id = annotation.get("id") if isinstance(annotation, dict) else None
        if fault := id_fault(annotation_id):
            yield Finding("annotation id unfit", f"annotation {number}: {fault}")
        else:
            sample.annotations.append(str(annotation_id))
        if isinstance(annotation, dict) and (fault := fault_of(annotation, dataset.kind)):
            yield Finding("annotation unusable", f"annotation {number}: {fault}")
    # Only of a sample that is good so far: most faults above make its class unreadable too.
    if dataset.indexed_classes is not None and not sample.findings:
        try:
            sample.class_number = class_number(content["json"], numbered(dataset.indexed_classes))
        except UNUSABLE as error:
            yield Finding("class unusable", str(error))
    images = fields.get("images")
    if not isinstance(images, list):
        yield Finding("no list of images", f'"images" is {json.dumps(images)}')
        return
    for name in images:
        if not isinstance(name, str) or name not in content:
            yield Finding("image missing", f"{name} is not among its members")
        elif damage := picture_fault(content[name]):
            yield Finding("image damaged", f"{name}: {damage}")


def _check_features(sample: CheckedSample, content: Mapping[str, bytes]) -> Iterator[Finding]:
    shapes = []
    for name in sorted(name for name in content if name.endswith(FEATURES)):
        try:
            array = np.lib.format.read_array(io.BytesIO(content[name]), allow_pickle=False)
        except Exception as error:  # NumPy evaluates the header as Python: anything can happen
            yield Finding("features cannot be read", f"{name}: {error}")
            continue
        shapes.append(array.shape)
        if array.dtype != FEATURE_TYPE:
            yield Finding("features not float16", f"{name}: {array.dtype}")
        # A run takes the numbers as they lie: Fortran's order would mix them up.
        elif array.ndim != 2 or not array.size or not array.flags.c_contiguous:
            detail = f"{name}: shape {array.shape}, (tokens, dim) row by row expected"
            yield Finding("features no matrix", detail)
        elif not (finite := np.isfinite(array)).all():
            detail = f"{name}: {int((~finite).sum())} of {array.size} numbers"
            yield Finding("features not finite", detail)
    if len(set(shapes)) > 1:
        yield Finding("features of different shapes", shapes_text(shapes))
    sample.shapes = tuple(shapes)


def shapes_text(shapes: Sequence[tuple[int, ...]]) -> str:
    """For findings: "36x2048 and 49x768", or "none"."""
    return " and ".join("x".join(map(str, shape)) for shape in shapes) or "none"


class ShardJob(NamedTuple):
    folder: Folder
    """Folder of the data set."""
    shard: ShardInfo
    label: str
    """Its name in the findings."""
    dataset: DatasetInfo


@dataclass(frozen=True)
class CheckedShard:
    """The samples of a shard, and its findings with theirs."""

    label: str
    samples: list[CheckedSample]
    findings: list[Finding]


def check_shard(job: ShardJob) -> CheckedShard:
    """Check one shard completely, however damaged it is."""
    with fetched(job.folder, *job.shard.files) as place:
        return _check_shard(job, place / job.shard.name)


def _check_shard(job: ShardJob, tar: Path) -> CheckedShard:
    if not tar.is_file():
        return CheckedShard(job.label, [], [Finding("shard missing", file=job.label)])
    # The cheap test first: of another size, the hash is another one, and takes long to compute.
    findings = []
    if (size := tar.stat().st_size) != job.shard.bytes:
        detail = f"{size} bytes, dataset.json says {job.shard.bytes}"
        findings.append(Finding("shard of another size", detail))
    elif file_sha256(tar) != job.shard.sha256:
        findings.append(Finding("shard with another sha256"))
    stored = _stored_index(tar, job.shard, findings)
    # The index as it would be made of the shard today, to compare the stored one with.
    rebuilt, fault = None, ""
    try:
        rebuilt = build_index(tar, foreign=job.dataset.fields is not None)
    except ValueError as error:
        fault = str(error)
    else:
        for noun, stated, actual in (
            ("samples", job.shard.samples, len(rebuilt.counts)),
            ("annotations", job.shard.annotations, int(rebuilt.counts.sum())),
        ):
            if stated != actual:
                detail = f"{actual}, dataset.json says {stated}"
                findings.append(Finding(f"other number of {noun}", detail))
    # Prefer the stored index: to a reader of headers, a block of zeros looks like the end.
    index = stored or rebuilt
    samples = list(_check_samples(tar, index, job.dataset)) if index else []
    if stored and rebuilt and len(stored.counts) != len(rebuilt.counts):
        detail = f"{len(stored.counts)} samples, the headers have {len(rebuilt.counts)}"
        findings.append(Finding("index of another shard", detail))
    elif stored and rebuilt:
        for i, sample in enumerate(samples):
            here, there = (index.offsets[i : i + 2].tolist() for index in (stored, rebuilt))
            if here != there:
                detail = f"bytes {here[0]} to {here[1]}, in the shard {there[0]} to {there[1]}"
                finding = Finding("index of another shard", detail)
                findings.append(finding._replace(i=i, key=sample.key, id=sample.id))
    # The checks of a sample do not know where it stands.
    about_samples = [
        finding._replace(i=i, key=sample.key, id=sample.id)
        for i, sample in enumerate(samples)
        for finding in sample.findings
    ]
    if fault and not about_samples:
        findings.append(Finding("shard smashed", fault))
    findings = [finding._replace(file=job.label) for finding in findings + about_samples]
    return CheckedShard(job.label, samples, findings)


def _stored_index(tar: Path, shard: ShardInfo, findings: list[Finding]) -> ShardIndex | None:
    """The index next to a shard, if it is the one that dataset.json describes."""
    files = {}
    for suffix, expected in shard.index_hashes.items():
        path = beside(tar, suffix)
        if not path.is_file():
            findings.append(Finding(f"{suffix} missing"))
        elif sha256(data := read_file(path)).hexdigest() != expected:
            findings.append(Finding(f"{suffix} with another sha256"))
        else:
            files[suffix] = data
    if len(files) < len(shard.index_hashes):
        return None
    try:
        return ShardIndex.parse(files, shard, shard.name)
    except ShardError as error:
        findings.append(Finding("index unusable", str(error)))
        return None


def _check_samples(tar: Path, index: ShardIndex, dataset: DatasetInfo) -> Iterator[CheckedSample]:
    with open_file(tar) as file:
        # n + 1 offsets: sample i lies between offsets i and i + 1.
        for i, (begin, end) in enumerate(pairwise(index.offsets.tolist())):
            data = os.pread(file.fileno(), end - begin, begin)
            sample = check_sample(data, begin, end, dataset)
            # Damage that another check has named needs no second finding.
            actual, stated = crc32(data), int(index.checksums[i])
            if actual != stated and not sample.findings:
                detail = f"its bytes have crc32 {actual:08x}, the index says {stated:08x}"
                sample.findings.append(Finding("sample changed", detail))
            indexed = Counts(int(index.counts[i]), int(index.pictures[i]))
            if sample.counts not in (None, indexed):
                detail = f"it has {sample.counts}, the index says {indexed}"
                sample.findings.append(Finding("index of another shard", detail))
            if index.classes is not None and sample.class_number is not None:
                stated = int(index.classes[i])
                if sample.class_number != stated:
                    detail = f"it has class {sample.class_number}, the index says {stated}"
                    sample.findings.append(Finding("index of another shard", detail))
            yield sample

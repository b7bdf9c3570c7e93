"""Faults of one shard: its files, its index, and every sample in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from zlib_ng.zlib_ng import crc32

from data_prep.checking.sample_check import CheckedSample, Finding, check_sample
from vlds.data.errors import ShardError
from vlds.data.shards.info import DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import Counts, ShardIndex, beside, build_index
from vlds.runtime.manifest import sha256 as file_sha256
from vlds.runtime.regular_file import open_file, read_file


class Job(NamedTuple):
    """A shard to check."""

    folder: Path
    """Of the data set."""
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


def check_shard(job: Job) -> CheckedShard:
    """Check one shard completely, however damaged it is."""
    tar = job.folder / job.shard.name
    if not tar.is_file():
        return CheckedShard(job.label, [], [Finding("shard missing", file=job.label)])
    findings = list(_check_size(tar, job.shard))
    stored = _stored_index(tar, job.shard, findings)
    rebuilt, fault = None, ""
    try:
        rebuilt = build_index(tar, foreign=job.dataset.fields is not None)
    except ValueError as error:
        fault = str(error)
    else:
        findings += _check_counts(rebuilt, job.shard)
    # Prefer the stored index: to a reader of headers, a block of zeros looks like the end.
    index = stored or rebuilt
    samples = list(_check_samples(tar, index, job.dataset)) if index else []
    if stored and rebuilt:
        findings += _compare(stored, rebuilt, samples)
    about_samples = [
        finding._replace(i=i, key=sample.key, id=sample.id)
        for i, sample in enumerate(samples)
        for finding in sample.findings
    ]
    if fault and not about_samples:
        findings.append(Finding("shard smashed", fault))
    findings = [finding._replace(file=job.label) for finding in findings + about_samples]
    return CheckedShard(job.label, samples, findings)


def _check_size(tar: Path, shard: ShardInfo) -> Iterator[Finding]:
    size = tar.stat().st_size
    if size != shard.bytes:
        yield Finding("shard of another size", f"{size} bytes, dataset.json says {shard.bytes}")
    elif file_sha256(tar) != shard.sha256:
        yield Finding("shard with another sha256")


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


def _compare(
    stored: ShardIndex, rebuilt: ShardIndex, samples: Sequence[CheckedSample]
) -> Iterator[Finding]:
    """Find samples whose place in the index differs from their place by the headers."""
    if len(stored.counts) != len(rebuilt.counts):
        detail = f"{len(stored.counts)} samples, the headers have {len(rebuilt.counts)}"
        yield Finding("index of another shard", detail)
        return
    for i, sample in enumerate(samples):
        indexed, actual = (index.offsets[i : i + 2].tolist() for index in (stored, rebuilt))
        if indexed != actual:
            detail = f"bytes {indexed[0]} to {indexed[1]}, in the shard {actual[0]} to {actual[1]}"
            yield Finding("index of another shard", detail, i=i, key=sample.key, id=sample.id)


def _check_counts(rebuilt: ShardIndex, shard: ShardInfo) -> Iterator[Finding]:
    """Compare the counts in dataset.json with the shard's."""
    for noun, stated, actual in (
        ("samples", shard.samples, len(rebuilt.counts)),
        ("annotations", shard.annotations, int(rebuilt.counts.sum())),
    ):
        if stated != actual:
            yield Finding(f"other number of {noun}", f"{actual}, dataset.json says {stated}")


def _check_samples(tar: Path, index: ShardIndex, dataset: DatasetInfo) -> Iterator[CheckedSample]:
    with open_file(tar) as file:
        for i, (begin, end) in enumerate(pairwise(index.offsets.tolist())):
            data = os.pread(file.fileno(), end - begin, begin)
            sample = check_sample(data, begin, end, dataset)
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

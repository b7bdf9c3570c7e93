"""Everything that can be wrong with one shard: its files, its index, and every sample in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.finding import Finding
from data_prep.sample_check import CheckedSample, check_sample
from vlds.data import file_sha256
from vlds.data.index import CNT_TYPE, IDX_TYPE, ShardIndex, beside, build_index
from vlds.data.info import ShardInfo
from vlds.runtime.regular_file import open_file, read_file


class Job(NamedTuple):
    """A shard to check."""

    folder: Path
    """Of its data set."""
    shard: ShardInfo
    label: str
    """What the findings call it."""
    fields: Mapping[str, str] | None = None
    """Those of dataset.json."""


@dataclass(frozen=True)
class CheckedShard:
    """Its samples, and what is wrong with it and with them."""

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
    rebuilt, trouble = None, ""
    try:
        rebuilt = build_index(tar, foreign=job.fields is not None)
    except ValueError as error:
        trouble = str(error)
    else:
        findings += _check_index(stored, rebuilt, job.shard)
    # A block of zeros looks like the end to whoever follows the headers; the index knows better.
    index = stored or rebuilt
    samples = list(_check_samples(tar, index, job.fields)) if index else []
    about_samples = [
        finding._replace(i=i, key=sample.key, id=sample.id)
        for i, sample in enumerate(samples)
        for finding in sample.findings
    ]
    if trouble and not about_samples:
        findings.append(Finding("shard smashed", trouble))
    findings = [finding._replace(file=job.label) for finding in findings + about_samples]
    return CheckedShard(job.label, samples, findings)


def _check_size(tar: Path, shard: ShardInfo) -> Iterator[Finding]:
    size = tar.stat().st_size
    if size != shard.bytes:
        yield Finding("shard of another size", f"{size} bytes, dataset.json says {shard.bytes}")
    elif file_sha256(tar) != shard.sha256:
        yield Finding("shard with another sha256")


def _stored_index(tar: Path, shard: ShardInfo, findings: list[Finding]) -> ShardIndex | None:
    """The index beside a shard, where it is the one that dataset.json describes."""
    parts = []
    for suffix, expected in ((".idx", shard.idx_sha256), (".cnt", shard.cnt_sha256)):
        path = beside(tar, suffix)
        if not path.is_file():
            findings.append(Finding(f"{suffix} missing"))
        elif sha256(data := read_file(path)).hexdigest() != expected:
            findings.append(Finding(f"{suffix} with another sha256"))
        else:
            parts.append(data)
    if len(parts) < 2:
        return None
    idx, cnt = parts
    if len(idx) % IDX_TYPE.itemsize or len(cnt) % CNT_TYPE.itemsize:
        return None
    index = ShardIndex(np.frombuffer(idx, IDX_TYPE), np.frombuffer(cnt, CNT_TYPE))
    offsets = index.offsets.astype(np.int64)
    fits = len(offsets) == len(index.counts) + 1 and (np.diff(offsets) > 0).all()
    return index if fits else None


def _check_index(
    stored: ShardIndex | None, rebuilt: ShardIndex, shard: ShardInfo
) -> Iterator[Finding]:
    """Is the index that of the headers, and is dataset.json right about the numbers?"""
    if stored is not None and not (
        np.array_equal(stored.offsets, rebuilt.offsets)
        and np.array_equal(stored.counts, rebuilt.counts)
    ):
        yield Finding("index of another shard", "its offsets or counts differ from the headers'")
    for noun, stated, found in (
        ("samples", shard.samples, len(rebuilt.counts)),
        ("annotations", shard.annotations, int(rebuilt.counts.sum())),
    ):
        if stated != found:
            yield Finding(f"other number of {noun}", f"{found}, dataset.json says {stated}")


def _check_samples(
    tar: Path, index: ShardIndex, fields: Mapping[str, str] | None
) -> Iterator[CheckedSample]:
    offsets = index.offsets.tolist()
    with open_file(tar) as file:
        for begin, end in pairwise(offsets):
            yield check_sample(os.pread(file.fileno(), end - begin, begin), begin, end, fields)

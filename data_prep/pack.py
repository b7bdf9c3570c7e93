"""A parsed data set -> shards: open every picture, write the good ones, account for the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.journal import Dropped
from data_prep.parallel import ordered_map
from data_prep.picture import BadPicture, PictureRule, prepare_picture
from data_prep.progress import follow
from data_prep.source import SourceSample, SourceSet, count_reasons
from data_prep.writer import DatasetWriter, Limits, SampleRecord, shard_order
from vlds.data.index import DatasetInfo

PAIR = ("left", "right")


@dataclass(frozen=True)
class Options:
    """What all commands share."""

    rule: PictureRule = field(default_factory=PictureRule)
    limits: Limits = field(default_factory=Limits)
    workers: int = 1
    """Processes that open pictures; the shards do not depend on it."""
    resume: bool = False
    """Keep the shards that an interrupted command finished."""
    arguments: Mapping[str, Any] | None = None
    """The command line, for the record in dataset.json."""


def pack(dataset: SourceSet, out: Path, options: Options) -> DatasetInfo:
    """Write a data set and print what became of every sample."""
    dataset.check()
    writer = DatasetWriter(
        out,
        name=dataset.name,
        kind=dataset.kind,
        split=dataset.split,
        limits=options.limits,
        source=dataset.files,
        image={"size": options.rule.size, "square": options.rule.square},
        resume=options.resume,
    )
    info = writer.write(
        make_records(dataset, options, writer.start),
        rows_dropped=[Dropped(**entry) for entry in dataset.dropped],
        arguments=options.arguments,
    )
    print(summary(dataset, info, out))
    return info


def summary(dataset: SourceSet, info: DatasetInfo, out: Path) -> str:
    """One line where everything was written; else in = written + dropped, with the reasons."""
    title = f"{info.name} {info.split}:"
    if not info.dropped:
        return f"{title} {info.samples:,} samples, {info.annotations:,} annotations -> {out}"
    rows = len(dataset.dropped)
    given = rows + sum(len(sample.annotations) for sample in dataset.samples)
    samples = len(dataset.samples)
    lines = [
        f"{title} -> {out}",
        _account("samples", samples, info.samples),
        _account("annotations", given, info.annotations),
    ]
    lines += [
        f"    dropped: {reason}: {count:,}" for reason, count in count_reasons(info.dropped).items()
    ]
    return "\n".join(lines)


def _account(noun: str, given: int, written: int) -> str:
    return f"  {noun:<11} {given:>9,} in = {written:,} written + {given - written:,} dropped"


def make_records(
    dataset: SourceSet, options: Options, start: int
) -> Iterator[SampleRecord | Dropped]:
    """From number `start` on, in the order of the shards; a picture that cannot be used takes its
    sample along."""
    samples = {sample.id: sample for sample in dataset.samples}
    chosen = [samples[sample_id] for sample_id in shard_order(samples)]
    what = f"{dataset.name} {dataset.split}"
    made = ordered_map(partial(try_record, rule=options.rule), chosen[start:], options.workers)
    yield from follow(made, what, start, len(chosen))


def try_record(sample: SourceSample, rule: PictureRule) -> SampleRecord | Dropped:
    """A sample as the shards hold it, or why they do not."""
    if not sample.annotations:
        return Dropped(sample.id, "no annotation")
    try:
        return make_record(sample, rule)
    except BadPicture as reason:
        return Dropped(sample.id, f"picture: {reason}")


def make_record(sample: SourceSample, rule: PictureRule) -> SampleRecord:
    """Open a sample's pictures and put it together as the shards hold it."""
    pictures = [prepare_picture(path.read_bytes(), rule) for path in sample.images]
    names = [picture.extension for picture in pictures]
    if len(pictures) == len(PAIR):
        names = [f"{side}.{name}" for side, name in zip(PAIR, names, strict=True)]
    content: dict[str, Any] = {
        "size": [[picture.width, picture.height] for picture in pictures],
        "annotations": sample.annotations,
    }
    if sample.source:
        content["source"] = sample.source
    members = [(name, picture.data) for name, picture in zip(names, pictures, strict=True)]
    return SampleRecord(id=sample.id, members=members, json=content)

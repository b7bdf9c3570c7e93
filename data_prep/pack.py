"""A parsed data set -> shards: open every picture, write the good ones, account for the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.picture import BadPicture, PictureRule, prepare_picture
from data_prep.progress import follow
from data_prep.source import SourceSample, SourceSet, count_reasons
from data_prep.writer import SampleRecord, shard_order, write_dataset
from vlds.data.index import DatasetInfo

PAIR = ("left", "right")


@dataclass(frozen=True)
class Options:
    """What all commands share."""

    rule: PictureRule = field(default_factory=PictureRule)
    shard_samples: int = 1000
    arguments: Mapping[str, Any] | None = None
    """The command line, for the record in dataset.json."""


def pack(dataset: SourceSet, out: Path, options: Options) -> DatasetInfo:
    """Write a data set and print what became of every sample."""
    dataset.check()
    dropped = [(entry["id"], entry["reason"]) for entry in dataset.dropped]
    info = write_dataset(
        out,
        name=dataset.name,
        kind=dataset.kind,
        split=dataset.split,
        records=_records(dataset, options.rule, dropped),
        shard_samples=options.shard_samples,
        source=dataset.files,
        dropped=dropped,
        image={"size": options.rule.size, "square": options.rule.square},
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


def _records(
    dataset: SourceSet, rule: PictureRule, dropped: list[tuple[str, str]]
) -> Iterator[SampleRecord]:
    """In the order of the shards; a picture that cannot be used takes its sample along."""
    samples = {sample.id: sample for sample in dataset.samples}
    what = f"{dataset.name} {dataset.split}"
    for sample_id in follow(shard_order(samples), what):
        sample = samples[sample_id]
        if not sample.annotations:
            dropped.append((sample.id, "no annotation"))
            continue
        try:
            yield make_record(sample, rule)
        except BadPicture as reason:
            dropped.append((sample.id, f"picture: {reason}"))


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

"""`stats`: what packed data sets hold, in numbers; and how the commands here read them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlds.data.shards.info import DATASET_FILE, NO_CLASS
from vlds.data.shards.remote_folder import (
    Folder,
    Part,
    address,
    files_in,
    load_info,
    open_part,
    parts_of,
)
from vlds.data.shards.sample import UNUSABLE
from vlds.data.shards.store import open_dataset
from vlds.runtime.cluster import Cluster
from vlds.runtime.json_files import in_words
from vlds.runtime.terminal import shell_command, tell
from vlds.runtime.workers import ordered_map
from vlds.schema import Sample, SkipSample

from ..command import add_workers, any_folder, new_command
from ..packing.pack import clips_of, fault_of, text_in
from ..packing.source import count_reasons

MOST_FREQUENT = 5


def find_datasets(folder: Folder) -> list[Folder]:
    """The folders of all data sets in or below a folder."""
    # "a/dataset.json" -> folder / "a", "dataset.json" -> folder.
    paths = [file.removesuffix(DATASET_FILE) for file in files_in(folder, DATASET_FILE)]
    found = [folder / path.rstrip("/") if path else folder for path in paths if path[-1:] in "/"]
    if not found:
        raise ValueError(f"{folder}: no {DATASET_FILE} here or below; give a folder of shards")
    return sorted(found, key=lambda place: str(place).split("/"))


def read_part(part: Part) -> Iterator[Sample]:
    """The samples of a shard.

    Errors: ValueError that names the first unreadable or unusable one.
    """
    cure = f"`{shell_command('vlds', 'data', 'verify', part.folder)}` says more"
    with open_part(part) as dataset:
        for number in range(dataset.num_samples):
            try:
                sample = dataset.read(number)
            except SkipSample as error:
                raise ValueError(f"{error}; {cure}") from None
            if fault := next(filter(None, map(fault_of, sample.annotations)), ""):
                raise ValueError(
                    f"sample {dataset.label} {sample.key} ({dataset.shard_of(number)}): annotation "
                    f"{fault}; {cure}"
                )
            yield sample


def read_annotations(folders: Iterable[Folder]) -> Iterator[Mapping[str, Any]]:
    """Every annotation of all data sets in or below the folders."""
    for folder in folders:
        for place in find_datasets(folder):
            for part in parts_of(place, load_info(place)):
                for sample in read_part(part):
                    yield from sample.annotations


@dataclass
class Counts:
    """What some samples hold."""

    answers: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    """Sizes of pictures, as "640x480"."""
    words: int = 0
    texts: int = 0
    clips: list[tuple[int, float]] = field(default_factory=list)
    """Frames and seconds of each. Not their sum: that of floats depends on the order."""

    def add(self, other: Counts) -> None:
        self.answers.update(other.answers)
        self.sides.update(other.sides)
        self.words, self.texts = self.words + other.words, self.texts + other.texts
        self.clips += other.clips


def count_samples(part: Part) -> Counts:
    """What the samples of a shard hold."""
    counts = Counts()
    for sample in read_part(part):
        try:
            sizes = sample.extra.get("size") or ()
            counts.sides.update(f"{width}x{height}" for width, height in sizes)
            # The annotations of a sample show the same clips.
            for clip in clips_of(sample.annotations[0]) if sample.annotations else ():
                counts.clips.append((len(clip["times"]), clip["duration"]))
            for annotation in sample.annotations:
                text = text_in(annotation, shown=False) or ""
                counts.words += len(text.split())
                counts.texts += 1
                counts.answers[_answer(annotation)] += 1
        except UNUSABLE as error:
            raise ValueError(
                f"{part.folder}: sample {sample.key} cannot be counted ({in_words(error)}); "
                "correct its json"
            ) from None
    return counts


def describe(folder: Folder, workers: int = 1, cluster: Cluster | None = None) -> str:
    """A few lines about one data set."""
    info = load_info(folder)
    landmark = [folder / DATASET_FILE] if isinstance(folder, Path) else []
    counts = Counts()
    for counted in ordered_map(
        count_samples,
        parts_of(folder, info),
        workers,
        chunk=1,
        pieces=info.samples,
        cluster=cluster,
        files=landmark,
    ):
        counts.add(counted)
    answers, sides, texts = counts.answers, counts.sides, counts.texts
    size = sum(shard.bytes for shard in info.shards)
    lines = [
        f"{info.name} {info.split} ({info.kind}): {folder}",
        f"  shards       {len(info.shards):>10,}   {size / 2**20:,.1f} MiB",
        f"  samples      {info.samples:>10,}",
        f"  annotations  {info.annotations:>10,}",
        f"  words a text {counts.words / max(texts, 1):>10.1f}"
        if info.indexed_classes is None
        else _classes(folder, info.indexed_classes),
        f"  sizes        {_most_frequent(sides, sides.total())}",
    ]
    if number := len(counts.clips):
        frames, seconds = (sum(column) / number for column in zip(*counts.clips, strict=True))
        lines.append(f"  clips        {number:>10,}   {frames:.1f} frames, {seconds:.1f} s each")
    # Test splits have annotations without an answer.
    answers.pop("", None)
    if answers and info.indexed_classes is None:
        lines.append(f"  answers      {len(answers):>10,} different")
        lines.append(f"               {_most_frequent(answers, texts)}")
    lines += [
        f"  dropped      {count:>10,} {reason}"
        for reason, count in count_reasons(entry["reason"] for entry in info.dropped).items()
    ]
    return "\n".join(lines)


def _answer(annotation: Mapping[str, Any]) -> str:
    """The best answer of an annotation of any kind, or ""."""
    # VQA's label has a score for each answer; NLVR2's is true or false.
    label = annotation.get("label", annotation.get("answer", ""))
    if isinstance(label, Mapping):
        return max(label, key=label.__getitem__, default="")
    return str(label).lower() if isinstance(label, bool) else str(label)


def _classes(folder: Folder, classes: Sequence[str]) -> str:
    """How many samples the classes have."""
    numbers = open_dataset(address(folder)).class_numbers()
    counts = np.bincount(numbers[numbers != NO_CLASS], minlength=len(classes))
    return f"  classes      {len(classes):>10,}   {counts.min():,} to {counts.max():,} samples each"


def _most_frequent(counts: Counter[str], total: int) -> str:
    """The most frequent values with their shares."""
    parts = [
        f"{value} {100 * count / total:.0f} %" for value, count in counts.most_common(MOST_FREQUENT)
    ]
    return ", ".join(parts) + (", ..." if len(counts) > MOST_FREQUENT else "")


def add_command(commands: Any) -> None:
    parser = new_command(commands, "stats", examples=["stats shards/mine"])
    parser.add_argument(
        "folder", type=any_folder, metavar="DIR", help="a data set, or several below"
    )
    add_workers(parser, "read shards")

    def run(args: argparse.Namespace) -> None:
        folders = find_datasets(args.folder)
        tell("\n\n".join(describe(folder, args.workers, args.cluster) for folder in folders))

    parser.set_defaults(run=run)

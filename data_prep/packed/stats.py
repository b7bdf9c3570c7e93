"""`stats`: what packed data sets hold, in numbers; and how the commands here read them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlds.data.shards.info import DATASET_FILE, NO_CLASS, DatasetInfo
from vlds.data.shards.sample import UNUSABLE
from vlds.data.shards.store import open_dataset
from vlds.runtime.json_files import in_words
from vlds.runtime.terminal import tell
from vlds.schema import Sample, SkipSample

from ..command import local_folder, new_command
from ..packing.pack import clips_of, fault_of, text_in
from ..packing.source import count_reasons

MOST_FREQUENT = 5


def find_datasets(folder: Path) -> list[Path]:
    """The folders of all data sets in or below a folder."""
    folders = sorted(path.parent for path in folder.rglob(DATASET_FILE))
    if not folders:
        raise ValueError(f"{folder}: no {DATASET_FILE} here or below; give a folder of shards")
    return folders


def read_samples(folder: Path) -> Iterator[Sample]:
    """Every sample of a data set.

    Errors: ValueError that names the first unreadable or unusable one.
    """
    dataset = open_dataset(folder)
    cure = f"`vlds data verify {folder}` says more"
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


def read_annotations(folders: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    """Every annotation of all data sets in or below the folders."""
    for folder in folders:
        for dataset in find_datasets(folder):
            for sample in read_samples(dataset):
                yield from sample.annotations


def describe(folder: Path) -> str:
    """A few lines about one data set."""
    info = DatasetInfo.load(folder)
    answers, sides = Counter[str](), Counter[str]()
    words, texts = 0, 0
    frames: list[int] = []
    seconds = 0.0
    for sample in read_samples(folder):
        try:
            sides.update(f"{width}x{height}" for width, height in sample.extra.get("size") or ())
            # The annotations of a sample show the same clips.
            for clip in clips_of(sample.annotations[0]) if sample.annotations else ():
                frames.append(len(clip["times"]))
                seconds += clip["duration"]
            for annotation in sample.annotations:
                text = text_in(annotation, shown=False) or ""
                words, texts = words + len(text.split()), texts + 1
                answers[_answer(annotation)] += 1
        except UNUSABLE as error:
            raise ValueError(
                f"{folder}: sample {sample.key} cannot be counted ({in_words(error)}); correct its "
                "json"
            ) from None
    size = sum(shard.bytes for shard in info.shards)
    lines = [
        f"{info.name} {info.split} ({info.kind}): {folder}",
        f"  shards       {len(info.shards):>10,}   {size / 2**20:,.1f} MiB",
        f"  samples      {info.samples:>10,}",
        f"  annotations  {info.annotations:>10,}",
        f"  words a text {words / max(texts, 1):>10.1f}"
        if info.indexed_classes is None
        else _classes(folder, info.indexed_classes),
        f"  sizes        {_most_frequent(sides, sides.total())}",
    ]
    if frames:
        count, length = sum(frames) / len(frames), seconds / len(frames)
        lines.append(f"  clips        {len(frames):>10,}   {count:.1f} frames, {length:.1f} s each")
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


def _classes(folder: Path, classes: Sequence[str]) -> str:
    """How many samples the classes have."""
    numbers = open_dataset(folder).class_numbers()
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
        "folder", type=local_folder, metavar="DIR", help="a data set, or several below"
    )

    def run(args: argparse.Namespace) -> None:
        tell("\n\n".join(describe(folder) for folder in find_datasets(args.folder)))

    parser.set_defaults(run=run)

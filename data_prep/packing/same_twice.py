"""What stands twice in somebody's own data: rows, and pictures under several names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.packing.source import Annotation, SourceSet
from vlds.runtime.terminal import tell

SHOWN = 5
"""Rows or pictures that a message names."""


def tell_repeats(datasets: Sequence[SourceSet], noun: str | None) -> None:
    """Say how many rows repeat another, and which; `noun` is what ids are, where not a row's
    place."""
    for dataset in datasets:
        repeats = list(_repeats(dataset))
        if not repeats:
            continue
        named = noun or next((s.place for s in dataset.samples if s.place), "id").split()[0]
        pairs = _some([f"{named} {later} repeats {first}" for later, first in repeats])
        rows = "row repeats" if len(repeats) == 1 else "rows repeat"
        tell(
            f"{dataset.name} {dataset.split}: {len(repeats):,} {rows} the picture and words of an "
            f"earlier row; they stay in: {pairs}"
        )


def _repeats(dataset: SourceSet) -> Iterator[tuple[str, str]]:
    """Id of each annotation that says what an earlier one of its sample says, and of that."""
    for sample in dataset.samples:
        first: dict[str, str] = {}
        for annotation in sample.annotations:
            said = _words(annotation)
            if said in first:
                yield str(annotation["id"]), first[said]
            first.setdefault(said, str(annotation["id"]))


def _words(annotation: Annotation) -> str:
    told = {key: value for key, value in annotation.items() if key not in ("id", "source")}
    return json.dumps(told, sort_keys=True)


def tell_copies(datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]) -> None:
    """Say which pictures have the bytes of another one."""
    if not copies:
        return
    ids = _ids(datasets)
    groups = [" = ".join(ids[path] for path in group) for group in copies]
    count = sum(len(group) - 1 for group in copies)
    pictures = "picture has" if count == 1 else "pictures have"
    tell(f"{count:,} {pictures} the bytes of another one: {_some(groups)}")


def warn_of_leaks(datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]) -> None:
    """Say which pictures are in more than one split: a test on them tells little."""
    one_name = {path: group[0] for group in copies for path in group}
    splits: dict[Path, dict[str, str]] = {}
    for dataset in datasets:
        for sample in dataset.samples:
            for path in sample.images:
                splits.setdefault(one_name.get(path, path), {}).setdefault(dataset.split, sample.id)
    leaks = [where for where in splits.values() if len(where) > 1]
    if leaks:
        named = [
            " and ".join(f"{sample} ({split})" for split, sample in where.items())
            for where in leaks
        ]
        pictures = "picture is" if len(leaks) == 1 else "pictures are"
        tell(
            f"warning: {len(leaks):,} {pictures} in more than one split: {_some(named)}; scores on "
            "them say little about new pictures. --split-by-image keeps a picture in one split",
            error=True,
        )


def _ids(datasets: Sequence[SourceSet]) -> dict[Path, str]:
    return {path: s.id for dataset in datasets for s in dataset.samples for path in s.images}


def _some(entries: Sequence[str]) -> str:
    more = f", and {len(entries) - SHOWN:,} more" if len(entries) > SHOWN else ""
    return ", ".join(entries[:SHOWN]) + more

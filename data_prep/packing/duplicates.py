"""Repeated rows, and pictures with the same bytes under several names, in a user's own data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from multiprocessing.pool import ThreadPool
from pathlib import Path

from data_prep.packing.source import Annotation, SourceSet, first_few
from vlds.runtime.manifest import sha256
from vlds.runtime.regular_file import open_file
from vlds.runtime.terminal import tell

TAIL = 4096
"""Bytes: the ends of compressed pictures differ, and their beginnings are much alike."""
READERS = 16
"""Threads: a network disk answers many requests at once."""


def find_copies(paths: Iterable[Path]) -> list[list[Path]]:
    """Each group of two or more files with the same bytes, in the given order.

    Size and last bytes tell nearly all pictures apart; only the rest is read as a whole.
    """
    groups = _divide([list(dict.fromkeys(paths))], _size)
    return _divide(_divide(groups, _tail), sha256)


def _divide(groups: Sequence[Sequence[Path]], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Divide groups by a key; drop single files and those whose key is None."""
    numbered = [(number, path) for number, group in enumerate(groups) for path in group]
    with ThreadPool(READERS) as pool:
        keys = pool.map(key, [path for _, path in numbered])
    divided: dict[Hashable, list[Path]] = {}
    for (number, path), value in zip(numbered, keys, strict=True):
        if value is not None:
            divided.setdefault((number, value), []).append(path)
    return [alike for alike in divided.values() if len(alike) > 1]


def _size(path: Path) -> int | None:
    """Bytes of a file; None for a missing one."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # a name that is too long, or contains a zero byte
        return None


def _tail(path: Path) -> bytes:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - TAIL))
        return blake2b(file.read(), digest_size=16).digest()


def tell_repeats(datasets: Sequence[SourceSet], noun: str | None) -> None:
    """Print which rows repeat another one; `noun` is what ids are called, None for places."""
    for dataset in datasets:
        repeats = list(_repeats(dataset))
        if not repeats:
            continue
        named = noun or next((s.place for s in dataset.samples if s.place), "id").split()[0]
        pairs = first_few([f"{named} {later} repeats {first}" for later, first in repeats])
        rows = "row repeats" if len(repeats) == 1 else "rows repeat"
        tell(
            f"{dataset.name} {dataset.split}: {len(repeats):,} {rows} the picture and words of an "
            f"earlier row; they stay in: {pairs}"
        )


def _repeats(dataset: SourceSet) -> Iterator[tuple[str, str]]:
    """Id of each annotation that repeats an earlier one of its sample, and the earlier one's id."""
    for sample in dataset.samples:
        first_ids: dict[str, str] = {}
        for annotation in sample.annotations:
            content = _content(annotation)
            if content in first_ids:
                yield str(annotation["id"]), first_ids[content]
            first_ids.setdefault(content, str(annotation["id"]))


def _content(annotation: Annotation) -> str:
    fields = {key: value for key, value in annotation.items() if key not in ("id", "source")}
    return json.dumps(fields, sort_keys=True)


def tell_copies(datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]) -> None:
    """Print which pictures have the bytes of another one."""
    if not copies:
        return
    ids = {path: s.id for dataset in datasets for s in dataset.samples for path in s.images}
    groups = [" = ".join(ids[path] for path in group) for group in copies]
    count = sum(len(group) - 1 for group in copies)
    pictures = "picture has" if count == 1 else "pictures have"
    tell(f"{count:,} {pictures} the bytes of another one: {first_few(groups)}")


def warn_of_leaks(
    datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]], cure: str
) -> None:
    """Warn of pictures that are in several splits: a test on them tells little."""
    one_name = {path: group[0] for group in copies for path in group}
    splits: dict[Path, dict[str, str]] = {}
    for dataset in datasets:
        for sample in dataset.samples:
            for path in sample.images:
                splits.setdefault(one_name.get(path, path), {}).setdefault(dataset.split, sample.id)
    leaks = [
        " and ".join(f"{sample} ({split})" for split, sample in where.items())
        for where in splits.values()
        if len(where) > 1
    ]
    if leaks:
        pictures = "picture is" if len(leaks) == 1 else "pictures are"
        tell(
            f"warning: {len(leaks):,} {pictures} in more than one split: {first_few(leaks)}; "
            f"scores on them say little about new pictures. {cure}",
            error=True,
        )

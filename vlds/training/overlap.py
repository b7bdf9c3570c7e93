"""What a run is scored on, compared with what it learns from: data, pictures, groups and rows that
are in both, and classes that one of them lacks. What is told here does not stop a run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.shards.info import NO_CLASS
from vlds.data.shards.remote import is_url
from vlds.data.shards.sample import groups_of
from vlds.data.shards.store import Dataset
from vlds.data.streams.sequential import StreamedSource
from vlds.data.streams.source import Source
from vlds.evaluation.sources import data_source
from vlds.recipe.config import Recipe
from vlds.runtime.terminal import without_credentials
from vlds.schema import Group, Sample, SkipSample
from vlds.tasks.base import TEST_MARK, task_of

MOST_COMPARED = 256 << 20
"""Bytes of a task's data sets that are compared: a second or three of reading."""
MOST_NAMED = 5
"""Classes that a notice names."""


def test_sources(recipe: Recipe) -> tuple[list[Source], list[str]]:
    """The data for the test at the very end, which need not be there yet and are not fetched; and
    what to tell the user of those that cannot be opened."""
    opened, notices = [], []
    for name, task in recipe.tasks.items():
        if folders := [folder for folder in task.test if not is_url(folder)]:
            try:
                opened.append(data_source(recipe, name, folders, "test"))
            except ValueError as error:
                notices.append(f"{error}; the run goes on: it does not read them")
    return opened, notices


def compared(train: Sequence[Source | StreamedSource], scored: Sequence[Source]) -> Iterator[str]:
    """What to tell a user about the data that a run is scored on."""
    yield from absent_classes([source for source in train if isinstance(source, Source)], scored)
    yield from seen_in_training(train, scored)


def field_of(source: Source) -> str:
    """The recipe's field that names a source on which a run is scored."""
    split = "test" if source.name.endswith(TEST_MARK) else "evaluate"
    return f"tasks.{task_of(source.name)}.{split}"


def seen_in_training(
    train: Sequence[Source | StreamedSource], scored: Sequence[Source]
) -> Iterator[str]:
    """What to tell a user who scores a run on data, pictures, groups or rows that it trains on.
    Small data sets are compared, sample by sample; of shards that are streamed, only the folders
    are."""
    places: dict[str, str] = {}
    owners: dict[bytes, str] = {}
    read: set[str] = set()
    # All training data first: what is scored may repeat rows of any task.
    for source in train:
        where = f"tasks.{source.name}.train"
        if isinstance(source, StreamedSource):
            places |= {_place(url.rpartition("/")[0]): where for _, url in source.shards}
            continue
        for dataset in source.datasets:
            places.setdefault(dataset.fingerprint(), where)
        if _local_bytes(source) > MOST_COMPARED or source.data_id in read:
            continue
        read.add(source.data_id)  # tasks may share a folder
        for dataset, sample in _samples(source):
            pictures, rows, name = _traces(dataset, sample)
            for trace in (*pictures, *rows, *name, *_groups(sample)):
                owners.setdefault(trace, where)
    for source in scored:
        field = field_of(source)
        new = []
        for dataset in source.datasets:
            same = [dataset.fingerprint(), _place(str(dataset.folder))]
            if trained_by := [places[each] for each in same if each in places]:
                yield (
                    f"{field}: {dataset.folder} is in {trained_by[0]} too; its scores say nothing "
                    "about new data"
                )
            else:
                new.append(dataset)
        rest = Source(source.name, source.task, new)
        if owners and _local_bytes(rest) <= MOST_COMPARED:
            yield from _repeated(field, rest, owners)


def _repeated(field: str, source: Source, owners: dict[bytes, str]) -> Iterator[str]:
    """What samples of a source share with training data, by where its traces are."""
    known: dict[bytes, str] = {}
    """Trace of a picture -> the first sample that shows it."""
    named: dict[str, str] = {}
    """Sample that is known by its name alone -> where it is trained on."""
    groups: dict[bytes, Group] = {}
    repeated, example = 0, ""
    for dataset, sample in _samples(source):
        pictures, rows, name = _traces(dataset, sample)
        seen = [trace for trace in pictures if trace in owners]
        groups |= {trace: group for trace, group in _groups(sample).items() if trace in owners}
        known |= {trace: sample.id for trace in seen if trace not in known}
        if same := [trace for trace in rows if trace in owners]:
            repeated += len(same)
            example = example or f"{sample.id} (in {owners[same[0]]})"
        elif not seen and name and name[0] in owners:
            named[sample.id] = owners[name[0]]
    advice = "`vlds data --split-sizes` keeps a picture in one split"
    if known:
        trace, name_of_first = next(iter(known.items()))
        rows_too = f", and {repeated:,} of its rows word for word" if repeated else ""
        yield (
            f"{field}: {len(known):,} of its pictures are in training data too, such as that of "
            f"{name_of_first} (in {owners[trace]}){rows_too}; scores on them say little about new "
            f"pictures: {advice}"
        )
    elif repeated:
        yield (
            f"{field}: {repeated:,} of its rows are in training data too, word for word, such as "
            f"one of {example}; scores on them say nothing about new rows"
        )
    if groups:
        trace, group = next(iter(groups.items()))
        yield (
            f"{field}: {len(groups):,} of its groups are in training data too, such as "
            f"{group.name!r} of {group.field!r} (in {owners[trace]}); scores on them say little "
            "about new groups: `vlds data --split-sizes` keeps a group in one split"
        )
    if named:
        sample_id, where = next(iter(named.items()))
        yield (
            f"{field}: {len(named):,} of its samples are made from the same rows as training data, "
            f"though their pictures were stored otherwise, such as {sample_id} (in {where}); "
            f"scores on them say little about new pictures: {advice}"
        )


def _traces(dataset: Dataset, sample: Sample) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Hashes by which a sample is known again: of each picture, or else of its stored features; of
    each row with what it shows, but for the row's id; and of its name among the files that it was
    made from, if these are recorded."""
    pictures = [_hash(picture) for picture in sample.images]
    pictures += [_hash(features.tobytes()) for features in sample.features]
    rows = []
    for row in sample.annotations:
        content = {name: value for name, value in row.items() if name != "id"}
        # The order of keys and pictures depends on the tool that packed them, not on the row.
        text = json.dumps(content, sort_keys=True, default=str)
        rows.append(_hash(text.encode(errors="surrogatepass"), *sorted(pictures)))
    files = sorted({file["sha256"] for file in dataset.info.source if "sha256" in file})
    name = [_hash("\n".join([*files, sample.id]).encode())] if files else []
    return pictures, rows, name


def _groups(sample: Sample) -> dict[bytes, Group]:
    """Hash -> each of a sample's groups."""
    with suppress(SkipSample):  # a run counts a sample whose groups cannot be read
        return {
            _hash("\n".join(["group", *group]).encode(errors="surrogatepass")): group
            for group in groups_of(sample)
        }
    return {}


def _hash(*parts: bytes | memoryview) -> bytes:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _samples(source: Source) -> Iterator[tuple[Dataset, Sample]]:
    """The samples of a source; those that cannot be read are left to the run."""
    for dataset in source.datasets:
        for number in range(dataset.num_samples):
            if number in dataset.quarantine:
                continue  # no run reads it
            with suppress(SkipSample, ShardError):
                yield dataset, dataset.read(number)


def absent_classes(train: Sequence[Source], scored: Sequence[Source]) -> Iterator[str]:
    """What to tell a user whose training data lack classes that are scored, or the reverse."""
    learned = {source.name: shown_classes(source) for source in train}
    for source in scored:
        ours, theirs = learned.get(task_of(source.name)), shown_classes(source)
        if not ours or not theirs:
            continue
        for field, missing, why in (
            (
                f"tasks.{task_of(source.name)}.train",
                theirs - ours,
                "they cannot be learned, and count as wrong",
            ),
            (field_of(source), ours - theirs, "its scores say nothing about them"),
        ):
            if missing:
                names = ", ".join(repr(name) for name in sorted(missing)[:MOST_NAMED])
                more = ", ..." if len(missing) > MOST_NAMED else ""
                yield (
                    f"{field}: no picture of {len(missing):,} of "
                    f"{len(ours | theirs):,} classes ({names}{more}); {why}"
                )


def shown_classes(source: Source) -> set[str]:
    """The classes of which a source has pictures; none if its data have no classes."""
    found: set[str] = set()
    for dataset in source.datasets:
        if (names := dataset.info.indexed_classes) is not None:
            numbers = np.unique(dataset.class_numbers())
            found |= {names[number] for number in numbers.tolist() if number != NO_CLASS}
    return found


def _place(folder: str) -> str:
    """A folder or the URL of one, by one name."""
    return without_credentials(folder) if "://" in folder else os.path.realpath(folder)


def _local_bytes(source: Source) -> float:
    """Bytes of a source's shards; infinitely many if some are elsewhere, and of chosen samples
    their share."""
    return sum(
        math.inf
        if dataset.is_remote
        else int(dataset.info.table.column("bytes").sum())
        * (dataset.num_samples / max(1, dataset.info.samples))
        for dataset in source.datasets
    )

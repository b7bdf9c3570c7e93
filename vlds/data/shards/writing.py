"""Writes shards, and describes them for dataset.json with an index beside each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlds.data.errors import ShardError
from vlds.data.shards.info import (
    DATASET_FILE,
    KIND,
    SCHEMA,
    DatasetInfo,
    ShardInfo,
    class_number,
    labels_of,
    numbered,
    sample_jsons,
)
from vlds.data.shards.remote_folder import Folder, fetched, files_in, read_from, write_into
from vlds.data.shards.sample import FEATURES, UNUSABLE
from vlds.data.shards.shard_index import (
    Counts,
    ShardIndex,
    beside,
    build_index,
    counts_of,
    tar_checksums,
)
from vlds.runtime.disk import writable
from vlds.runtime.files import whole_file, write_whole
from vlds.runtime.json_files import parse_json
from vlds.runtime.json_files import sha256 as file_sha256


class Unwanted(Exception):
    """Ends a shard that is not to be kept."""


class OpenShard:
    """A shard that is being written. It gets its name when it is whole, and is then indexed.

    Plain ustar, no times, no owners: the same samples give the same bytes.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        """`classes`: of a data set whose samples have one each."""
        from webdataset import TarWriter  # imports torch, for which a help page should not wait

        self.path = path
        self.numbers = None if classes is None else numbered(classes)
        # Entered here and left in `close` or `discard`: a shard is open over many calls.
        self._whole = whole_file(path)
        self.partial = self._whole.__enter__()
        self.file = open(self.partial, "wb")  # noqa: SIM115 (close or discard does)
        # mtime 0 keeps it plain ustar; otherwise PAX headers with the time differ in every run.
        self.tar = TarWriter(self.file, user="", group="", encoder=False, mtime=0)
        self.offsets = [0]
        self.counts: list[Counts] = []
        self.classes: list[int] = []

    def __enter__(self) -> OpenShard:
        return self

    def __exit__(self, *error: object) -> None:
        """Remove a shard that was not closed."""
        if not self.file.closed:
            self.discard()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.offsets[-1]

    def add(self, key: str, content: Mapping[str, bytes]) -> None:
        """Append one sample.

        Errors: ValueError for unfit ids or an unknown class; CannotWrite.
        """
        features = sum(name.endswith(FEATURES) for name in content)
        try:
            counts = counts_of(content["json"], features)
            if self.numbers is not None:
                self.classes.append(class_number(content["json"], self.numbers))
        except ValueError as error:
            raise ValueError(f"{self.path}, sample {key}: {error}; correct the source") from None
        with writable(self.path, self.partial):
            self.tar.write({"__key__": key, **content})
        # After the write: if that fails, the shard is discarded, and the index holds no sample
        # that the tar lacks.
        self.offsets.append(self.tar.tarstream.offset)
        self.counts.append(counts)

    def close(self) -> ShardInfo:
        """Finish, give it its name, index it.

        Errors: CannotWrite; then nothing is left of it.
        """
        try:
            with writable(self.path, self.partial):
                self.tar.close()
                self.file.close()
        except BaseException:  # Ctrl-C too: half a shard must not stay under a whole one's name
            self.discard()
            raise
        self._whole.__exit__(None, None, None)
        # Read back from the file: the checksums are of what arrived there.
        checksums = tar_checksums(self.path, self.offsets)
        classes = None if self.numbers is None else self.classes
        index = ShardIndex.of(self.offsets, self.counts, checksums, classes)
        return describe_shard(self.path, index)

    def discard(self) -> None:
        """Remove an unfinished shard."""
        for stream in (self.tar, self.file):
            with suppress(OSError):  # perhaps the full disk that led here
                stream.close()
        self._whole.__exit__(Unwanted, Unwanted(), None)


def describe_shard(tar: Path, index: ShardIndex) -> ShardInfo:
    """Write a shard's index beside it and describe it for dataset.json."""
    for suffix, data in index.files().items():
        write_whole(beside(tar, suffix), data)
    return _described(tar, index)


def _described(tar: Path, index: ShardIndex) -> ShardInfo:
    files = index.files()
    hashes = {f"{suffix[1:]}_sha256": sha256(data).hexdigest() for suffix, data in files.items()}
    return ShardInfo(
        name=tar.name,
        samples=len(index.counts),
        annotations=int(index.counts.sum()),
        bytes=tar.stat().st_size,
        sha256=file_sha256(tar),
        **hashes,
    )


def tars_in(folder: Folder) -> list[str]:
    """The names of a folder's tars, sorted."""
    return [name for name in files_in(folder, ".tar") if "/" not in name]


def index_folder(
    folder: Folder,
    *,
    name: str,
    kind: str,
    split: str,
    fields: Mapping[str, str] | None = None,
) -> DatasetInfo:
    """Make a data set of the tars in a folder, whoever wrote them; the tars stay as they are.
    `fields` map members of foreign samples to an annotation. Other records of an old dataset.json
    (its classes, its source, what was dropped, ...) are kept; without it, classes are sorted by
    name.

    Errors: ValueError if there is no tar, or a data set of another name, kind or split; ShardError
    for a damaged tar. Then nothing is written.
    """
    tars = tars_in(folder)
    if not tars:
        raise ValueError(f"{folder}: no *.tar to index")
    identity = {"name": name, "kind": kind, "split": split}
    old: Any = {}  # whose numbers may be wrong
    if (before := read_from(folder, DATASET_FILE)) is not None:
        with suppress(ValueError):
            old = parse_json(before)
    old = old if isinstance(old, dict) else {}
    for field, value in identity.items():
        if old.get(field, value) != value:
            raise ValueError(
                f"{field} {value}: {folder / DATASET_FILE} says {old[field]}; give that, or "
                f"remove {DATASET_FILE} to make another data set of its shards"
            )
    about = old | identity
    if fields is not None:
        about["fields"] = dict(fields)
    foreign = about.get("fields") is not None
    classes = None
    if kind == KIND:
        classes = about.get("classes")
        if not classes:
            labels = set[str]()
            for tar in tars:
                with fetched(folder, tar) as place:
                    labels |= _labels_in(place / tar)
            classes = sorted(labels)
        about["classes"] = classes
    # All indexes before the first file: a damaged tar leaves the folder as it was.
    indexes, shards = list[ShardIndex](), list[ShardInfo]()
    for tar in tars:
        with fetched(folder, tar) as place:
            indexes.append(build_index(place / tar, foreign=foreign, classes=classes))
            shards.append(_described(place / tar, indexes[-1]))
    for tar, index in zip(tars, indexes, strict=True):
        for suffix, data in index.files().items():
            write_into(folder, tar + suffix, data)
    about |= {
        "schema": SCHEMA,
        "shards": [vars(shard) for shard in shards],
        "samples": sum(shard.samples for shard in shards),
        "annotations": sum(shard.annotations for shard in shards),
    }
    info = DatasetInfo.parse(json.dumps(about).encode(), str(folder / DATASET_FILE))
    write_into(folder, DATASET_FILE, info.text())
    return info


def _labels_in(tar: Path) -> set[str]:
    """The classes of a shard's samples."""
    try:
        offsets = build_index(tar).offsets.tolist()
        labels = {label for data in sample_jsons(tar, offsets) for label in labels_of(data)}
    except UNUSABLE as error:
        raise ShardError(f"shard {tar}: {error}; correct its samples") from None
    return {label for label in labels if label is not None}

"""Samples -> shards: plain ustar WebDataset tars with their index, and dataset.json.

The same records give the same bytes: no times, no owners, consecutive cuts. A shard is written
under another name, synced and renamed, and dataset.json comes last: a folder that has one is
complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from vlds.data.index import (
    CNT_TYPE,
    DATASET_FILE,
    IDX_TYPE,
    SCHEMA,
    DatasetInfo,
    ShardIndex,
    ShardInfo,
    beside,
    describe_shard,
    file_sha256,
)

KEY_DIGITS = 9
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One sample to be: an image, image pair or clip with all its annotations."""

    id: str
    """Id of the source; unique in the data set."""
    members: Sequence[tuple[str, bytes]]
    """(extension, bytes) of everything but the json: jpg, left.png, right.png, features.npy, ..."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sample's json: "annotations", and "size", "source", ... where there are such.
    The writer adds "id" and, where not given, "images": the members that are pictures, in order."""


def shard_order(ids: Iterable[str]) -> list[str]:
    """The order in which samples go into shards: by the hash of their id, so each is a mixture."""
    return sorted(ids, key=lambda id: (blake2b(id.encode(), digest_size=8).digest(), id))


def write_dataset(
    out: Path,
    *,
    name: str,
    kind: str,
    split: str,
    records: Iterable[SampleRecord],
    shard_samples: int = 1000,
    shard_bytes: int = 512 * MIB,
    source: Sequence[Path] = (),
    dropped: Sequence[tuple[str, str]] = (),
    image: Mapping[str, Any] | None = None,
    features: Mapping[str, Any] | None = None,
    answers: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Write records, in their order, as the shards of one data set in the folder `out`.

    `dropped` is read after the last record, so the caller may fill it while it yields records. A
    folder that holds this data set (same name, kind, split) is written anew; one that holds another
    is refused, unless `overwrite`.
    """
    if shard_samples < 1 or shard_bytes < 1:
        raise ValueError(f"shards of {shard_samples} samples, {shard_bytes} bytes: give at least 1")
    _check_names(name, split)
    _make_room(out, (name, kind, split), overwrite)
    stem = f"{name}-{split}"
    shards = _write_shards(out, stem, records, shard_samples, shard_bytes)
    if not shards:
        reasons = f"; {len(dropped)} were dropped, the first: {dropped[0]}" if dropped else ""
        raise ValueError(f"data set {stem}: no samples to write{reasons}")
    kept = {shard.name for shard in shards}
    for path in out.glob(f"{stem}-*.tar*"):  # of an earlier, longer version
        if path.name.partition(".tar")[0] + ".tar" not in kept:
            path.unlink()
    info = DatasetInfo(
        schema=SCHEMA,
        name=name,
        kind=kind,
        split=split,
        shards=tuple(shards),
        samples=sum(shard.samples for shard in shards),
        annotations=sum(shard.annotations for shard in shards),
        image=image,
        features=features,
        answers=answers,
        source=tuple({"file": path.name, "sha256": file_sha256(path)} for path in source),
        tool={"version": _version(), "arguments": dict(arguments or {})},
        dropped=tuple({"id": id, "reason": reason} for id, reason in dropped),
    )
    info.save(out)
    return info


def _check_names(name: str, split: str) -> None:
    for what, value in (("name", name), ("split", split)):
        if not value or set(value) & set("./\\ \t\n"):
            raise ValueError(
                f"{what} {value!r}: it becomes part of file names; "
                "give one without dots, slashes and spaces"
            )


def _make_room(out: Path, identity: tuple[str, str, str], overwrite: bool) -> None:
    if (out / DATASET_FILE).exists() and not overwrite:
        there = DatasetInfo.load(out)
        found = there.name, there.kind, there.split
        if found != identity:
            raise ValueError(
                f"{out} holds another data set ({' '.join(found)}) than the one to write "
                f"({' '.join(identity)}): choose another folder, or ask to overwrite it"
            )
    out.mkdir(parents=True, exist_ok=True)


def _write_shards(
    out: Path, stem: str, records: Iterable[SampleRecord], max_samples: int, max_bytes: int
) -> list[ShardInfo]:
    """Cut the records consecutively into shards by the two limits."""
    shards: list[ShardInfo] = []
    shard: _Shard | None = None
    ids: set[str] = set()
    try:
        for number, record in enumerate(records):
            if record.id in ids:
                raise ValueError(
                    f"data set {stem}: id {record.id} comes twice; a sample holds ALL annotations"
                )
            ids.add(record.id)
            content = _content(record)
            size = sum(len(data) for data in content.values())
            if shard and (len(shard.counts) >= max_samples or shard.size + size > max_bytes):
                shards.append(shard.close())
                shard = None
            if not shards and shard is None:
                # From here on the folder is incomplete, and says so.
                (out / DATASET_FILE).unlink(missing_ok=True)
            shard = shard or _Shard(out / f"{stem}-{len(shards):05d}.tar")
            shard.add(f"{number:0{KEY_DIGITS}d}", content, len(record.json["annotations"]))
        if shard:
            shards.append(shard.close())
            shard = None
    finally:
        if shard:
            shard.discard()
    return shards


def _content(record: SampleRecord) -> dict[str, bytes]:
    """Extension -> bytes, the json among them."""
    content: dict[str, bytes] = {}
    for extension, data in record.members:
        if extension in content or extension == "json" or extension != extension.lower():
            raise ValueError(
                f'sample {record.id}: member "{extension}": '
                "extensions are lower case, differ, and are not json"
            )
        content[extension] = data
    if not isinstance(record.json.get("annotations"), list):
        raise ValueError(f'sample {record.id}: json needs a list "annotations"')
    pictures = [extension for extension in content if not extension.endswith("npy")]
    fields = {"id": record.id, "images": pictures, **record.json}
    if absent := [image for image in fields["images"] if image not in content]:
        raise ValueError(f"sample {record.id}: images {absent} are not among its members")
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return content | {"json": text.encode()}


class _Shard:
    """A shard that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = beside(path, ".partial")
        self.file = open(self.partial, "wb")  # noqa: SIM115 (close or discard does)
        # mtime 0 keeps it plain ustar; else members get PAX headers, and other bytes each time.
        self.tar = TarWriter(self.file, user="", group="", encoder=False, mtime=0)
        self.offsets = [0]
        self.counts: list[int] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.offsets[-1]

    def add(self, key: str, content: Mapping[str, bytes], annotations: int) -> None:
        """Append one sample."""
        self.tar.write({"__key__": key, **content})
        self.offsets.append(self.tar.tarstream.offset)
        self.counts.append(annotations)

    def close(self) -> ShardInfo:
        """Finish, sync, rename, index."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.partial.replace(self.path)
        index = ShardIndex(np.array(self.offsets, IDX_TYPE), np.array(self.counts, CNT_TYPE))
        return describe_shard(self.path, index)

    def discard(self) -> None:
        """Leave nothing of an unfinished shard."""
        with suppress(OSError):  # such as a full disk, which may be why
            self.tar.close()
        self.file.close()
        self.partial.unlink(missing_ok=True)


def _version() -> str:
    try:
        return version("vlds")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"

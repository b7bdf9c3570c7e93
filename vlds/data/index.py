"""What lies beside the shards: `.idx`, `.cnt` and dataset.json.

`NAME.tar.idx` holds little-endian u64[n+1], the offset of each sample's first header and the end of
the last one's data (the layout of Megatron-Energon); `NAME.tar.cnt` holds u32[n], annotations per
sample.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.tar import members, split_name

SCHEMA = 1
DATASET_FILE = "dataset.json"
IDX_TYPE = np.dtype("<u8")
CNT_TYPE = np.dtype("<u4")
REBUILD = "write its index anew with `python -m data_prep index`"
Info = TypeVar("Info", "ShardInfo", "DatasetInfo")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard as dataset.json describes it."""

    name: str
    """File name, in the folder of dataset.json."""
    samples: int
    annotations: int
    bytes: int
    sha256: str
    idx_sha256: str
    cnt_sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """dataset.json."""

    schema: int
    name: str
    kind: str
    """Kind of the annotations: vqa, gqa, nlvr2, caption, ..."""
    split: str
    shards: tuple[ShardInfo, ...]
    samples: int
    annotations: int
    image: Mapping[str, Any] | None = None
    """What was done to the pictures on their way in."""
    features: Mapping[str, Any] | None = None
    """Encoder, grid and image size of stored features."""
    answers: str | None = None
    """File with the answer vocabulary, in the folder of dataset.json."""
    fields: Mapping[str, str] | None = None
    """Of samples that others have written: field of an annotation -> member that holds it."""
    source: tuple[Mapping[str, str], ...] = ()
    """Files it was made from: {"file", "sha256"}."""
    tool: Mapping[str, Any] | None = None
    """Version and arguments of the program that wrote it."""
    dropped: tuple[Mapping[str, str], ...] = ()
    """Samples of the source that are not in the shards: {"id", "reason"}."""

    def save(self, folder: Path) -> None:
        """Write dataset.json: whole or not at all."""
        shards = [vars(shard) for shard in self.shards]
        text = json.dumps(vars(self) | {"shards": shards}, ensure_ascii=False, indent=1)
        write_atomically(folder / DATASET_FILE, (text + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> DatasetInfo:
        """Read dataset.json.

        Errors: ValueError that names the file and the field.
        """
        path = folder / DATASET_FILE
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(_no_dataset(folder)) from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, path: str) -> DatasetInfo:
        """Read the bytes of the dataset.json at `path`.

        Errors: ValueError that names the file and the field.
        """
        try:
            content = json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON ({error}); prepare the data set again") from None
        if isinstance(content, dict) and content.get("schema") != SCHEMA:
            raise ValueError(
                f"{path}: schema {content.get('schema')!r}, this program reads {SCHEMA}; "
                "prepare the data set again, or use the program's version that wrote it"
            )
        info = _build(cls, content, path)
        for field_name in ("samples", "annotations"):
            total = sum(getattr(shard, field_name) for shard in info.shards)
            if total != getattr(info, field_name):
                raise ValueError(
                    f"{path}: {field_name} is {getattr(info, field_name)}, but its shards hold "
                    f"{total}; {REBUILD}"
                )
        return info


def _no_dataset(folder: Path) -> str:
    if not folder.is_dir():
        return f"data set {folder}: no such folder; check the path, or prepare it with data_prep"
    if any(folder.glob("*.tar")):
        return (
            f"data set {folder}: tar files but no {DATASET_FILE}: its preparation did not end, or "
            "they come from elsewhere; prepare it again, or index it: `python -m data_prep index`"
        )
    inside = sorted(str(p.parent) for p in folder.glob("*/" + DATASET_FILE))
    found = f"data sets inside it: {', '.join(inside)}" if inside else "see `python -m data_prep`"
    return (
        f"data set {folder}: no {DATASET_FILE} in this folder; name one that holds a data set: "
        f"{found}"
    )


def _build(cls: type[Info], content: Any, where: str) -> Info:
    """A dataclass from JSON, strict about names and types."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: a JSON object is needed, found {type(content).__name__}")
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    missing = [n for n, f in known.items() if f.default is MISSING and n not in content]
    if missing:
        raise ValueError(f"{where}: no {', '.join(missing)}; prepare the data set again")
    if unknown := sorted(set(content) - set(known)):
        raise ValueError(
            f"{where}: unknown field {', '.join(unknown)}; known are {', '.join(known)}"
        )
    values: dict[str, Any] = {}
    for name, value in content.items():
        expected = hints[name]
        if expected in (int, str) and (not isinstance(value, expected) or isinstance(value, bool)):
            raise ValueError(f"{where}: {name} is {value!r}, {expected.__name__} expected")
        if isinstance(value, list):
            value = tuple(value)
        if name == "shards":
            value = tuple(_build(ShardInfo, v, f"{where}, shard {i}") for i, v in enumerate(value))
        values[name] = value
    return cls(**values)


@dataclass(frozen=True)
class ShardIndex:
    """Offsets and counts of one shard."""

    offsets: np.ndarray
    """u64[n+1]."""
    counts: np.ndarray
    """u32[n]."""

    def save(self, tar: Path) -> tuple[str, str]:
        """Write `.idx` and `.cnt` beside the tar; their sha256."""
        idx, cnt = self.offsets.astype(IDX_TYPE).tobytes(), self.counts.astype(CNT_TYPE).tobytes()
        write_atomically(beside(tar, ".idx"), idx)
        write_atomically(beside(tar, ".cnt"), cnt)
        return sha256(idx).hexdigest(), sha256(cnt).hexdigest()


def load_index(folder: Path, shard: ShardInfo, *, foreign: bool = False) -> ShardIndex:
    """Index of a shard, from the files beside it or, where these are gone, from the shard itself.

    Errors: ShardError where the shard or its index is not what dataset.json says.
    """
    tar = folder / shard.name
    try:
        size = tar.stat().st_size
    except OSError as error:
        raise ShardError(
            f"shard {tar} cannot be read ({error.strerror}); "
            "copy it again, or prepare the data set again"
        ) from None
    if size != shard.bytes:
        what = "cut" if size < shard.bytes else "not the one"
        raise ShardError(
            f"shard {tar} has {size} bytes, {DATASET_FILE} says {shard.bytes}: the file is {what}; "
            "copy it again, or prepare the data set again"
        )
    idx, cnt = _sidecars(tar, foreign)
    for data, suffix, expected in (
        (idx, ".idx", shard.idx_sha256),
        (cnt, ".cnt", shard.cnt_sha256),
    ):
        if sha256(data).hexdigest() != expected:
            raise ShardError(
                f"{beside(tar, suffix)} is not the one that {DATASET_FILE} describes (other "
                f"sha256); remove it, so that it is made from the shard, or {REBUILD}"
            )
    return ShardIndex(np.frombuffer(idx, IDX_TYPE), np.frombuffer(cnt, CNT_TYPE))


def _sidecars(tar: Path, foreign: bool) -> tuple[bytes, bytes]:
    paths = beside(tar, ".idx"), beside(tar, ".cnt")
    if all(path.exists() for path in paths):
        return paths[0].read_bytes(), paths[1].read_bytes()
    index = build_index(tar, foreign=foreign)
    return index.offsets.astype(IDX_TYPE).tobytes(), index.counts.astype(CNT_TYPE).tobytes()


def build_index(tar: Path, *, foreign: bool = False) -> ShardIndex:
    """Index of a shard from its headers and its samples' json; `foreign` ones have one annotation
    each.

    Errors: ShardError on damage, and where a sample has no json.
    """
    offsets: list[int] = []
    counts: list[int] = []
    last, end = None, 0
    with open(tar, "rb") as file:
        descriptor = file.fileno()

        def read(offset: int, size: int) -> bytes:
            return os.pread(descriptor, size, offset)

        try:
            for member in members(read, 0, None):
                key, extension = split_name(member.name)
                if key != last:
                    _require_json(counts, last)
                    offsets.append(member.header)
                    counts.append(1 if foreign else -1)
                    last = key
                if extension == "json" and not foreign:
                    counts[-1] = len(json.loads(read(member.start, member.size))["annotations"])
                end = member.end
        except (ValueError, KeyError, TypeError) as error:
            reason = error if isinstance(error, ShardError) else f"unusable json ({error!r})"
            raise ShardError(
                f"shard {tar}, sample {len(offsets)}: {reason}; copy or prepare it again"
            ) from None
        _require_json(counts, last)
        if end > os.fstat(descriptor).st_size:
            raise ShardError(f"shard {tar} is cut inside sample {last}; copy or prepare it again")
    return ShardIndex(np.array([*offsets, end], IDX_TYPE), np.array(counts, CNT_TYPE))


def _require_json(counts: list[int], key: str | None) -> None:
    if counts and counts[-1] < 0:
        raise ShardError(
            f'sample {key} has no member "json", which holds its annotations; for samples that '
            "others have written, see `python -m data_prep index --fields`"
        )


def describe_shard(tar: Path, index: ShardIndex) -> ShardInfo:
    """Write a shard's index beside it and describe it for dataset.json."""
    idx_sha256, cnt_sha256 = index.save(tar)
    return ShardInfo(
        name=tar.name,
        samples=len(index.counts),
        annotations=int(index.counts.sum()),
        bytes=tar.stat().st_size,
        sha256=file_sha256(tar),
        idx_sha256=idx_sha256,
        cnt_sha256=cnt_sha256,
    )


def index_folder(
    folder: Path,
    *,
    name: str,
    kind: str,
    split: str,
    fields: Mapping[str, str] | None = None,
) -> DatasetInfo:
    """Make a data set of the tars in a folder, whoever wrote them; they stay as they are. `fields`
    say which members of foreign samples are what."""
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"{folder}: no *.tar to index")
    foreign = fields is not None
    shards = tuple(describe_shard(tar, build_index(tar, foreign=foreign)) for tar in tars)
    info = DatasetInfo(
        schema=SCHEMA,
        name=name,
        kind=kind,
        split=split,
        shards=shards,
        samples=sum(shard.samples for shard in shards),
        annotations=sum(shard.annotations for shard in shards),
        fields=fields,
    )
    info.save(folder)
    return info


def beside(tar: Path, suffix: str) -> Path:
    """Path of a file that lies beside a shard: NAME.tar + suffix."""
    return tar.with_name(tar.name + suffix)


def file_sha256(path: Path) -> str:
    """Hash of a whole file."""
    total = sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """The file is there with all its bytes, or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

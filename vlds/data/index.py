"""What lies beside the shards: `.idx` and `.cnt`.

`NAME.tar.idx` holds little-endian u64[n+1], the offset of each sample's first header and the end of
the last one's data (the layout of Megatron-Energon); `NAME.tar.cnt` holds u32[n], annotations per
sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from vlds.data.errors import ShardError
from vlds.data.info import DATASET_FILE, REBUILD, SCHEMA, DatasetInfo, ShardInfo
from vlds.data.tar import members, split_name
from vlds.manifest import sha256 as file_sha256
from vlds.runtime.json_file import parse_member, read_json
from vlds.runtime.regular_file import open_file, read_file
from vlds.runtime.whole_file import write_whole

IDX_TYPE = np.dtype("<u8")
CNT_TYPE = np.dtype("<u4")


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
        write_whole(beside(tar, ".idx"), idx)
        write_whole(beside(tar, ".cnt"), cnt)
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
        return read_file(paths[0]), read_file(paths[1])
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
    with open_file(tar) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size

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
                if member.start + member.size > size:
                    raise ShardError(f"it is cut inside {member.name}")
                if extension == "json" and not foreign:
                    counts[-1] = len(parse_member(read(member.start, member.size))["annotations"])
                end = member.end
        except (ValueError, KeyError, TypeError) as error:
            reason = error if isinstance(error, ShardError) else f"unusable json ({error!r})"
            raise ShardError(
                f"shard {tar}, sample {len(offsets)}: {reason}; copy or prepare it again"
            ) from None
        _require_json(counts, last)
        if end > size:
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
    say which members of foreign samples are what. What a dataset.json that lies there says beyond
    the shards (its source, what was dropped, ...) is kept.

    Errors: ValueError where there is no tar, or the folder holds a data set of another name, kind
    or split; ShardError where a tar is damaged. Then nothing is written.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"{folder}: no *.tar to index")
    asked = {"name": name, "kind": kind, "split": split}
    about = _record(folder, asked) | asked
    if fields is not None:
        about["fields"] = dict(fields)
    foreign = about.get("fields") is not None
    indexes = [build_index(tar, foreign=foreign) for tar in tars]
    shards = [describe_shard(tar, index) for tar, index in zip(tars, indexes, strict=True)]
    about |= {
        "schema": SCHEMA,
        "shards": [vars(shard) for shard in shards],
        "samples": sum(shard.samples for shard in shards),
        "annotations": sum(shard.annotations for shard in shards),
    }
    info = DatasetInfo.parse(json.dumps(about).encode(), str(folder / DATASET_FILE))
    info.save(folder)
    return info


def _record(folder: Path, asked: Mapping[str, str]) -> dict[str, Any]:
    """What lies in dataset.json, though its numbers may be wrong; nothing where it is no JSON."""
    try:
        content = read_json(folder / DATASET_FILE)
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    for field, value in asked.items():
        if content.get(field, value) != value:
            raise ValueError(
                f"{field} {value}: {folder / DATASET_FILE} says {content[field]}; give that, or "
                f"remove {DATASET_FILE} to make another data set of its shards"
            )
    return content


def beside(tar: Path, suffix: str) -> Path:
    """Path of a file that lies beside a shard: NAME.tar + suffix."""
    return tar.with_name(tar.name + suffix)

"""The indexes of a data set: loaded with it, or made of the tars in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlds.data.errors import ShardError
from vlds.data.shards.info import DATASET_FILE, REBUILD, SCHEMA, DatasetInfo, ShardInfo
from vlds.data.shards.shard_index import ShardIndex, beside, build_index
from vlds.runtime.json_file import read_json
from vlds.runtime.manifest import sha256 as file_sha256
from vlds.runtime.regular_file import check_file, read_file

AGAIN = "copy it again, or prepare the data set again"


def load_index(folder: Path, shard: ShardInfo, *, foreign: bool = False) -> ShardIndex:
    """The index of a shard, from the files beside it or, if one is missing, from the shard itself.

    Errors: ShardError if the shard or its index is not as dataset.json describes it.
    """
    tar = folder / shard.name
    try:
        size = check_file(tar)
    except OSError as error:
        raise ShardError(f"shard {tar} cannot be read ({error.strerror}); {AGAIN}") from None
    if size != shard.bytes:
        what = "cut" if size < shard.bytes else "not the one"
        raise ShardError(
            f"shard {tar} has {size} bytes, {DATASET_FILE} says {shard.bytes}: the file is {what}; "
            f"{AGAIN}"
        )
    paths = {suffix: beside(tar, suffix) for suffix in shard.index_hashes}
    if all(path.exists() for path in paths.values()):
        files = {suffix: read_file(path) for suffix, path in paths.items()}
        wrong = f"remove it, so that it is made from the shard, or {REBUILD}"
    else:
        files = build_index(tar, foreign=foreign).files()
        wrong = f"it was made from the shard, which is not the one either: {AGAIN}"
    for suffix, expected in shard.index_hashes.items():
        if sha256(files[suffix]).hexdigest() != expected:
            raise ShardError(
                f"{paths[suffix]} is not the one that {DATASET_FILE} describes (other sha256); "
                f"{wrong}"
            )
    return ShardIndex.parse(files, shard, str(tar))


def describe_shard(tar: Path, index: ShardIndex) -> ShardInfo:
    """Write a shard's index beside it and describe it for dataset.json."""
    hashes = index.save(tar)
    return ShardInfo(
        name=tar.name,
        samples=len(index.counts),
        annotations=int(index.counts.sum()),
        bytes=tar.stat().st_size,
        sha256=file_sha256(tar),
        idx_sha256=hashes[".idx"],
        cnt_sha256=hashes[".cnt"],
        crc_sha256=hashes[".crc"],
    )


def index_folder(
    folder: Path,
    *,
    name: str,
    kind: str,
    split: str,
    fields: Mapping[str, str] | None = None,
) -> DatasetInfo:
    """Make a data set of the tars in a folder, whoever wrote them; the tars stay as they are.
    `fields` map members of foreign samples to an annotation. Other records of an old dataset.json
    (its source, what was dropped, ...) are kept.

    Errors: ValueError if there is no tar, or a data set of another name, kind or split; ShardError
    for a damaged tar. Then nothing is written.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"{folder}: no *.tar to index")
    asked = {"name": name, "kind": kind, "split": split}
    about = _old_record(folder, asked) | asked
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


def _old_record(folder: Path, asked: Mapping[str, str]) -> dict[str, Any]:
    """The old dataset.json, whose numbers may be wrong; {} if it is missing or not JSON."""
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

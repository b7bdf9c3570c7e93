"""dataset.json: what a folder of shards holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.data.shards.class_numbers import KIND
from vlds.runtime.json_file import parse_json
from vlds.runtime.json_record import parse_record
from vlds.runtime.regular_file import read_file
from vlds.runtime.whole_file import write_whole

SCHEMA = 2
DATASET_FILE = "dataset.json"
REBUILD = "write its index again with `python -m data_prep index`"


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
    crc_sha256: str
    cls_sha256: str | None = None
    """None if its samples have no class."""

    def __post_init__(self) -> None:
        # A foreign dataset.json must not lead to files outside its folder.
        if self.name in ("", ".", "..") or set("/\\\0") & set(self.name):
            raise ValueError(f"name is {self.name!r}, a file name expected")

    @property
    def index_hashes(self) -> dict[str, str]:
        """Suffix of each file beside the shard -> its sha256."""
        hashes = {".idx": self.idx_sha256, ".cnt": self.cnt_sha256, ".crc": self.crc_sha256}
        return hashes if self.cls_sha256 is None else hashes | {".cls": self.cls_sha256}


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
    """How the pictures were converted."""
    features: Mapping[str, Any] | None = None
    """Encoder, grid and image size of stored features."""
    answers: str | None = None
    """File with the answer vocabulary, in the folder of dataset.json."""
    classes: tuple[str, ...] | None = None
    """All labels that its annotations may have, in the order of their numbers; the same list in all
    splits."""
    fields: Mapping[str, str] | None = None
    """Of foreign samples: field of an annotation -> member that holds it."""
    source: tuple[Mapping[str, str], ...] = ()
    """Files it was made from: {"file", "sha256"}."""
    tool: Mapping[str, Any] | None = None
    """Version and arguments of the program that wrote it."""
    dropped: tuple[Mapping[str, str], ...] = ()
    """Samples of the source that were left out: {"id", "reason"}."""

    def __post_init__(self) -> None:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes holds a name twice")
        is_indexed = self.indexed_classes is not None
        if any((shard.cls_sha256 is not None) != is_indexed for shard in self.shards):
            raise ValueError(
                f"shards have cls_sha256 if the kind is {KIND} and classes is there, else they do "
                "not"
            )

    @property
    def indexed_classes(self) -> tuple[str, ...] | None:
        """The classes, if each sample has one, whose number is in the index."""
        return self.classes if self.kind == KIND else None

    def save(self, folder: Path) -> None:
        """Write dataset.json."""
        shards = [vars(shard) for shard in self.shards]
        text = json.dumps(vars(self) | {"shards": shards}, ensure_ascii=False, indent=1)
        write_whole(folder / DATASET_FILE, text + "\n")

    @classmethod
    def load(cls, folder: Path) -> DatasetInfo:
        """Read dataset.json.

        Errors: ValueError that names the file and the field.
        """
        path = folder / DATASET_FILE
        try:
            data = read_file(path)
        except OSError:
            if path.exists():  # not if a file stands where the folder should be
                raise
            raise ValueError(_no_dataset(folder)) from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, path: str) -> DatasetInfo:
        """Read the bytes of the dataset.json at `path`.

        Errors: ValueError that names the file and the field.
        """
        try:
            content = parse_json(data)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); prepare the data set again") from None
        if isinstance(content, dict) and content.get("schema") != SCHEMA:
            raise ValueError(_other_schema(content, path))
        try:
            info = parse_record(cls, data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; prepare the data set again") from None
        if any(not {"id", "reason"} <= entry.keys() for entry in info.dropped):
            raise ValueError(f"{path}: an entry of dropped has no id or no reason; {REBUILD}")
        for field_name in ("samples", "annotations"):
            total = sum(getattr(shard, field_name) for shard in info.shards)
            if total != getattr(info, field_name):
                raise ValueError(
                    f"{path}: {field_name} is {getattr(info, field_name)}, but its shards hold "
                    f"{total}; {REBUILD}"
                )
        return info


def _other_schema(content: Mapping[str, Any], path: str) -> str:
    """The message about a dataset.json of another version; for an older one, how to renew it."""
    schema = content.get("schema")
    message = f"{path}: schema {schema!r}, this program reads {SCHEMA}; "
    if not isinstance(schema, int) or schema > SCHEMA:
        return message + "prepare the data set again, or use the program's version that wrote it"
    options = " ".join(f"--{name} {content.get(name)}" for name in ("name", "kind", "split"))
    return f"{message}index it again: `python -m data_prep index FOLDER {options}`"


def _no_dataset(folder: Path) -> str:
    if not folder.is_dir():
        return f"data set {folder}: no such folder; check the path, or prepare it with data_prep"
    if any(folder.glob("*.tar")):
        return (
            f"data set {folder}: tar files but no {DATASET_FILE}: its preparation did not end, or "
            "they come from elsewhere; prepare it again, or index it: `python -m data_prep index`"
        )
    inside = sorted(str(p.parent) for p in folder.glob("*/" + DATASET_FILE))
    hint = f"data sets inside it: {', '.join(inside)}" if inside else "see `python -m data_prep`"
    return (
        f"data set {folder}: no {DATASET_FILE} in this folder; name one that holds a data set: "
        f"{hint}"
    )


def check_names(name: str, split: str) -> None:
    """Errors: ValueError for a name or split that cannot be part of file names."""
    for what, value in (("name", name), ("split", split)):
        if not value.isprintable() or not value or set(value) & set("./\\ "):
            raise ValueError(
                f"{what} {value!r}: it becomes part of file names; "
                "give one without dots, slashes and spaces"
            )

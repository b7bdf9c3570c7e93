"""dataset.json: what a folder of shards holds; and the classes of an image_class data set.

Which class each sample of an image_class data set has is known without a look into the shards:
`NAME.tar.cls` holds u32[n], the place of each sample's label in the list "classes" of dataset.json,
or NO_CLASS for a sample without a label (a test split).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vlds.data.shards.tar import read_members
from vlds.runtime.files import open_file, read_file, write_whole
from vlds.runtime.json_files import in_words, parse_json, parse_member, parse_record
from vlds.runtime.terminal import shell_command

SCHEMA = 2
LEARNED = ("train", "training")
"""Splits to learn from, in any case."""
DATASET_FILE = "dataset.json"
QUARANTINE_FILE = "quarantine.jsonl"
REBUILD = "write its index again with `vlds data index`"
KIND = "image_class"
"""Kind of the samples that have a class."""
ODD_CLASSES = f"shards have cls_sha256 if the kind is {KIND} and classes is there, else they do not"
HASH = re.compile(r"[0-9a-f]{64}")


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
        for field in HASHES:
            digest = getattr(self, field)
            if not HASH.fullmatch(digest or "") and (field, digest) != ("cls_sha256", None):
                raise ValueError(f"{field} is {digest!r:.100}, 64 hexadecimal digits expected")

    @property
    def index_hashes(self) -> dict[str, str]:
        """Suffix of each file beside the shard -> its sha256."""
        hashes = {".idx": self.idx_sha256, ".cnt": self.cnt_sha256, ".crc": self.crc_sha256}
        return hashes if self.cls_sha256 is None else hashes | {".cls": self.cls_sha256}

    @property
    def files(self) -> list[str]:
        """Names of the shard and of the files beside it."""
        return [self.name, *(self.name + suffix for suffix in self.index_hashes)]


COUNTS = ("samples", "annotations", "bytes")
LARGE, PIECE = 16 << 20, 4096
"""Bytes of a dataset.json whose shards are parsed so many at a time, which is how they are hashed
too."""
MOST_MADE = 4096
"""Objects that a table keeps."""
HASHES = ("sha256", "idx_sha256", "cnt_sha256", "crc_sha256", "cls_sha256")


class ShardTable(Sequence[ShardInfo]):
    """The shards of a data set. As arrays: of a million objects with their texts, each process
    would hold 1.6 GB, and here it holds 0.2."""

    def __init__(self, shards: Iterable[ShardInfo]) -> None:
        """Errors: ValueError for a number that does not fit 64 bits, or if some shards have classes
        and some have none."""
        rows = list(shards)
        if len({shard.cls_sha256 is None for shard in rows}) > 1:
            raise ValueError(ODD_CLASSES)
        names = [shard.name.encode("utf-8", "surrogatepass") for shard in rows]
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        try:
            table = [[getattr(shard, name) for name in COUNTS] for shard in rows]
            self._counts = np.array(table, np.int64).reshape(-1, len(COUNTS))
        except OverflowError:
            raise ValueError("shards: a number in it does not fit 64 bits") from None
        self.has_classes = bool(rows) and rows[0].cls_sha256 is not None
        self._used = HASHES if self.has_classes else HASHES[:-1]
        digests = "".join(getattr(shard, name) for shard in rows for name in self._used)
        flat = np.frombuffer(bytes.fromhex(digests), np.uint8)
        self._hashes = flat.reshape(-1, len(self._used), 32)
        self._made: dict[int, ShardInfo] = {}

    @classmethod
    def joined(cls, parts: Sequence[ShardTable]) -> ShardTable:
        """Several tables as one. Errors: ValueError as above."""
        if len({part.has_classes for part in parts}) > 1:
            raise ValueError(ODD_CLASSES)
        table = cls([])
        if parts:
            table.has_classes, table._used = parts[0].has_classes, parts[0]._used
            table._names = b"".join(part._names for part in parts)
            lengths = np.concatenate([np.diff(part._ends) for part in parts])
            table._ends = np.concatenate([[0], np.cumsum(lengths)])
            table._counts = np.concatenate([part._counts for part in parts])
            table._hashes = np.concatenate([part._hashes for part in parts])
        return table

    def __len__(self) -> int:
        return len(self._counts)

    @overload
    def __getitem__(self, index: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ShardInfo]: ...
    def __getitem__(self, index: int | slice) -> ShardInfo | Sequence[ShardInfo]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if (known := self._made.get(index)) is not None:
            return known
        counts = self._counts[index].tolist()  # raises IndexError
        index %= len(self)
        name = self._names[self._ends[index] : self._ends[index + 1]]
        digests = [digest.tobytes().hex() for digest in self._hashes[index]]
        shard = ShardInfo(
            name=name.decode("utf-8", "surrogatepass"),
            **dict(zip(COUNTS, counts, strict=True)),
            **dict(zip(self._used, digests, strict=True)),
        )
        # Each read of a sample asks for its shard.
        if len(self._made) >= MOST_MADE:
            self._made.clear()
        self._made[index] = shard
        return shard

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> NDArray[np.int64]:
        """One of COUNTS of all shards."""
        return self._counts[:, COUNTS.index(name)]

    def digest(self, *names: str) -> str:
        """A hash of some of the HASHES of all shards."""
        numbers = [HASHES.index(name) for name in names]
        digest = sha256()
        # As text: that is how states have it.
        for first in range(0, len(self), PIECE):
            part = self._hashes[first : first + PIECE, numbers]
            digest.update(np.ascontiguousarray(part).tobytes().hex().encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """dataset.json."""

    schema: int
    name: str
    kind: str
    """Kind of the annotations: vqa, gqa, nlvr2, caption, ..."""
    split: str
    shards: Sequence[ShardInfo]
    """A `ShardTable`, whatever it is made of."""
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
    """Field of an annotation -> member of a foreign sample that holds it."""
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
        table = self.shards if isinstance(self.shards, ShardTable) else ShardTable(self.shards)
        if len(table) and table.has_classes != is_indexed:
            raise ValueError(ODD_CLASSES)
        object.__setattr__(self, "shards", table)  # frozen

    @property
    def table(self) -> ShardTable:
        """The shards."""
        assert isinstance(self.shards, ShardTable)
        return self.shards

    @property
    def may_show_clips(self) -> bool:
        """False if it is known to hold no frames of clips."""
        return self.kind == "chat" and (self.image is None or "frames" in self.image)

    @property
    def indexed_classes(self) -> tuple[str, ...] | None:
        """The classes, if each sample has one, whose number is in the index."""
        return self.classes if self.kind == KIND else None

    def save(self, folder: Path) -> None:
        """Write dataset.json."""
        write_whole(folder / DATASET_FILE, self.text())

    def text(self) -> str:
        """The content of dataset.json."""
        shards = [vars(shard) for shard in self.shards]
        return json.dumps(vars(self) | {"shards": shards}, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def load(cls, folder: Path) -> DatasetInfo:
        """Read dataset.json.

        Errors: ValueError that names the file and the field.
        """
        path = folder / DATASET_FILE
        try:
            data = read_file(path)
        except OSError:
            if path.exists():  # False if the folder itself is a file
                raise
            if not folder.is_dir():
                what = "no such folder; check the path, or prepare it with `vlds data`"
            elif any(folder.glob("*.tar")):
                what = (
                    f"tar files but no {DATASET_FILE}: its preparation did not end, or they come "
                    "from elsewhere; prepare it again, or index it: `vlds data index`"
                )
            else:
                inside = sorted(str(p.parent) for p in folder.glob("*/" + DATASET_FILE))
                what = f"no {DATASET_FILE} in this folder; name one that holds a data set: " + (
                    f"data sets inside it: {', '.join(inside)}" if inside else "see `vlds data`"
                )
            raise ValueError(f"data set {folder}: {what}") from None
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, path: str) -> DatasetInfo:
        """Read the bytes of the dataset.json at `path`.

        Errors: ValueError that names the file and the field.
        """
        text, pieces = "", list[slice]()
        try:
            if len(data) > LARGE:
                # Objects of a million shards would take 4 GB for a while, and leave holes.
                text = data.decode()
                data, pieces = shards_apart(text)
            content = parse_json(data)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path} is not JSON ({in_words(error)}); prepare the data set again"
            ) from None
        # Before the other fields, which another schema may name differently.
        if isinstance(content, dict) and (schema := content.get("schema")) != SCHEMA:
            cure = "prepare the data set again, or use the program's version that wrote it"
            if isinstance(schema, int) and schema <= SCHEMA:
                words = [w for k in ("name", "kind", "split") for w in (f"--{k}", content.get(k))]
                cure = f"index it again: `vlds data index FOLDER {shell_command(*words)}`"
            raise ValueError(f"{path}: schema {schema!r}, this program reads {SCHEMA}; {cure}")
        try:
            lists = (parse_record(list[ShardInfo], f"[{text[piece]}]") for piece in pieces)
            tables = [ShardTable(shards) for shards in lists]
            info = parse_record(cls, data)
            if tables:
                info = replace(info, shards=ShardTable.joined(tables))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; prepare the data set again") from None
        if any(not {"id", "reason"} <= entry.keys() for entry in info.dropped):
            raise ValueError(f"{path}: an entry of dropped has no id or no reason; {REBUILD}")
        # They differ in a file that was edited by hand, or joined from two.
        for field_name in ("samples", "annotations"):
            total = sum(info.table.column(field_name).tolist())
            if total != getattr(info, field_name):
                raise ValueError(
                    f"{path}: {field_name} is {getattr(info, field_name)}, but its shards hold "
                    f"{total}; {REBUILD}"
                )
        return info


def shards_apart(text: str) -> tuple[bytes, list[slice]]:
    """dataset.json with an empty list of shards, and where in it are a few thousand shards each.

    Errors: ValueError or IndexError for what is not a JSON object.
    """
    skip = json.JSONDecoder().raw_decode
    place, pieces, empty = _expect("{", text, 0), [], text
    while text[place] != "}":
        key, place = skip(text, place)
        place = begin = _expect(":", text, _after_space(text, place))
        if key == "shards" and text[place] == "[":
            place = _after_space(text, place + 1)
            while text[place] != "]":
                first = place
                for _ in range(PIECE):
                    _, end = skip(text, place)
                    place = _after_space(text, end)
                    if text[place] != ",":
                        break
                    place = _after_space(text, place + 1)
                pieces.append(slice(first, end))
            empty = f"{text[:begin]}[]{text[place + 1 :]}"
            place += 1
        else:
            _, place = skip(text, place)
        place = _after_space(text, place)
        if text[place] != "}":
            place = _expect(",", text, place)
    return empty.encode(), pieces


def _after_space(text: str, place: int) -> int:
    while text[place] in " \t\n\r":
        place += 1
    return place


def _expect(mark: str, text: str, place: int) -> int:
    if text[place] != mark:
        raise ValueError(f"{mark!r} expected at character {place:,}")
    return _after_space(text, place + 1)


def check_names(name: str, split: str) -> None:
    """Errors: ValueError for a name or split that cannot be part of file names."""
    for what, value in (("name", name), ("split", split)):
        if not value.isprintable() or not value or set(value) & set("./\\ "):
            raise ValueError(
                f"{what} {value!r}: it becomes part of file names; "
                "give one without dots, slashes and spaces"
            )


CLS_TYPE = np.dtype("<u4")
NO_CLASS = 0xFFFFFFFF


def numbered(classes: Sequence[str]) -> dict[str, int]:
    """Class -> its number."""
    return {name: number for number, name in enumerate(classes)}


def class_number(json: bytes, numbers: Mapping[str, int]) -> int:
    """The number of a sample's class, from its json.

    Errors: ValueError for a sample with several annotations, or an unknown class.
    """
    labels = labels_of(json)
    if len(labels) != 1:
        raise ValueError(f"it has {len(labels)} annotations; a picture of a class has one")
    if (label := labels[0]) is None:
        return NO_CLASS
    if label not in numbers:
        raise ValueError(f"{label[:60]!r} is not one of the {len(numbers):,} classes")
    return numbers[label]


def labels_of(json: bytes) -> list[str | None]:
    """The label of each annotation of a sample, None for one without.

    Errors: ValueError for a label that is not text; UNUSABLE for malformed json.
    """
    labels = [annotation.get("label") for annotation in parse_member(json)["annotations"]]
    if odd := [label for label in labels if not isinstance(label, str | None)]:
        raise ValueError(f"its label is {odd[0]!r:.60}, text expected")
    return labels


def sample_jsons(tar: Path, offsets: Sequence[int]) -> Iterator[bytes]:
    """The json of each sample between one offset of a shard and the next."""
    with open_file(tar) as file:
        for begin, end in pairwise(offsets):
            data = memoryview(os.pread(file.fileno(), end - begin, begin))
            yield bytes(read_members(data, begin)[1]["json"])

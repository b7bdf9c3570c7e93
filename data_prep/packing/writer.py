"""Samples -> shards: plain ustar WebDataset tars with their index, and dataset.json.

The same records give the same bytes: tars have no times and owners, and samples stay in order. A
shard is written under another name, synced and renamed; dataset.json comes last, so that a folder
with one is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlds.data.shards.info import (
    DATASET_FILE,
    KIND,
    QUARANTINE_FILE,
    SCHEMA,
    DatasetInfo,
    ShardInfo,
    check_names,
)
from vlds.data.shards.remote_folder import Folder, RemoteFolder
from vlds.data.shards.sample import feature_bytes
from vlds.data.shards.shard_index import beside, index_sizes
from vlds.data.shards.writing import OpenShard
from vlds.runtime.disk import check_names_own, check_own, make_folder, writable
from vlds.runtime.files import read_file, write_whole
from vlds.runtime.json_files import sha256 as file_sha256
from vlds.runtime.terminal import tell

from .clip import BadClip, Frames, read_clip
from .picture import BadPicture, Picture, PictureRule, is_there, prepare_picture
from .source import (
    Annotation,
    BadFeatures,
    Dropped,
    Finished,
    Journal,
    SourceSample,
    count_reasons,
    parts_of,
)

PAIR = ("left", "right")
Shape = tuple[int, int]
"""(tokens, dim) of features."""
KEY_DIGITS = 9
LISTING = "names of the pictures"
"""Stands for a file among the sources, if a folder is the source."""


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """One sample to write: an image, image pair or clip with all its annotations."""

    id: str
    """The source's id; unique in the data set."""
    members: Sequence[tuple[str, bytes]]
    """(extension, bytes) of everything but the json: jpg, left.png, right.png, features.npy, ..."""
    json: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sample's json: "annotations" and any others, such as "size" and "source". The
    writer adds "id" and, unless given, "images": the members that are pictures, in order."""
    remarks: Collection[str] = ()
    """Those on its pictures, as in `Picture`."""


@dataclass(frozen=True, kw_only=True)
class ShardLimits:
    """The most that a shard holds."""

    samples: int = 1000
    bytes: int = 512 << 20


DEFAULT_LIMITS = ShardLimits()


def common_shape(samples: Iterable[SourceSample]) -> Shape | None:
    """Shape of the first readable features; None without any."""
    # Samples are in the order of the shards, so a resumed command finds the same shape.
    for sample in samples:
        for file in sample.features:
            try:
                tokens, dim = file.read().shape
            except BadFeatures:
                continue
            return tokens, dim
    return None


def try_record(
    sample: SourceSample, rule: PictureRule, shape: Shape | None, skip_missing: bool = False
) -> SampleRecord | Dropped:
    """The record of a sample, or why it is dropped; all features must have the given shape."""
    if not sample.annotations:
        return Dropped(sample.id, "no annotation")
    if skip_missing and not all(map(is_there, sample.images)):
        noun = "clip" if sample.clips else "picture"
        return Dropped(sample.id, f"{noun}: missing")
    try:
        return _make_record(sample, rule, shape)
    except BadPicture as reason:
        return Dropped(sample.id, f"picture: {reason}")
    except BadClip as reason:
        return Dropped(sample.id, f"clip: {reason}")
    except BadFeatures as reason:
        return Dropped(sample.id, f"features: {reason}")


def _make_record(sample: SourceSample, rule: PictureRule, shape: Shape | None) -> SampleRecord:
    pictures: list[Picture] = []
    clips: dict[int, Frames] = {}
    for number, path in enumerate(sample.images):
        if number in sample.clips:
            clips[number] = read_clip(path, rule, sample.clips[number])
            pictures += clips[number].pictures
        else:
            pictures.append(prepare_picture(read_file(path), rule))
    pictures += [prepare_picture(raw.read(), rule) for raw in sample.raw]
    members = [(picture.extension, picture.data) for picture in pictures]
    annotations = sample.annotations
    if clips:
        annotations = [_with_times(annotation, clips) for annotation in annotations]
    for file in sample.features:
        array = file.read()
        if array.shape != shape:
            raise BadFeatures(f"{array.shape[0]} x {array.shape[1]}, the first have {shape}")
        members.append(("features.npy", feature_bytes(array)))
        annotations = [file.annotated(annotation) for annotation in annotations]
    # Two pictures are a pair, as NLVR2's: left.jpg and right.jpg.
    if len(members) == len(PAIR):
        members = [
            (f"{side}.{name}", data) for side, (name, data) in zip(PAIR, members, strict=True)
        ]
    elif len(members) > len(PAIR):
        members = [(f"{number:03d}.{name}", data) for number, (name, data) in enumerate(members)]
    content: dict[str, Any] = {
        "size": [[picture.width, picture.height] for picture in pictures],
        "annotations": annotations,
        **sample.extra,
    }
    if sample.groups:
        content["groups"] = sample.groups
    if sample.source:
        content["source"] = sample.source
    remarks = dict.fromkeys(remark for picture in pictures for remark in picture.remarks)
    return SampleRecord(id=sample.id, members=members, json=content, remarks=list(remarks))


def _with_times(annotation: Annotation, clips: Mapping[int, Frames]) -> Annotation:
    """A conversation with the times of the frames that it shows. `clips`: number of a clip among
    its pictures and clips -> the frames."""
    shown = 0
    turns = []
    for turn in annotation["turns"]:
        parts = []
        for part in parts_of(turn):
            if part["type"] == "video":
                frames = clips[shown]
                part = {**part, "times": frames.times, "duration": frames.duration}
            shown += part["type"] != "text"
            parts.append(part)
        turns.append({**turn, "content": parts} if isinstance(turn["content"], list) else turn)
    return {**annotation, "turns": turns}


class DatasetWriter:
    """Writes samples, in their order, as the shards of one data set in a folder.

    An earlier version of the data set (same name, kind, split) is replaced; another data set is
    refused. With `resume`, the finished shards of an interrupted writer are kept, and the caller
    leaves out the first `start` samples. `listing`: see SourceSet.

    In an object store, each shard is made in the workplace of this machine, stored when it is
    finished, and removed here. The journal is stored after it, so that any machine can resume.
    """

    def __init__(
        self,
        out: Folder,
        *,
        name: str,
        kind: str,
        split: str,
        limits: ShardLimits = DEFAULT_LIMITS,
        source: Sequence[Path] = (),
        image: Mapping[str, Any] | None = None,
        features: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        listing: str = "",
        resume: bool = False,
    ) -> None:
        check_names(name, split)
        _make_room(out, (name, kind, split))
        self.store = out if isinstance(out, RemoteFolder) else None
        self.out, self.limits = out.workplace if isinstance(out, RemoteFolder) else out, limits
        self.stem = f"{name}-{split}"
        self.about: dict[str, Any] = {
            "name": name,
            "kind": kind,
            "split": split,
            "source": tuple(
                [{"file": path.name, "sha256": file_sha256(path)} for path in source]
                + [{"file": LISTING, "sha256": listing}] * bool(listing)
            ),
            "image": image,
            "features": features,
            "classes": None if classes is None else tuple(classes),
            "tool": {"version": _version(), "arguments": dict(arguments or {})},
        }
        # A moved folder may be resumed: --out does not identify the data set.
        asked = {key: value for key, value in (arguments or {}).items() if key != "out"}
        # Another version of vlds may write other bytes: --resume refuses its folders.
        identity = {**self.about, "limits": vars(self.limits), "tool": [_version(), asked]}
        # Only sets of this kind have the class of each sample in their index.
        self.classes = self.about["classes"] if kind == KIND else None
        self.journal = Journal(self.out / f"{self.stem}.progress", identity, self.classes)
        self.finished = self._finished() if resume else []
        # The last one is written again, to see that it comes out the same: see `start`.
        self.repeated = self.finished.pop() if self.finished else None
        self.begun = False

    def _finished(self) -> list[Finished]:
        """The finished shards of an interrupted writer."""
        if self.store is None:
            return self.journal.finished()
        sizes = self.store.sizes()
        if (text := self.store.read(self.journal.path.name)) is None:
            return []
        write_whole(self.journal.path, text)

        def is_stored(shard: ShardInfo) -> bool:
            """By its size: a store has a file whole or not at all."""
            expected = {shard.name: shard.bytes} | {
                shard.name + suffix: index_sizes(shard.samples)[suffix]
                for suffix in shard.index_hashes
            }
            return expected.items() <= sizes.items()

        return self.journal.finished(is_stored)

    @property
    def start(self) -> int:
        """Number of samples, written or dropped, that are accounted for already: those of the
        finished shards but the last, which is written again to see that it comes out the same."""
        return sum(entry.shard.samples + len(entry.dropped) for entry in self.finished)

    def write(
        self, records: Iterable[SampleRecord | Dropped], rows_dropped: Iterable[Dropped] = ()
    ) -> DatasetInfo:
        """Write all samples from `start` on, then dataset.json."""
        # Dropped rows first, then samples in their order, those after the last shard at the end.
        dropped_last = self._write_shards(records)
        shards = [entry.shard for entry in self.finished]
        dropped_before = [drop for entry in self.finished for drop in entry.dropped]
        dropped = [*rows_dropped, *dropped_before, *dropped_last]
        if not shards:
            counts = count_reasons(drop.reason for drop in dropped).items()
            reasons = ", ".join(f"{reason} ({count:,})" for reason, count in counts)
            raise ValueError(
                f"data set {self.stem}: no samples to write"
                + (f"; the first dropped is {dropped[0].id}, of all: {reasons}" if dropped else "")
            )
        # Shards and indices that this version does not have would stay beside its own for ever.
        names = {shard.name for shard in shards}
        mine = re.compile(rf"{re.escape(self.stem)}-[^/]*\.tar.*")
        present = self.store.sizes() if self.store else [path.name for path in self.out.iterdir()]
        for name in filter(mine.fullmatch, present):  # of an earlier, longer version
            if name.partition(".tar")[0] + ".tar" not in names:
                self._remove(name)
        info = DatasetInfo(
            schema=SCHEMA,
            **self.about,
            shards=tuple(shards),
            samples=sum(shard.samples for shard in shards),
            annotations=sum(shard.annotations for shard in shards),
            dropped=tuple(drop._asdict() for drop in dropped),
        )
        # Last: a folder with dataset.json is complete.
        info.save(self.out)
        if self.store:
            self.store.put(self.out / DATASET_FILE)
            self.store.remove(self.journal.path.name)
            (self.out / DATASET_FILE).unlink()
        self.journal.end()
        return info

    def _remove(self, name: str) -> None:
        (self.out / name).unlink(missing_ok=True)
        if self.store:
            self.store.remove(name)

    def _write_shards(self, records: Iterable[SampleRecord | Dropped]) -> list[Dropped]:
        """Fill shards up to the limits; returns the samples dropped after the last written one.

        A drop belongs to the shard of the next written sample: on a resume, it is then neither
        lost nor counted twice.
        """
        shard: OpenShard | None = None
        dropped: list[Dropped] = []  # since the last written sample
        in_shard: list[Dropped] = []  # before it, since the shard began
        ids: set[str] = set()
        number = sum(entry.shard.samples for entry in self.finished)
        try:
            for record in records:
                if isinstance(record, Dropped):
                    dropped.append(record)
                    continue
                if record.id in ids:
                    raise ValueError(
                        f"data set {self.stem}: id {record.id} comes twice; "
                        "a sample must hold all of its annotations"
                    )
                ids.add(record.id)
                content = _content(record)
                # A sample that is larger than the limit gets a shard alone.
                size = sum(map(len, content.values()))
                if shard and (
                    len(shard.counts) >= self.limits.samples
                    or shard.size + size > self.limits.bytes
                ):
                    self._finish(shard, in_shard)
                    shard, in_shard = None, []
                if not self.begun:
                    # A folder without dataset.json counts as incomplete.
                    self._remove(DATASET_FILE)
                    self._remove(QUARANTINE_FILE)
                    self.journal.begin(self.finished)  # this flushes the removals as well
                    if self.store:
                        self.store.put(self.journal.path)
                    self.begun = True
                name = f"{self.stem}-{len(self.finished):05d}.tar"
                shard = shard or OpenShard(self.out / name, self.classes)
                shard.add(f"{number:0{KEY_DIGITS}d}", content)
                number += 1
                in_shard += dropped
                dropped = []
            if shard:
                self._finish(shard, in_shard)
                shard = None
        finally:
            if shard:
                shard.discard()
        return dropped

    def _finish(self, shard: OpenShard, dropped: list[Dropped]) -> None:
        entry = Finished(shard.close(), dropped)
        # Only the first shard after a resume was written before.
        before, self.repeated = self.repeated, None
        if before is not None and entry.shard.sha256 != before.shard.sha256:
            raise ValueError(
                f"--resume: {shard.path} comes out otherwise than before it was interrupted "
                f"(sha256 {entry.shard.sha256[:12]} now, {before.shard.sha256[:12]} then): the "
                "pictures or features are other ones under the same names; bring back those that "
                "it was begun with, or leave out --resume to start over"
            )
        files = [shard.path, *(beside(shard.path, s) for s in entry.shard.index_hashes)]
        if self.store:
            for path in files:
                self.store.put(path)
        self.finished.append(entry)
        self.journal.add(entry)
        if self.store:
            self.store.put(self.journal.path)
            for path in files:
                path.unlink()


def write_dataset(
    out: Folder,
    *,
    records: Iterable[SampleRecord | Dropped],
    shard_samples: int = DEFAULT_LIMITS.samples,
    **options: Any,
) -> DatasetInfo:
    """Write a whole data set; `options` are those of DatasetWriter."""
    return DatasetWriter(out, limits=ShardLimits(samples=shard_samples), **options).write(records)


def _make_room(out: Folder, identity: tuple[str, str, str]) -> None:
    # What an earlier version of the data set, or an interrupted command, may have left.
    stem = re.escape(f"{identity[0]}-{identity[2]}")
    ours = re.compile(rf"{stem}(-\d+\.tar.*|\.progress.*)|{DATASET_FILE}|{QUARANTINE_FILE}")
    info: DatasetInfo | None = None
    if isinstance(out, Path):
        if (out / DATASET_FILE).exists():
            info = DatasetInfo.load(out)
        else:
            check_own(out, "--out", ours, "a data set")
    else:
        names = {name.partition("/")[0] for name in out.sizes()}
        if data := out.read(DATASET_FILE):
            info = DatasetInfo.parse(data, f"{out}/{DATASET_FILE}")
        else:
            check_names_own(names, str(out), "--out", ours, "a data set")
    if info is not None:
        existing = info.name, info.kind, info.split
        if existing != identity:
            raise ValueError(
                f"{out} holds another data set ({' '.join(existing)}) than the one to write "
                f"({' '.join(identity)}): choose another folder, or remove it"
            )
        tell(f"{out} holds {info.samples:,} samples of an earlier command; these replace them")
    folder = out if isinstance(out, Path) else out.workplace
    with writable(folder):
        make_folder(folder)


def _content(record: SampleRecord) -> dict[str, bytes]:
    """Extension -> bytes, including the json."""
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
    # NaN is not JSON, and other readers would refuse the sample.
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return content | {"json": text.encode()}
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(
            f"sample {record.id}: its json holds half a character ({half!a}); correct the source"
        ) from None


def _version() -> str:
    try:
        return version("vlds")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"

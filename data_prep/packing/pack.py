"""A parsed data set -> shards: open every picture, write the good ones, account for the others.

All commands go through `pack`. `ready` checks a whole data set before anything is written;
`ordered_map` opens its pictures in several processes, or on a cluster; `pack_splits` divides it by
picture first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from vlds.data.shards.info import DATASET_FILE, LEARNED, DatasetInfo, check_names
from vlds.data.shards.remote_folder import Folder, RemoteFolder, lock_place
from vlds.runtime.cluster import Cluster
from vlds.runtime.folders import folder_lock
from vlds.runtime.terminal import follow, tell
from vlds.runtime.workers import CHUNK, ordered_map
from vlds.schema import LONGEST_TEXT

from ..json_rows import clean, shown
from .clip import check_av
from .file_check import DetectorFile, check_inside, check_missing, locate_boxes
from .picture import (
    PictureRule,
    find_copies,
    tell_copies,
    tell_near_copies,
    tell_repeats,
    warn_of_leaks,
)
from .source import (
    HDF5,
    Dropped,
    SourceSample,
    SourceSet,
    count_reasons,
    first_few,
    locate,
    parts_of,
)
from .writer import (
    DatasetWriter,
    SampleRecord,
    ShardLimits,
    common_shape,
    try_record,
)

TEXT_FIELDS = ("question", "sentence", "caption", "hypothesis", "expression", "text")
"""Fields of the text; an annotation has one of them."""
REQUIRED: Mapping[str, str] = {
    "entailment": "hypothesis",
    "gqa": "question",
    "chat": "turns",
    "multiple_choice": "question",
    "nlvr2": "sentence",
    "refer": "expression",
    "video_qa": "question",
    "vqa": "question",
}
"""Kind -> field that each of its annotations has, with labels or without."""
NUM_ANNOTATORS = 10
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Score by the number of people with that answer: the mean official accuracy, min(agreeing / 3, 1),
over the ten ways to leave one person out. For 2 of 10: (8 x 2/3 + 2 x 1/3) / 10 = 0.6."""


def soft_label(answers: Sequence[str]) -> dict[str, float]:
    """Answer, as it was written first -> score; case and white space tell no answers apart. Fewer
    than ten answers cannot be weighed: each counts in full."""
    written: dict[str, str] = {}
    counts = Counter[str]()
    for answer in filter(None, map(str.strip, answers)):
        folded = clean(answer).lower()
        written.setdefault(folded, answer)
        counts[folded] += 1
    if len(answers) < NUM_ANNOTATORS:
        return {written[folded]: 1.0 for folded in counts}
    # From four people on, three others agree with the answer whichever person is left out.
    return {written[f]: SOFT_SCORES[min(count, 4)] for f, count in counts.most_common()}


def answer_fields(answers: Sequence[str]) -> dict[str, Any]:
    """The fields of a VQA question's annotation that hold its answers."""
    return {"answers": list(answers), "label": soft_label(answers)}


def text_in(annotation: Mapping[str, Any], shown: bool = True) -> str | None:
    """What is asked or said in an annotation; of a conversation, its turns as lines, which say
    where pictures and clips are `shown`. None for an unknown kind."""
    if not isinstance(turns := annotation.get("turns"), list):
        return next((str(annotation[name]) for name in TEXT_FIELDS if name in annotation), None)
    lines = []
    for turn in turns:
        said = [part.get("text") or (_in_words(part) if shown else "") for part in parts_of(turn)]
        lines.append(f"{turn['role']}: {''.join(said)}")
    return "\n".join(lines)


def clips_of(annotation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The clips that a conversation shows, with times of their frames; none in other kinds."""
    turns = annotation.get("turns")
    parts = [part for turn in turns for part in parts_of(turn)] if isinstance(turns, list) else []
    return [part for part in parts if part["type"] == "video"]


def _in_words(part: Mapping[str, Any]) -> str:
    """A picture or clip for a reader."""
    if part["type"] != "video":
        return "[picture]" if part["type"] == "image" else ""
    times = ", ".join(f"{time:.2f}".rstrip("0").rstrip(".") for time in part["times"])
    return f"[clip of {part['duration']:.1f} s, frames at {times} s]"


def fault_of(annotation: Any, kind: str = "") -> str:
    """What makes an annotation unusable for all tasks, or for those of a kind; "" if it is fine."""
    if not isinstance(annotation, dict):
        return f"{shown(annotation)}, an object expected"
    for name in TEXT_FIELDS:
        if not isinstance(annotation.get(name, ""), str):
            return f"{name} is {shown(annotation[name])}, text expected"
    if kind in REQUIRED and REQUIRED[kind] not in annotation:
        return f"no {REQUIRED[kind]}"
    if fault := _too_long(annotation):
        return fault
    label = annotation.get("label")
    if isinstance(label, dict) and not all(isinstance(s, (int, float)) for s in label.values()):
        return f"label is {shown(label)}, a number for each answer expected"
    return ""


def text_fault(annotation: Mapping[str, Any]) -> str:
    """Why the texts cannot be packed; "" if they can."""
    try:
        json.dumps(annotation, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a character in a text"  # JSON can write one as \ud800, UTF-8 cannot
    return _too_long(annotation)


def _too_long(annotation: Mapping[str, Any]) -> str:
    """Which text is longer than a run accepts; "" if none is."""
    for name, value in annotation.items():
        if any(len(text) > LONGEST_TEXT for text in _texts_in(value)):
            return f"{name} of more than {LONGEST_TEXT:,} characters"
    return ""


def _texts_in(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for entry in value:
            yield from _texts_in(entry)
            if isinstance(value, dict):
                yield from _texts_in(value[entry])


MOST_FRAMES = 256
"""Frames of clips in a chunk, as far as it has more than one sample."""
WORK_OF_CLIP = 100
"""Pictures that are packed in the time of a clip."""
MOST_FOLDERS = 8
"""Folders with pictures in which a cluster's workers look for one before they work."""
SHOWN = 5
"""Ids of dropped rows that the summary names for each reason."""


@dataclass(frozen=True)
class Options:
    """The options of all commands that write shards."""

    rule: PictureRule = field(default_factory=PictureRule)
    limits: ShardLimits = field(default_factory=ShardLimits)
    workers: int = 1
    """Processes that open pictures; their number does not change the shards."""
    cluster: Cluster | None = None
    """Opens pictures instead of processes of this machine."""
    resume: bool = False
    """Keep the shards that an interrupted command finished."""
    features: Path | None = None
    """Features to store instead of pictures: a folder, or one HDF5 file."""
    boxes: bool = False
    """The feature files hold a detector's boxes; store them too."""
    encoder: str | None = None
    """The encoder of the features, for the record in dataset.json."""
    seed: int = 0
    """Decides the order in which samples go into shards."""
    images: Path | None = None
    """Folder of the pictures, where similar names of missing ones are looked for."""
    skip_missing: bool = False
    """Leave out samples whose picture or features do not exist."""
    folders: tuple[Path, ...] = ()
    """Folders that must contain all pictures and features; empty: they may be anywhere."""
    arguments: Mapping[str, Any] | None = None
    """The command line, for the record in dataset.json."""


def pack(dataset: SourceSet, out: Folder, options: Options) -> DatasetInfo:
    """Check a data set, write it and print what became of every sample."""
    check_folder(out)  # before `ready`, which may take minutes
    return pack_ready(ready([dataset], options)[0], out, options)


def pack_ready(dataset: SourceSet, out: Folder, options: Options) -> DatasetInfo:
    """Write a data set that `ready` has checked, and print what became of every sample."""
    check_folder(out)
    by_id = {sample.id: sample for sample in dataset.samples}
    samples = [by_id[sample_id] for sample_id in shard_order(by_id, options.seed)]
    # A second command that writes here would mix its shards with these.
    with folder_lock(lock_place(out)):
        shape = common_shape(samples)
        features: dict[str, Any] | None = None
        if shape:
            features = {"tokens": shape[0], "dim": shape[1], "encoder": options.encoder}
            if any(isinstance(file, DetectorFile) for file in samples[0].features):
                # Boxes that are stored with the features are not channels of the encoder.
                features["dim"] -= DetectorFile.num_box_channels
                features["boxes"] = True
        writer = DatasetWriter(
            out,
            name=dataset.name,
            kind=dataset.kind,
            split=dataset.split,
            limits=options.limits,
            source=dataset.files,
            image=None if shape else _rule_of(samples, options.rule),
            features=features,
            arguments=options.arguments,
            classes=dataset.classes,
            listing=dataset.listing,
            resume=options.resume,
        )
        make = partial(
            try_record, rule=options.rule, shape=shape, skip_missing=options.skip_missing
        )
        remarks: dict[str, list[str]] = {}
        # A resumed writer has the first samples already, in this same order.
        records = _noted(_records(make, samples[writer.start :], options), remarks)
        info = writer.write(
            follow(records, f"{dataset.name} {dataset.split}", len(samples), writer.start),
            rows_dropped=(*dataset.dropped, *dataset.left_out),
        )
    tell(_summary(dataset, info, out))
    for remark, ids in remarks.items():
        who = "sample shows" if len(ids) == 1 else "samples show"
        tell(f"{len(ids):,} {who} {remark}: {first_few(ids)}")
    return info


def _noted(
    records: Iterable[SampleRecord | Dropped], remarks: dict[str, list[str]]
) -> Iterator[SampleRecord | Dropped]:
    """The records; adds to each remark the ids of those that have it."""
    for record in records:
        if isinstance(record, SampleRecord):
            for remark in record.remarks:
                remarks.setdefault(remark, []).append(record.id)
        yield record


def _rule_of(samples: Sequence[SourceSample], rule: PictureRule) -> dict[str, Any]:
    """What dataset.json records of how pictures, and frames of clips if there are any, are kept."""
    has_clips = any(sample.clips for sample in samples)
    return rule.record() | ({"frames": rule.frames.record()} if has_clips else {})


def _records(
    make: Callable[[SourceSample], SampleRecord | Dropped],
    samples: Sequence[SourceSample],
    options: Options,
) -> Iterator[SampleRecord | Dropped]:
    """The records of samples, in their order."""
    frames = options.rule.frames.most_of_a_clip
    clips = [len(sample.clips) for sample in samples]
    # A clip takes as long as a hundred pictures, and as much memory as its frames.
    chunk = max(1, MOST_FRAMES // (frames * max(clips))) if any(clips) else CHUNK
    pieces = len(samples) + WORK_OF_CLIP * sum(clips)
    return ordered_map(
        make,
        samples,
        options.workers,
        chunk=min(chunk, CHUNK),
        pieces=pieces,
        cluster=options.cluster,
        files=_landmarks(samples) if options.cluster else (),
    )


def _landmarks(samples: Sequence[SourceSample]) -> list[Path]:
    """Files by which a worker shows that it sees the folders of pictures and features: one of each
    of the first folders."""
    found: dict[Path, Path] = {}
    for path in (path for sample in samples for path in sample.files):
        if path.parent not in found and path.is_file():
            found[path.parent] = path
            if len(found) == MOST_FOLDERS:
                break
    return list(found.values())


def check_folder(out: Folder) -> None:
    """Errors: ValueError if the output, or a folder above it, is a file, or a store cannot be
    listed, or has a commit for each file, of which it allows few an hour."""
    if isinstance(out, RemoteFolder):
        if out.url.startswith("hf://"):
            raise ValueError(
                f"--out {out}: each shard would be a commit of its own on the hub; give a folder "
                "here, and store it at once with `hf upload-large-folder`"
            )
        out.sizes()
        return
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--out {out}: {existing} is a file; give a folder")


def shard_order(ids: Iterable[str], seed: int = 0) -> list[str]:
    """Ids in the order in which samples go into shards: by a hash of the id and the seed (64 bits),
    so that each shard is a mixture."""
    # The id as well: two ids with one hash keep an order.
    salt = seed.to_bytes(8, "little")
    return sorted(ids, key=lambda id: (blake2b(id.encode(), digest_size=8, salt=salt).digest(), id))


def ready(datasets: Sequence[SourceSet], options: Options) -> list[SourceSet]:
    """Check all data sets before any is written: their features are located if asked for, all files
    exist in the allowed folders, and unusable texts are dropped.

    Errors: ValueError that names what is missing in any of them.
    """
    checked = []
    for dataset in datasets:
        check_names(dataset.name, dataset.split)
        if any(sample.clips for sample in dataset.samples):
            check_av()
            if options.features is not None:
                raise ValueError(
                    f"--features {options.features} are stored instead of pictures, and "
                    f"{dataset.source} has clips, whose frames are pictures; leave it out"
                )
        if options.features is not None and any(sample.images for sample in dataset.samples):
            dataset = _with_features(dataset, options.features, options.boxes)
        _check_options(dataset, options)
        dataset.check()
        checked.append(dataset)
    # Missing files of all data sets make one message.
    check_missing(checked, options.images, options.skip_missing)
    for dataset in checked:
        if options.folders:
            check_inside(dataset, options.folders)
    usable = []
    for dataset in checked:
        dropped, samples = [], []
        for sample in dataset.samples:
            faults = [text_fault(annotation) for annotation in sample.annotations]
            if any(faults):
                pairs = list(zip(sample.annotations, faults, strict=True))
                dropped += [Dropped(a["id"], fault) for a, fault in pairs if fault]
                sample = replace(sample, annotations=[a for a, fault in pairs if not fault])
            samples.append(sample)
        usable.append(replace(dataset, samples=samples, dropped=(*dataset.dropped, *dropped)))
    return usable


def _check_options(dataset: SourceSet, options: Options) -> None:
    """Errors: ValueError for an option without effect, which is a mistake."""
    has_pictures = any(sample.images for sample in dataset.samples)
    if options.boxes and has_pictures:
        raise ValueError("--boxes reads those of --features, which is missing; give both")
    if options.encoder is not None and has_pictures:
        raise ValueError("--encoder names the encoder of --features, which is missing; give both")
    if options.rule.size is not None and any(sample.features for sample in dataset.samples):
        raise ValueError(
            "--image-size and --square change pictures, but features are stored instead; leave "
            "them out"
        )
    if options.rule.size is not None and dataset.kind == "refer":
        raise ValueError(
            f"--image-size {options.rule.size} resizes pictures, and the boxes of {dataset.name} "
            "are in pixels of the original ones; leave it out"
        )


def _with_features(dataset: SourceSet, place: Path, boxes: bool) -> SourceSet:
    """The data set with features, located by the pictures' names, instead of pictures.

    `place` is a folder or one HDF5 file. Errors: ValueError if it is neither.
    """
    if not place.exists():
        raise ValueError(f"--features {place} does not exist; give a folder or an HDF5 file")
    if place.is_file() and place.suffix not in HDF5:
        raise ValueError(
            f"--features {place}: one file for all pictures must be HDF5 ({', '.join(HDF5)}); if "
            "there is one file for each picture, give their folder"
        )
    find = locate_boxes if boxes else locate
    samples = [
        replace(s, images=(), features=tuple(find(place, picture.stem) for picture in s.images))
        for s in dataset.samples
    ]
    return replace(dataset, samples=samples)


def _summary(dataset: SourceSet, info: DatasetInfo, out: Folder) -> str:
    """One line if everything was written; else in = written + dropped, with the reasons."""
    title = f"{info.name} {info.split}:"
    if not info.dropped:
        return f"{title} {info.samples:,} samples, {info.annotations:,} annotations -> {out}"
    # Samples that are left out are not among the samples, but their annotations are in `dropped`.
    samples = len(dataset.samples) + len(dataset.left_out)
    annotations = len(dataset.dropped) + sum(len(s.annotations) for s in dataset.samples)
    lines = [f"{title} -> {out}"]
    for noun, given, written in (
        ("samples", samples, info.samples),
        ("annotations", annotations, info.annotations),
    ):
        dropped = given - written
        lines.append(f"  {noun:<11} {given:>9,} in = {written:,} written + {dropped:,} dropped")
    for reason, count in count_reasons(entry["reason"] for entry in info.dropped).items():
        ids = [str(entry["id"]) for entry in info.dropped if entry["reason"] == reason]
        noun = "ids" if len(ids) > 1 else "id"
        more = ", ..." if len(ids) > SHOWN else ""  # dataset.json has all of them
        lines.append(f"    dropped: {reason}: {count:,} ({noun} {', '.join(ids[:SHOWN])}{more})")
    return "\n".join(lines)


class Division(Protocol):
    """A rule that divides a data set into splits."""

    def divide(
        self, datasets: Sequence[SourceSet], copies: Sequence[Sequence[Path]]
    ) -> list[SourceSet]:
        """The data sets of all splits; `copies` are groups of pictures with the same bytes."""
        ...


def pack_splits(
    datasets: Sequence[SourceSet],
    split: Division | None,
    out: Folder,
    options: Options,
    *,
    apart: bool,
    noun: str | None = "id",
    cure: str = "--split-by-image keeps a picture in one split",
    near: bool = False,
    strict: bool = False,
) -> None:
    """Check all data sets, then write them, each to OUT/SPLIT if `apart`, else the only one to OUT.

    `split` divides one of them. `noun` is what messages call an id; None if ids are places such as
    "line 7". `cure`: what keeps a picture in one split. `near`: look for pictures that are much
    alike in two splits. `strict`: write nothing if a row would be dropped.
    """
    check_folder(out)
    checked = ready(datasets, options)
    if strict:
        refuse_loss(checked, options)
    # Over all splits: a copy of a training picture in the test is what the warning is about.
    copies = find_copies(path for data in checked for s in data.samples for path in s.images)
    if split is not None:
        checked = split.divide(checked, copies)
    if apart:
        check_beside(out, checked, is_drawn=split is not None)
    warn_of_leaks(checked, copies, cure)
    if near:
        tell_near_copies(checked, copies)
    # Last what is learned: where it is there, so are the others, also if the command was ended.
    for dataset in sorted(checked, key=lambda dataset: dataset.split.lower() in LEARNED):
        pack_ready(dataset, out / dataset.split if apart else out, options)
    tell_repeats(checked, noun)
    tell_copies(checked, copies)


def check_beside(out: Folder, datasets: Sequence[SourceSet], is_drawn: bool) -> None:
    """Look for other splits below an output folder that an earlier command has left. `is_drawn`:
    the new splits divide all pictures, so that those of the others are among them.

    Errors: ValueError for such splits that remain, or if the folder holds a data set itself.
    """
    infos: dict[str, DatasetInfo] = {}
    if isinstance(out, RemoteFolder):
        places = [name for name in out.sizes() if name.split("/")[1:] in ([], [DATASET_FILE])]
        for place in places:
            if folder := place.rpartition("/")[0]:
                data = out.read(place) or b""
                infos[folder] = DatasetInfo.parse(data, f"{out}/{place}")
        has_one = DATASET_FILE in places
    else:
        folders = sorted(path for path in out.iterdir() if path.is_dir()) if out.is_dir() else []
        for path in folders:
            if (path / DATASET_FILE).exists():
                infos[path.name] = DatasetInfo.load(path)
        has_one = (out / DATASET_FILE).exists()
    if has_one:
        raise ValueError(
            f"--out {out} holds a data set itself, and its splits would mix with it; name a new "
            "folder, or remove it"
        )
    names, written = {data.name for data in datasets}, {data.split for data in datasets}
    left = [f for f, info in infos.items() if f not in written and info.name in names]
    if left and is_drawn:
        raise ValueError(
            f"--out {out} holds {' and '.join(left)} of an earlier command, whose pictures would "
            f"be in {' and '.join(sorted(written))} too; name a new folder, or remove it"
        )
    if left:
        tell(f"{out} holds {' and '.join(left)} of an earlier command, too")


def refuse_loss(datasets: Sequence[SourceSet], options: Options) -> None:
    """Errors: ValueError that names what would be dropped of data sets that `ready` has checked."""
    rows = [row for dataset in datasets for row in dataset.dropped]
    samples = [sample for dataset in datasets for sample in dataset.samples]
    make = partial(try_record, rule=options.rule, shape=None, skip_missing=options.skip_missing)
    for record in follow(_records(make, samples, options), "checking", len(samples)):
        if isinstance(record, Dropped) and record.reason != "no annotation":
            rows.append(record)
    if rows:
        first = {row.reason: row.id for row in reversed(rows)}
        counts = count_reasons(row.reason for row in rows)
        reasons = [f"{why}: {n:,} ({first[why]})" for why, n in counts.items()]
        more = f", and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        raise ValueError(
            f"--strict: {len(rows):,} rows cannot be kept whole: {', '.join(reasons[:SHOWN])}"
            f"{more}; correct these, or leave --strict out"
        )

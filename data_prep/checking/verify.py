"""`verify`: read every byte of packed data sets, decode every picture, and report the faults.

What shards and samples show by themselves is in checks.py; here are the faults of a data set whose
shards are all good (repeated ids, odd features, lost annotations), and the command.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vlds.data.errors import FetchError
from vlds.data.shards.info import DATASET_FILE, QUARANTINE_FILE, DatasetInfo
from vlds.data.shards.remote_folder import (
    Folder,
    files_in,
    load_info,
    parts_of,
    remove_from,
    write_into,
)
from vlds.runtime.cluster import Cluster
from vlds.runtime.json_files import NotFinite
from vlds.runtime.terminal import follow, tell
from vlds.runtime.workers import ordered_map

from ..command import add_workers, any_folder, new_command
from ..json_rows import JsonRow, read_json, read_lines
from ..official.coco import KARPATHY_SPLITS
from ..packed.stats import find_datasets
from .checks import (
    CheckedSample,
    CheckedShard,
    Finding,
    ShardJob,
    check_shard,
    shapes_text,
)

ID_FIELDS = (
    "question_id", "questionId", "identifier", "sentid", "sent_id", "pairID", "qid", "qa_id",
    "region_id", "desc_id", "clip_id", "id",
)  # fmt: skip
"""The first of these that a row has is the id of its annotation."""
LISTS = ("questions", "annotations", "images")
"""Where an official file keeps its rows."""
NESTED = ("sentences", "qas", "regions", "descs")
"""Lists of annotations inside a row about a picture or clip."""
SAMPLE_FIELDS = (
    "image_id", "imageId", "img_id", "cocoid", "image", "id", "Flickr30K_ID", "vid_name", "clip_id",
)  # fmt: skip
"""Fields after which a sample may be named."""
Fields = Mapping[str, Any]
Wanted = dict[str, dict[str, bool]]
"""File -> id of each annotation in it -> True if dataset.json lists it as dropped."""


def check_together(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """Compare the samples of one data set with each other."""
    yield from _check_repeats(shards)
    good = [(place, sample) for place, sample in _samples(shards) if not sample.findings]
    # By what most samples have: the first sample may be the odd one.
    counts = Counter(sample.shapes for _, sample in good)
    usual = max(counts, key=counts.__getitem__, default=())
    for place, sample in good:
        if sample.shapes != usual:
            detail = f"{shapes_text(sample.shapes)}, most have {shapes_text(usual)}"
            yield place._replace(reason="features of another shape", detail=detail)
    # A split has labels or none: training stops at the first annotation without.
    if all(sample.unlabelled == len(sample.annotations) for _, sample in good):
        return
    for place, sample in good:
        if sample.unlabelled:
            detail = f"{sample.unlabelled} of {len(sample.annotations)}; others have one"
            yield place._replace(reason="annotations without a label", detail=detail)


def _check_repeats(shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    keys: dict[str, tuple[str, CheckedSample]] = {}
    ids: dict[str, set[str]] = {"sample id": set(), "annotation id": set()}
    for place, sample in _samples(shards):
        # A tar with the picture and the json of a key apart gives two samples with that key, of
        # which one has no json.
        if sample.key in keys:
            shard, first = keys[sample.key]
            if shard == place.file and not (first.has_json and sample.has_json):
                yield place._replace(reason="members not side by side")
            else:
                yield place._replace(reason="key twice", detail=f"first in {shard}")
        elif sample.key:
            keys[sample.key] = place.file, sample
        for noun, names in (
            ("sample id", [sample.id] if sample.id else []),
            ("annotation id", sample.annotations),
        ):
            for name in names:
                if name in ids[noun]:
                    yield place._replace(reason=f"{noun} twice", detail=name)
                ids[noun].add(name)


def check_annotations(wanted: Wanted, shards: Sequence[CheckedShard]) -> Iterator[Finding]:
    """Every annotation of the files must be in the shards or dropped, and no other may be there."""
    packed = {name for _, sample in _samples(shards) for name in sample.annotations}
    known = set[str]()
    for file, names in wanted.items():
        # `known` has those of earlier files: an annotation in several files is reported once.
        for name, is_dropped in names.items():
            if name not in packed and not is_dropped and name not in known:
                detail = f"nor among the dropped of {DATASET_FILE}"
                yield Finding("annotation in no shard", detail, file, id=name)
        known.update(names)
    for place, sample in _samples(shards):
        for name in sample.annotations:
            if name not in known:
                yield place._replace(reason="annotation in no file", detail=name)


def _samples(shards: Sequence[CheckedShard]) -> Iterator[tuple[Finding, CheckedSample]]:
    """Each sample with a finding that has its place and no reason yet."""
    for shard in shards:
        for i, sample in enumerate(shard.samples):
            yield Finding("", file=shard.label, i=i, key=sample.key, id=sample.id), sample


def _read_ids(path: Path, splits: Collection[str], dropped: Collection[str]) -> dict[str, bool]:
    """Id of each annotation in a file -> True if it or its whole sample is in `dropped`.

    Any official file of the data sets that are packed here will do, and any in LXMERT's form: rows
    and ids are recognized by the names of their fields. Rows of other splits, as in Karpathy's
    file, are skipped. Errors: ValueError if there are no ids.
    """
    ids = {}
    official = {part for split in splits for part in KARPATHY_SPLITS.get(split, (split,))}
    for number, (outer, row) in enumerate(_annotations(_read(path))):
        if "split" in outer and str(outer["split"]) not in official:
            continue
        field = next((field for field in ID_FIELDS if field in row), None)
        if field is None:
            raise ValueError(
                f"{path}: a row has none of {', '.join(ID_FIELDS)}; it has {', '.join(row)}. "
                "Give the official file, or one in LXMERT's form"
            )
        annotation_id = JsonRow(row, f"{path}, annotation {number}").id(field)
        # NLVR2 names a pair of pictures like its sentences, without their last number.
        pair = annotation_id.rpartition("-")[0]
        # A dropped sample takes its annotations with it.
        sample_ids = [str(outer[field]) for field in SAMPLE_FIELDS if field in outer]
        ids[annotation_id] = any(name in dropped for name in (annotation_id, pair, *sample_ids))
    if not ids:
        raise ValueError(
            f"{path}: no annotation of split {', '.join(sorted(splits))} in it; "
            "give the files that the data set is made from"
        )
    return ids


def _read(path: Path) -> Any:
    """The content of JSON; or the rows of JSON lines, whatever the file is called."""
    if not path.exists():
        raise ValueError(f"--annotations {path} does not exist; check the path")
    try:
        return read_json(path)
    except NotFinite:  # it is JSON, and its numbers would be as bad in lines
        raise
    except ValueError:
        return [row.fields for _, row in read_lines(path)]


def _annotations(content: Any) -> Iterator[tuple[Fields, Fields]]:
    """(row, annotation in it); both are the same if a row is one annotation."""
    # A picture of Karpathy's file with five sentences -> five pairs with that row.
    for row in _rows(content):
        lists = [row[name] for name in NESTED if isinstance(row.get(name), list)]
        nested = [entry for entry in chain(*lists) if isinstance(entry, dict)]
        yield from ((row, annotation) for annotation in (nested if lists else (row,)))


def _rows(content: Any) -> list[Fields]:
    """The rows of a file in any of the official forms."""
    if isinstance(content, dict):
        lists = [content[name] for name in LISTS if isinstance(content.get(name), list)]
        if lists:
            content = lists[0]
        elif any(name in content for name in ID_FIELDS):  # JSON lines with a single line
            return [content]
        else:  # GQA's questions by id
            rows = [(key, row) for key, row in content.items() if isinstance(row, dict)]
            return [{**row, "questionId": key} for key, row in rows]
    return [row for row in content if isinstance(row, dict)] if isinstance(content, list) else []


SHOWN = 3
"""Findings of one reason that the summary names."""
FAULTY = 1
"""Exit code if something is wrong."""


def verify(
    folders: Sequence[Folder],
    files: Sequence[Path] = (),
    workers: int = 1,
    cluster: Cluster | None = None,
) -> list[Finding]:
    """Check every data set in or below some folders, print the findings, and list the bad samples
    of each in its quarantine.jsonl; if there are none, remove that file.

    `files` hold the annotations that must be in the shards. Errors: ValueError if there is no data
    set, or a file has no ids.
    """
    # Findings are named within the folder, or within the one that holds all of several here.
    above = f"{folders[0]}/"
    if len(folders) > 1:
        folders = [Path(os.path.abspath(f)) if isinstance(f, Path) else f for f in folders]
        here = [each for each in folders if isinstance(each, Path)]
        above = f"{os.path.commonpath(here)}/" if len(here) == len(folders) else ""

    def within(place: Folder, name: str) -> str:
        return str(place / name).removeprefix(above)

    infos: dict[Folder, DatasetInfo] = {}
    findings: list[Finding] = []
    # Once each: one of the folders may lie in another.
    for path in dict.fromkeys(path for each in folders for path in find_datasets(each)):
        try:
            infos[path] = load_info(path)
        except FetchError:
            raise
        except (ValueError, TypeError) as error:
            name = within(path, DATASET_FILE)
            findings.append(Finding(f"unusable {DATASET_FILE}", str(error), name))
    # Tars that belong to no data set: other readers use them, a run does not.
    listed = {within(path, shard.name) for path, info in infos.items() for shard in info.shards}
    tars = {within(each, name) for each in folders for name in files_in(each, ".tar")}
    for name in sorted(tars - listed):
        findings.append(Finding(f"shard in no {DATASET_FILE}", file=name))
    wanted: Wanted = {}
    if infos:
        splits = {info.split for info in infos.values()}
        dropped = {entry["id"] for info in infos.values() for entry in info.dropped}
        wanted = {str(path): _read_ids(path, splits, dropped) for path in files}
    jobs = [
        ShardJob(path, shard, within(path, shard.name), part.info)
        for path, info in infos.items()
        for part in parts_of(path, info)
        for shard in part.info.shards
    ]
    # A shard is much work: processes get one at a time.
    pieces = sum(job.shard.samples for job in jobs)
    results = ordered_map(
        check_shard,
        jobs,
        workers,
        chunk=1,
        pieces=pieces,
        cluster=cluster,
        files=[path / DATASET_FILE for path in infos if isinstance(path, Path)],
    )
    checked: dict[Folder, list[CheckedShard]] = {path: [] for path in infos}
    for job, result in zip(jobs, follow(results, "verify", len(jobs)), strict=True):
        checked[job.folder].append(result)
    for path, info in infos.items():
        shards = checked[path]
        num_annotations = sum(len(s.annotations) for shard in shards for s in shard.samples)
        tell(
            f"{info.name} {info.split}: {_count(len(shards), 'shard')}, "
            f"{_count(sum(len(shard.samples) for shard in shards), 'sample')}, "
            f"{_count(num_annotations, 'annotation')} in {path}"
        )
        findings += [finding for shard in shards for finding in shard.findings]
        findings += check_together(shards)
    if wanted:
        findings += check_annotations(wanted, [*chain(*checked.values())])
    tell(summary(findings))
    # After all checks: a sample can also be bad for what another shard holds, such as the same id.
    # A finding has the shard's path, the listing lies beside the shards and has their names.
    for path, info in infos.items():
        places = {within(path, shard.name) for shard in info.shards}
        bad = [
            finding._replace(file=Path(finding.file).name)
            for finding in findings
            if finding.i is not None and finding.file in places
        ]
        if not bad:
            remove_from(path, QUARANTINE_FILE)
            continue
        write_into(path, QUARANTINE_FILE, "".join(finding.line() for finding in bad))
        samples = {(finding.file, finding.i) for finding in bad}
        tell(f"{path / QUARANTINE_FILE}: {_count(len(samples), 'bad sample')}")
    return findings


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def summary(findings: Sequence[Finding]) -> str:
    """How often each reason occurs, most frequent first, and where its first findings are."""
    if not findings:
        return "all is well"
    lines = [f"{_count(len(findings), 'finding')}:"]
    for reason, count in Counter(finding.reason for finding in findings).most_common():
        places = [str(finding) for finding in findings if finding.reason == reason]
        lines.append(f"  {count:,} x {reason}")
        lines += [f"      {place}" for place in places[:SHOWN]]
        lines += [f"      and {count - SHOWN:,} more"] if count > SHOWN else []
    return "\n".join(lines)


def add_command(commands: Any) -> None:
    parser = new_command(
        commands,
        "verify",
        "Checks every data set in or below a folder: files and index against dataset.json, every "
        "sample's json, pictures and features, repeated ids. Bad samples are listed in "
        f"{QUARANTINE_FILE} next to their shards; runs leave them out. Exit code 0: all is well; "
        "1: something is wrong.",
        examples=["verify shards/mine", "verify shards/vqa-train shards/vqa-val"],
    )
    parser.add_argument(
        "folders", type=any_folder, nargs="+", metavar="DIR",
        help="data sets, or folders with several below",
    )  # fmt: skip
    parser.add_argument(
        "--annotations",
        dest="files",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="official files, or files in LXMERT's form: each of their annotations must be in the "
        "shards or among the dropped of dataset.json, and the shards may have no others",
    )
    add_workers(parser, "read shards")

    def run(args: argparse.Namespace) -> int:
        findings = verify(args.folders, args.files, args.workers, args.cluster)
        return FAULTY if findings else 0

    parser.set_defaults(run=run)

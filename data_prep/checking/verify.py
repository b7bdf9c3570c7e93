"""`verify`: read every byte of packed data sets, decode every picture, and report the faults."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.checking.dataset_check import check_annotations, check_together, read_wanted
from data_prep.checking.sample_check import Finding
from data_prep.checking.shard_check import CheckedShard, Job, check_shard
from data_prep.command import add_workers, local_folder, new_command
from data_prep.packed.stats import find_datasets
from data_prep.packing.parallel import ordered_map
from vlds.data.shards.info import DATASET_FILE, DatasetInfo
from vlds.data.shards.store import QUARANTINE_FILE
from vlds.runtime.progress import follow
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole

SHOWN = 3
"""Findings of one reason that the summary names."""
FAULTY = 1
"""Exit code if something is wrong."""


def verify(folders: Sequence[Path], files: Sequence[Path] = (), workers: int = 1) -> list[Finding]:
    """Check every data set in or below some folders, print the findings, and list the bad samples
    of each in its quarantine.jsonl; if there are none, remove that file.

    `files` hold the annotations that must be in the shards. Errors: ValueError if there is no data
    set, or a file has no ids.
    """
    if len(folders) == 1:
        (folder,) = folders  # findings are named within it
    else:
        folders = [Path(os.path.abspath(each)) for each in folders]
        folder = Path(os.path.commonpath(folders))
    infos: dict[Path, DatasetInfo] = {}
    findings: list[Finding] = []
    for path in dict.fromkeys(path for each in folders for path in find_datasets(each)):
        try:
            infos[path] = DatasetInfo.load(path)
        except (ValueError, TypeError) as error:
            name = str((path / DATASET_FILE).relative_to(folder))
            findings.append(Finding(f"unusable {DATASET_FILE}", str(error), name))
    findings += _find_unlisted(folders, folder, infos)
    wanted = read_wanted(list(infos.values()), files) if infos else {}
    checked = _check_shards(folder, infos, workers)
    for path, info in infos.items():
        shards = checked[path]
        tell(_title(info, shards, path))
        findings += [finding for shard in shards for finding in shard.findings]
        findings += check_together(shards)
    if wanted:
        findings += check_annotations(wanted, [*chain(*checked.values())])
    tell(summary(findings))
    # After all checks: a sample can also be bad for what another shard holds, such as the same id.
    for path in infos:
        _quarantine(path, [f for f in findings if (folder / f.file).parent == path])
    return findings


def _find_unlisted(
    folders: Sequence[Path], base: Path, infos: Mapping[Path, DatasetInfo]
) -> Iterator[Finding]:
    """Find tars that belong to no data set: other readers use them, a run does not."""
    listed = {path / shard.name for path, info in infos.items() for shard in info.shards}
    for tar in sorted({tar for folder in folders for tar in folder.rglob("*.tar")}):
        if tar not in listed:
            yield Finding(f"shard in no {DATASET_FILE}", file=str(tar.relative_to(base)))


def _check_shards(
    folder: Path, infos: Mapping[Path, DatasetInfo], workers: int
) -> dict[Path, list[CheckedShard]]:
    """Folder of each data set -> its shards, checked in several processes."""
    jobs = [
        Job(path, shard, str((path / shard.name).relative_to(folder)), info)
        for path, info in infos.items()
        for shard in info.shards
    ]
    samples = sum(job.shard.samples for job in jobs)
    results = ordered_map(check_shard, jobs, workers, chunk=1, pieces=samples)
    checked: dict[Path, list[CheckedShard]] = {path: [] for path in infos}
    for job, result in zip(jobs, follow(results, "verify", len(jobs)), strict=True):
        checked[job.folder].append(result)
    return checked


def _title(info: DatasetInfo, shards: Sequence[CheckedShard], folder: Path) -> str:
    samples = [sample for shard in shards for sample in shard.samples]
    counts = (
        _count(len(shards), "shard"),
        _count(len(samples), "sample"),
        _count(sum(len(sample.annotations) for sample in samples), "annotation"),
    )
    return f"{info.name} {info.split}: {', '.join(counts)} in {folder}"


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


def _quarantine(folder: Path, findings: Sequence[Finding]) -> None:
    """List the bad samples among the findings about the data set in a folder."""
    path = folder / QUARANTINE_FILE
    bad = [f._replace(file=Path(f.file).name) for f in findings if f.i is not None]
    if not bad:
        path.unlink(missing_ok=True)
        return
    write_whole(path, "".join(finding.line() for finding in bad))
    samples = {(finding.file, finding.i) for finding in bad}
    tell(f"{path}: {_count(len(samples), 'bad sample')}")


def add_command(commands: Any) -> None:
    """Add `verify`."""
    parser = new_command(
        commands,
        "verify",
        "check shards: every byte, picture and id",
        "Checks every data set in or below a folder: files and index against dataset.json, every "
        "sample's json, pictures and features, repeated ids. Bad samples are listed in "
        f"{QUARANTINE_FILE} next to their shards; runs leave them out. Exit code 0: all is well; "
        "1: something is wrong.",
        examples=["verify shards/mine", "verify shards/vqa-train shards/vqa-val"],
    )
    parser.add_argument(
        "folders", type=local_folder, nargs="+", metavar="DIR",
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
        return FAULTY if verify(args.folders, args.files, args.workers) else 0

    parser.set_defaults(run=run)

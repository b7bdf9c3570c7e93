"""Samples that `data_prep verify` has found bad: a run replaces them without reading them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from vlds.data.info import DatasetInfo

QUARANTINE_FILE = "quarantine.jsonl"


def read_quarantine(folder: Path, info: DatasetInfo) -> Mapping[int, str]:
    """Number of each bad sample in a data set -> what is wrong with it. The list lies in the folder
    that was verified: the data set's own, or the one above it.

    Errors: ValueError that names the file and line.
    """
    shards = [shard.name for shard in info.shards]
    first = dict(zip(shards, accumulate((s.samples for s in info.shards), initial=0), strict=False))
    found: dict[int, str] = {}
    for place, names in ((folder, shards), (folder.parent, [f"{folder.name}/{n}" for n in shards])):
        known = dict(zip(names, shards, strict=True))
        for number, reason in _lines(place / QUARANTINE_FILE, known, first):
            found[number] = f"in {place / QUARANTINE_FILE}: {reason}"
    return found


def _lines(
    path: Path, known: Mapping[str, str], first: Mapping[str, int]
) -> Sequence[tuple[int, str]]:
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            if entry["shard"] in known:
                found.append((first[known[entry["shard"]]] + entry["i"], entry["reason"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not what `data_prep verify` writes ({error!r}); run it "
                "again, or remove the file"
            ) from None
    return found

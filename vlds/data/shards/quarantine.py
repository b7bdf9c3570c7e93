"""Samples that `data_prep verify` has found bad: a run replaces them without reading them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

from vlds.data.shards.info import DatasetInfo
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import read_text

QUARANTINE_FILE = "quarantine.jsonl"


def read_quarantine(folder: Path, info: DatasetInfo) -> Mapping[int, str]:
    """Number of each bad sample in a data set -> what is wrong with it.

    Errors: ValueError that names the file and line.
    """
    path = folder / QUARANTINE_FILE
    if not path.is_file():
        return {}
    counts = accumulate((shard.samples for shard in info.shards), initial=0)
    first = dict(zip((shard.name for shard in info.shards), counts, strict=False))
    found = {}
    # splitlines would also split at U+2028, which may be what is wrong with an id.
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        try:
            entry = parse_json(line)
            found[first[entry["shard"]] + entry["i"]] = f"in {path}: {entry['reason']}"
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: not what `data_prep verify` writes ({error!r}); run it "
                "again, or remove the file"
            ) from None
    return found

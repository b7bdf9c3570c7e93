"""Progress of a data set that is being written: one line for each finished shard.

The first line identifies the preparation, so that only the same one can continue. The file is
removed once dataset.json, which holds the same, exists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlds.data.order.permutation import differences
from vlds.data.shards.info import ShardInfo
from vlds.data.shards.shard_index import load_index
from vlds.runtime.disk import append
from vlds.runtime.json_file import parse_json
from vlds.runtime.json_record import parse_record
from vlds.runtime.manifest import sha256
from vlds.runtime.regular_file import read_text
from vlds.runtime.whole_file import write_whole


class Dropped(NamedTuple):
    """A sample or row of the source that is not in the shards."""

    id: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """A written shard, with the samples that were dropped before its last one."""

    shard: ShardInfo
    dropped: Sequence[Dropped]


class Journal:
    """The journal of one data set."""

    def __init__(
        self, path: Path, identity: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> None:
        """`classes`: of a data set whose samples have one each."""
        self.path = path
        self.classes = classes
        self.identity = json.dumps(identity, sort_keys=True)

    def finished(self) -> list[Finished]:
        """The shards that need not be written again: those whose files are still what was written.

        Errors: ValueError if another preparation wrote here.
        """
        if not self.path.is_file():
            return []
        first, *lines = read_text(self.path).splitlines()
        if first != self.identity:
            raise ValueError(
                f"{self.path} belongs to a preparation with other files or options: "
                f"{'; '.join(differences(parse_json(first), parse_json(self.identity)))}; "
                "give the same again, or leave out --resume to start over"
            )
        entries = []
        for line in lines:
            try:
                entry = parse_record(Finished, line)
                load_index(self.path.parent, entry.shard, classes=self.classes)
                if sha256(self.path.parent / entry.shard.name) != entry.shard.sha256:
                    break
            except (OSError, ValueError):  # cut off in writing, of another version, or untrue
                break
            entries.append(entry)
        return entries

    def begin(self, finished: Sequence[Finished]) -> None:
        """Continue after these shards, and forget all others."""
        write_whole(self.path, "".join([self.identity + "\n", *map(_line, finished)]))

    def add(self, entry: Finished) -> None:
        """Record a shard that is whole and on disk."""
        append(self.path, _line(entry))

    def end(self) -> None:
        """Remove the journal: dataset.json exists."""
        self.path.unlink(missing_ok=True)


def _line(entry: Finished) -> str:
    return json.dumps({"shard": vars(entry.shard), "dropped": entry.dropped}) + "\n"

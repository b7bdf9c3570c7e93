"""What is done of a data set that is being written: one line a finished shard.

The file goes when dataset.json, which holds the same, is there. Its first line says what is being
written; a preparation that goes on must be the same one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlds.data.order.permutation import differences
from vlds.data.shards.info import ShardInfo
from vlds.runtime.disk import append
from vlds.runtime.json_file import parse_json
from vlds.runtime.regular_file import read_text
from vlds.runtime.whole_file import write_whole


class Dropped(NamedTuple):
    """A sample or row of the source that does not go into the shards."""

    id: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """A shard that is written, with what was dropped on the way to its last sample."""

    shard: ShardInfo
    dropped: Sequence[Dropped]


class Journal:
    """The lines of one data set that is being written."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = json.dumps(identity, sort_keys=True)

    def finished(self) -> list[Finished]:
        """The shards that need not be written again: those whose file is still there.

        Errors: ValueError where another preparation wrote here.
        """
        if not self.path.is_file():
            return []
        first, *lines = read_text(self.path).splitlines()
        if first != self.identity:
            raise ValueError(
                f"{self.path} was begun with other files or options: "
                f"{'; '.join(differences(parse_json(first), parse_json(self.identity)))}; "
                "give those again, or leave out --resume to begin anew"
            )
        found = []
        for line in lines:
            try:
                tree = parse_json(line)
                shard = ShardInfo(**tree["shard"])
            except (ValueError, TypeError):  # cut off while it was written, or of another version
                break
            tar = self.path.with_name(shard.name)
            if not tar.is_file() or tar.stat().st_size != shard.bytes:
                break
            found.append(Finished(shard, [Dropped(*entry) for entry in tree["dropped"]]))
        return found

    def begin(self, finished: Sequence[Finished]) -> None:
        """Go on after these shards, and forget all others."""
        write_whole(self.path, "".join([self.identity + "\n", *map(_line, finished)]))

    def add(self, entry: Finished) -> None:
        """One more shard is whole, and on disk."""
        append(self.path, _line(entry))

    def end(self) -> None:
        """dataset.json is there."""
        self.path.unlink(missing_ok=True)


def _line(entry: Finished) -> str:
    return json.dumps({"shard": vars(entry.shard), "dropped": entry.dropped}) + "\n"

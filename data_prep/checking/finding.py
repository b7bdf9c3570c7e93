"""One thing that is wrong with a data set, and where."""

from __future__ import annotations

import json
from typing import NamedTuple


class Finding(NamedTuple):
    """What is wrong; the place is empty as far as it is not known."""

    reason: str
    """The same words for all of a kind, so that they can be counted."""
    detail: str = ""
    file: str = ""
    """Shard or other file, as seen from the folder that is checked."""
    i: int | None = None
    """Number of the sample in its shard, from 0; None where no single sample is meant."""
    key: str = ""
    id: str = ""

    def __str__(self) -> str:
        """Where, and what in particular."""
        words = [self.file]
        if self.i is not None:
            words.append(f"sample {self.i}" + (f" (key {self.key})" if self.key else ""))
        if self.id:
            words.append(f"id {self.id}")
        return ", ".join(words) + (f": {self.detail}" if self.detail else "")

    def line(self) -> str:
        """The line of a bad sample in quarantine.jsonl."""
        reason = f"{self.reason}: {self.detail}" if self.detail else self.reason
        content = {
            "shard": self.file, "i": self.i, "key": self.key, "id": self.id, "reason": reason,
        }  # fmt: skip
        return json.dumps(content, ensure_ascii=False) + "\n"

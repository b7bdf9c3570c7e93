"""Errors of data, how many of them a run tolerates, and the ledger that lists them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vlds.runtime.checks import Count, Share
from vlds.runtime.disk import append
from vlds.schema import SkipSample


class ShardError(ValueError):
    """A shard that is not what its index says: missing, cut, damaged."""


class FetchError(ShardError):
    """A file of a data set that cannot be fetched. The message is complete, cure included."""


class FullDisk(FetchError):
    """A file that cannot be fetched because the disk of this machine is full."""


class ChangedSample(SkipSample):
    """A sample whose bytes changed after they were indexed."""


@dataclass(frozen=True, kw_only=True)
class ErrorPolicy:
    """How much bad data a run tolerates."""

    max_bad_fraction: Share = 0.001
    """Share of a rank's examples that may be bad and replaced. More than this stops the run, once
    there are more than `max_in_a_row` of them."""
    max_in_a_row: Count = 8
    """Consecutive bad samples that stop the run."""
    on_bad_shard: Literal["stop", "substitute"] = "stop"
    """A damaged shard stops the run, or its samples are replaced and counted like bad ones."""


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """One sample that could not be used at one position of the stream."""

    position: int
    """In the stream; in evaluation, index of the example."""
    dataset: str
    """Data set and split."""
    shard: str
    key: str
    """Its members' name in the tar."""
    id: str
    """Id of the example, "" if not even that could be read."""
    reason: str
    reference: Any = None
    """What the score compares with; evaluation only."""
    sample: str = ""
    """Id of the example's sample; evaluation only."""

    @property
    def name(self) -> tuple[str, str, str]:
        """Unique name of the sample: each shard may use the same keys."""
        return self.dataset, self.shard, self.key


class ErrorBook:
    """Counts bad samples, writes each to the ledger once, and stops the run at too many."""

    def __init__(self, policy: ErrorPolicy, ledger: Path | None) -> None:
        self.policy = policy
        self.ledger = ledger
        self.num_seen = 0
        """Examples handed out on this rank."""
        self.num_bad = 0
        """Bad examples in whose place another one came."""
        self._written: set[tuple[str, str, str]] = set()
        self._in_a_row: set[tuple[str, str, str]] = set()

    def record(self, positions: list[int], bad: list[BadSample]) -> None:
        """Count one micro-batch. Errors: ValueError if the policy says stop."""
        self.num_seen += len(positions)
        if not bad:
            self._in_a_row.clear()
            return
        # A position whose first substitutes are bad too is still one replaced example.
        bad_at: dict[int, list[BadSample]] = {}
        for entry in bad:
            bad_at.setdefault(entry.position, []).append(entry)
        self.num_bad += len(bad_at)
        lines = []
        for entry in bad:
            # A bad sample comes again in every epoch, and once for each of its annotations.
            if entry.name not in self._written:
                self._written.add(entry.name)
                lines.append(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
        if lines and self.ledger is not None:
            self.ledger.parent.mkdir(parents=True, exist_ok=True)
            append(self.ledger, "".join(lines))
        for position in positions:
            if position not in bad_at:
                self._in_a_row.clear()
            # Examples that share a picture are one bad sample, not many.
            self._in_a_row |= {entry.name for entry in bad_at.get(position, [])}
            if len(self._in_a_row) >= self.policy.max_in_a_row:
                self._stop(f"{len(self._in_a_row)} bad samples in a row", bad)
        # The floor of max_in_a_row: one bad sample among the first ten says nothing of the share.
        if self.num_bad > max(
            self.policy.max_in_a_row, self.policy.max_bad_fraction * self.num_seen
        ):
            share = 100 * self.num_bad / max(1, self.num_seen)
            self._stop(
                f"{self.num_bad} of {self.num_seen} examples ({share:.2g} %) had to be replaced, "
                f"more than errors.max_bad_fraction {self.policy.max_bad_fraction:g} allows",
                bad,
            )

    def _stop(self, what: str, bad: list[BadSample]) -> None:
        last = bad[-1]
        where = f"all of them are listed in {self.ledger}" if self.ledger else "no ledger was kept"
        raise ValueError(
            f"too much bad data: {what}.\n"
            f"The last: data set {last.dataset}, shard {last.shard}, sample {last.key}: "
            f"{last.reason}\n({where}). Prepare the data again without them, or raise "
            "errors.max_bad_fraction or errors.max_in_a_row."
        )

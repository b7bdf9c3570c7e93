"""The order of one source: epoch after epoch, each a fresh permutation of its annotations.

The order of examples is a pure function of (seed, position). Nothing here has a state that matters:
tables are computed from the seed when a position asks for them and kept only for speed. So any
number of ranks and workers sees the same global batches, and resuming is a seek. Random numbers are
raw Philox words, which mean the same in every version of numpy.

mixed_order.py mixes such sources in exact proportions: that is the order of training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Value = TypeVar("Value")
KEPT_TABLES = 3
"""Tables that are kept for each lane; a batch may lie across the boundary of two."""
KEPT_EPOCHS = 2
"""Permutations of all shards that are kept: of a million, one takes 16 MB."""
WHOLE_SAMPLE = -1
"""Annotation index that means all annotations of a sample."""


class Recent(Generic[Value]):
    """The last few results of a function."""

    def __init__(self, make: Callable[..., Value], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __call__(self, *key: int) -> Value:
        if key not in self._kept:
            self._kept[key] = self._make(*key)
            # The oldest goes, even if it was just used: positions rise, so they leave it soon.
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return self._kept[key]


class Draws:
    """NumPy's generator, set to an example's key before each use.

    It draws the same as `Generator(Philox(key=seed << 64 | position, counter=attempt << 192))`, but
    is created once: creating a generator takes ten times as long as setting its state.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._key = np.array([0, seed % (1 << 64)], np.uint64)
        self._counter = np.zeros(4, np.uint64)
        self._state = self._bits.state | {"state": {"key": self._key, "counter": self._counter}}

    def at(self, position: int, attempt: int) -> np.random.Generator:
        """The generator of an example, valid until the next call."""
        self._key[0], self._counter[3] = position, attempt
        self._bits.state = self._state
        return self._generator


def random_words(count: int, *key: str | int) -> NDArray[np.uint64]:
    """Random words that depend on the key alone."""
    # Philox takes a key of 128 bits. Raw words, because numpy may change what its generators draw
    # from them (NEP 19).
    digest = blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    words: NDArray[np.uint64] = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(
        count
    )
    return words


def permutation(count: int, *key: str | int) -> Ints:
    """A permutation that depends on the key alone."""
    # Stable: otherwise equal words would stand in an order that depends on numpy's version.
    return np.argsort(random_words(count, *key), kind="stable")


def hashed(value: Any) -> str:
    """Short hash of what is too long for a fingerprint."""
    return sha256(repr(value).encode()).hexdigest()[:16]


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """The differences between two fingerprints, a line each."""
    lines = []
    for key in sorted(set(saved) | set(now)):
        one, other = saved.get(key, "nothing"), now.get(key, "nothing")
        name = f"{path}.{key}" if path else str(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            lines += differences(one, other, name)
        elif one != other:
            texts = ["something" if isinstance(v, Mapping) else str(v) for v in (one, other)]
            short = [text if len(text) <= 24 else text[:24] + "..." for text in texts]
            lines.append(f"{name}: {short[0]} -> {short[1]}")
    return lines


class ShardCounts:
    """How many annotations the samples of each shard have."""

    def __init__(self, counts: Sequence[NDArray[np.unsignedinteger[Any]]]) -> None:
        self._counts = counts
        self.samples = np.array([len(shard) for shard in counts], np.int64)
        """Of each shard."""
        self.annotations = np.array([shard.sum() for shard in counts], np.int64)
        """Of each shard."""

    def of(self, shards: Ints) -> list[NDArray[np.unsignedinteger[Any]]]:
        """For some shards, the annotations of each of their samples."""
        return [self._counts[shard] for shard in shards]


class EpochOrder:
    """Annotations of one source, epoch after epoch, each epoch a fresh permutation.

    Shards are permuted and cut into windows of `window` shards. Inside a window everything is
    permuted, so that only the window's shards are read at a time. With `group` k, up to k
    annotations of one sample (different ones in every epoch) stay together: their picture is
    decoded and encoded once.

    With `lanes` V the permuted shards are first cut into V stretches of equally many annotations,
    each cut into windows separately: the reader of a lane reads only the shards of its stretch.
    """

    def __init__(
        self,
        name: str,
        counts: Sequence[NDArray[np.unsignedinteger[Any]]] | ShardCounts,
        *,
        seed: int,
        window: int,
        group: int = 1,
        lanes: int = 1,
    ) -> None:
        """`counts`: for each shard, the annotations of each of its samples. Those of a window's
        shards are asked for when the window comes."""
        for what, value in (("window", window), ("group", group), ("lanes", lanes)):
            if value < 1:
                raise ValueError(f"{what}: got {value}; give at least 1")
        self.name = name
        self.seed = seed
        self.window = window
        self.group = group
        self.lanes = lanes
        self.about = {"window": window, "group": group}
        """What the order depends on, the same for all sources of a run."""
        self.counts = counts if isinstance(counts, ShardCounts) else ShardCounts(counts)
        self.first_sample = np.concatenate([[0], np.cumsum(self.counts.samples)])
        self.shard_sizes = self.counts.annotations
        self.size = int(self.shard_sizes.sum())
        """Annotations in an epoch."""
        if self.size == 0:
            raise ValueError(f"source {name}: its data sets hold no annotation to train on")
        if self.size < lanes:
            raise ValueError(
                f"lanes: {lanes} are more than the {self.size} annotations of source {name}; "
                "give fewer lanes"
            )
        self._permutation = Recent(self._permuted_epoch, KEPT_EPOCHS)
        self._shards = Recent(self._permuted_shards, KEPT_TABLES * lanes)
        self._table = Recent(self._window_table, KEPT_TABLES * lanes)

    def stretch(self, lane: int) -> tuple[int, int]:
        """Begin and end of a lane among the annotations of an epoch."""
        return lane * self.size // self.lanes, (lane + 1) * self.size // self.lanes

    def at(self, indices: Ints, lane: int = 0) -> tuple[Ints, Ints]:
        """Sample, and annotation in it, for each index of a lane (epochs follow one another)."""
        samples, annotations = np.empty_like(indices), np.empty_like(indices)
        start, end = self.stretch(lane)
        # A lane of 5 annotations: index 7 is offset 2 of epoch 1. Offsets, like the windows'
        # starts, count from the beginning of the epoch, not of the lane.
        epochs, offsets = np.divmod(indices, end - start)
        offsets += start
        for epoch in np.unique(epochs).tolist():
            _, _, starts = self._shards(epoch, lane)
            windows = np.searchsorted(starts, offsets, side="right") - 1
            for window in np.unique(windows[epochs == epoch]).tolist():
                here = (epochs == epoch) & (windows == window)
                rows = offsets[here] - starts[window]
                table_samples, table_annotations = self._table(epoch, lane, window)
                samples[here], annotations[here] = table_samples[rows], table_annotations[rows]
        return samples, annotations

    def _permuted_epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """All shards in an epoch's order, and where in the epoch each ends."""
        # The key has no lane: all lanes cut their stretches from one permutation.
        shards = permutation(len(self.shard_sizes), self.seed, "shards", self.name, epoch)
        return shards, np.cumsum(self.shard_sizes[shards])

    def _permuted_shards(self, epoch: int, lane: int) -> tuple[Ints, int, Ints]:
        """A lane's shards in an epoch, how many annotations of the first belong to the lane before,
        and where in the epoch each window starts."""
        shards, ends = self._permutation(epoch)
        start, end = self.stretch(lane)
        # A lane may begin and end inside a shard, which it then shares with its neighbour. Shards
        # that end at 4, 7 and 12: the lane from 5 to 12 has the last two, without one annotation.
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, end, side="left"))
        before = int(ends[first - 1]) if first else 0
        # The first window starts with the lane; the others where a shard ends, every `window`.
        starts = np.concatenate([[start], ends[first + self.window - 1 : last : self.window]])
        # A copy: a view would keep the permutation of all shards, for each lane.
        return shards[first : last + 1].copy(), start - before, starts

    def _window_table(self, epoch: int, lane: int, window: int) -> tuple[Ints, Ints]:
        """Samples and annotations of a window, in their order."""
        shards, skipped, starts = self._shards(epoch, lane)
        shards = shards[window * self.window : (window + 1) * self.window]
        end = int(starts[window + 1]) if window + 1 < len(starts) else self.stretch(lane)[1]
        # Only the lane's part of its first shard, and below of its last one.
        in_lane = slice(skipped if window == 0 else 0, None)
        counts = np.concatenate(self.counts.of(shards)).astype(np.int64)
        samples = np.concatenate(
            [np.arange(self.first_sample[s], self.first_sample[s + 1]) for s in shards]
        )
        # Number the annotations within each sample: counts [2, 3] -> 0 1 0 1 2.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        within = within[in_lane][: end - int(starts[window])]
        row_samples = np.repeat(samples, counts)[in_lane][: len(within)]
        key: tuple[str | int, ...] = (self.seed, "window", self.name, epoch, window)
        if self.lanes > 1:
            key = (*key, "lane", lane)
        rows = permutation(len(within), *key)
        if self.group > 1:
            # Stable sort by sample: each sample's annotations in random order, side by side.
            begins = np.diff(row_samples, prepend=-1) != 0
            rows = rows[np.argsort(np.cumsum(begins)[rows], kind="stable")]
            # Every k annotations of a sample are a group, which a random word moves as a whole:
            # samples of 3 and 2 annotations in groups of 2 -> 0 0 1 2 2.
            groups = np.cumsum(begins | (within % self.group == 0)) - 1
            words = random_words(int(groups[-1]) + 1, *key, "groups")
            rows = rows[np.argsort(words[groups], kind="stable")]
        return row_samples[rows], within[rows]


@dataclass(frozen=True)
class NamedOrder:
    """A source with unknown samples: the mixture says when it comes, not what it gives."""

    name: str
    size: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    """As in `EpochOrder`."""

    def at(self, indices: Ints, lane: int = 0) -> tuple[Ints, Ints]:
        """The indices themselves, as if each sample had one annotation."""
        return indices, np.zeros_like(indices)

"""The samples of one batch: each is read and decoded once, its images copied to where they stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from vlds.data.errors import ShardError
from vlds.data.shards.decode import PictureCache, decode_pictures
from vlds.data.shards.store import Dataset
from vlds.data.streams.collate import ImageStack
from vlds.data.streams.source import Source, check_pictures
from vlds.schema import ImageSpec, Sample, SkipSample

Place: TypeAlias = tuple[int, int]
"""Number of the source, and of the sample in it."""
Key: TypeAlias = tuple[str, int]
"""Folder of the data set, and number of the sample in it: the same for all sources that have it."""


class Opened(NamedTuple):
    """A sample as it was read, for the examples of one batch."""

    sample: Sample
    images: range
    """Numbers in the batch's stack."""
    fault: str | None = None
    """Why the pictures are not there, where only the text is."""


class Unusable(NamedTuple):
    """A sample that cannot be used: class and message of the error.

    Not the error itself, which holds on to every frame that it has passed, the batch's among them:
    in a loader's worker that is shared memory, and a file descriptor for each piece of it, until
    the garbage collector comes.
    """

    kind: type[SkipSample | ShardError]
    reason: str


class OpenedSamples:
    """Opens samples, and remembers them, or their damage."""

    def __init__(
        self,
        sources: Sequence[Source],
        image: ImageSpec | None,
        cache: PictureCache,
        size: int,
        *,
        evaluation: bool,
    ) -> None:
        """`size`: images to expect. In training, samples in quarantine are not even read."""
        self.sources = sources
        self.evaluation = evaluation
        self.image = image
        self.stack = ImageStack(size)
        self._cache = cache
        self._found: dict[Key, Opened | Unusable] = {}

    def load(self, places: Iterable[Place]) -> None:
        """Read samples, then decode their pictures.

        One after the other, because decoding sweeps all else out of the processor's caches: in
        turns with it, reading takes twice as long.
        """
        waiting = []
        for place in places:
            dataset, key = self._locate(place)
            if key in self._found:
                continue
            try:
                opened = self._read(dataset, key[1])
            except (SkipSample, ShardError) as error:
                self._found[key] = Unusable(type(error), str(error))
                continue
            self._found[key] = opened
            if opened.fault is None:
                waiting.append((key, opened.sample))
        if self.image is not None:
            for key, sample in waiting:
                self._found[key] = self._decoded(key, sample, self.image)

    def open(self, place: Place) -> Opened:
        """A sample of a source.

        Errors: SkipSample where it cannot be used, ShardError where its shard is damaged.
        """
        _, key = self._locate(place)
        if key not in self._found:
            self.load([place])
        found = self._found[key]
        if isinstance(found, Unusable):
            raise found.kind(found.reason)
        return found

    def _locate(self, place: Place) -> tuple[Dataset, Key]:
        dataset, number = self.sources[place[0]].locate(place[1])
        return dataset, (str(dataset.folder), number)

    def _read(self, dataset: Dataset, number: int) -> Opened:
        fault = dataset.quarantine.get(number)
        if fault and not self.evaluation:
            raise SkipSample(fault)
        sample = dataset.read(number)
        if fault:  # evaluation wants its ids and references all the same
            return Opened(sample, range(0), fault)
        check_pictures(dataset.folder, sample, self.image)
        if self.image is not None:
            return Opened(sample, range(0))
        # Without its features the next sample is read into the same memory, still in the
        # processor's caches: that saves a third of the time of stored features.
        return Opened(replace(sample, features=()), self.stack.add(sample.features))

    def _decoded(self, key: Key, sample: Sample, image: ImageSpec) -> Opened:
        if (pictures := self._cache.get(key)) is None:
            try:
                pictures = decode_pictures(sample, image)
            except SkipSample as error:
                return Opened(sample, range(0), str(error))
            self._cache.put(key, pictures)
        return Opened(sample, self.stack.add(pictures))

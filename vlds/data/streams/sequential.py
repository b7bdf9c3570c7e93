"""The sequential reader: webdataset's way to read shards, from the first byte to the last.

For shards that are unindexed or stream-only. The shards of a source are permuted in every pass, and
passes follow one another without end; with n loader processes on all ranks, process k opens every
n-th shard of that sequence. So no process waits for another or runs dry, even with fewer shards
than processes: all ranks have equally many batches. The mixture says which task stands at which
position, as for indexed shards. Which of the task's examples comes there depends on the number of
processes, and a resumed stream begins new shards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch.utils.data
import webdataset

from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.order.epoch_order import NamedOrder, hashed, permutation
from vlds.data.shards.info import DATASET_FILE, DatasetInfo
from vlds.data.shards.sample import FOREIGN_FIELDS, UNUSABLE, check_fields, parse_sample
from vlds.data.shards.shard_stream import is_local, read_shard, shard_urls
from vlds.data.streams.assemble import (
    Candidate,
    OpenBatch,
    Opened,
    Place,
    SampleReader,
    StreamSetup,
)
from vlds.data.streams.source import ANY_NUMBER, NumPictures, TaskSource, check_pictures
from vlds.data.streams.stream import MixedStream
from vlds.runtime.json_files import in_words
from vlds.runtime.terminal import without_credentials
from vlds.schema import PictureSpec, Sample, SkipSample


@dataclass(frozen=True)
class StreamedDataset:
    """The shards of a pattern or folder, and what their samples hold."""

    location: str
    """As the recipe names it."""
    urls: Sequence[str]
    kind: str
    """Kind of the annotations."""
    fields: Mapping[str, str] | None
    """Field of an annotation -> member of a foreign sample that holds it."""
    info: DatasetInfo | None
    """The dataset.json beside local shards, if there is one."""

    @property
    def label(self) -> str:
        """For messages: name and split, if known."""
        return f"{self.info.name}-{self.info.split}" if self.info else self.location

    @property
    def num_annotations(self) -> int | None:
        """In all shards; None if unknown."""
        if self.info is None:
            return None
        # A pattern may name some of the shards that dataset.json lists, or one of them twice.
        known = {shard.name: shard.annotations for shard in self.info.shards}
        return sum(known[Path(url).name] for url in self.urls)

    def read(
        self, url: str, num_pictures: NumPictures = ANY_NUMBER
    ) -> Iterator[tuple[str, Sample | SkipSample]]:
        """Key of each sample of a shard, and the sample or why it cannot be used.

        Errors: ShardError if the shard is damaged or cannot be opened.
        """
        # With a dataset.json a shard that ends too early is noticed, even between two samples.
        known = {shard.name: shard.samples for shard in self.info.shards} if self.info else {}
        name = self.info.name if self.info else self.location
        for key, content in read_shard(url, known.get(Path(url).name)):
            try:
                sample = parse_sample(key, content, name, self.kind, self.fields)
                num_pictures.check(sample)
                yield key, sample
            except SkipSample as error:
                yield key, error
            except UNUSABLE as error:
                yield (
                    key,
                    SkipSample(f"sample {key} ({without_credentials(url)}): {in_words(error)}"),
                )


def open_streamed(
    location: str, kinds: Sequence[str], fields: Mapping[str, str] | None
) -> StreamedDataset:
    """The shards of a location, for a task that understands `kinds`; `fields` from the recipe.

    Errors: ValueError that names the location and the cure.
    """
    urls = shard_urls(location)
    info = None
    folders = {Path(url).parent if is_local(url) else None for url in urls}
    # A dataset.json describes the shards only if all of them lie beside it.
    folder = folders.pop() if len(folders) == 1 else None
    if folder is not None and (folder / DATASET_FILE).is_file():
        info = DatasetInfo.load(folder)
        if unknown := sorted({Path(url).name for url in urls} - {s.name for s in info.shards}):
            raise ValueError(
                f"{folder / DATASET_FILE} does not list {unknown[0]}; index the folder again with "
                "`vlds data index`, or remove the file"
            )
    if info is not None and info.kind not in kinds:
        raise ValueError(
            f"{location} holds samples of kind '{info.kind}', the task understands "
            f"{', '.join(kinds)}; name other shards or another task class"
        )
    kind = kinds[0]
    if info is not None:
        kind = info.kind
        fields = info.fields if fields is None else fields
    elif fields:
        kind = next((kind for kind in kinds if kind in FOREIGN_FIELDS), kind)
    if fields is not None:
        check_fields(kind, fields)
    return StreamedDataset(without_credentials(location), urls, kind, fields, info)


class StreamedSource(TaskSource[StreamedDataset]):
    """A task with shards that are read as streams."""

    @cached_property
    def shards(self) -> list[tuple[StreamedDataset, str]]:
        """Data set and URL of each shard."""
        return [(dataset, url) for dataset in self.datasets for url in dataset.urls]

    @property
    def num_annotations(self) -> int | None:
        """Annotations of all data sets together; None if unknown."""
        sizes = [dataset.num_annotations for dataset in self.datasets]
        return None if None in sizes else sum(filter(None, sizes))

    def fingerprint(self) -> str:
        """Changes with the list of shards and with what their samples hold."""
        return hashed(
            [
                ([*map(without_credentials, dataset.urls)], dataset.kind, dataset.fields)
                for dataset in self.datasets
            ]
        )

    def check(self, image: PictureSpec | None, policy: ErrorPolicy) -> None:
        """Read the first sample of each data set.

        Errors: ValueError if none can be used, or if the model does not read its sort.
        """
        for dataset in self.datasets:
            # Lazy: a shard is opened only if those before it gave no usable sample.
            samples = chain.from_iterable(
                dataset.read(url, self.num_pictures) for url in dataset.urls
            )
            fault: Exception = ShardError(f"{dataset.location}: its shards hold no sample")
            for _, sample in islice(samples, policy.max_in_a_row):
                if isinstance(sample, Sample):
                    check_pictures(dataset.location, sample, image)
                    break
                fault = sample
            else:
                raise ValueError(
                    f"source {self.name}: {fault}; foreign samples need data.fields, such as "
                    f"{{{self.name}: {{caption: txt}}}}"
                )


class SequentialStream(MixedStream):
    """Shards as they come; `notice` says what is weaker than in TrainStream."""

    notice = (
        "data.reader sequential: shards are split over ranks and workers, so the order of examples "
        "depends on their number; --resume begins new shards; epochs are not exact. For all of "
        "these: `vlds data index` and data.reader indexed"
    )

    def __init__(
        self, sources: Sequence[StreamedSource], config: DataConfig, setup: StreamSetup
    ) -> None:
        """Check everything; read the first sample of each data set."""
        for source in sources:
            source.check(setup.image, config.errors)
        about = {"shuffle_buffer": config.shuffle_buffer}
        orders = [NamedOrder(source.name, source.num_annotations, about) for source in sources]
        super().__init__(sources, orders, config, setup)
        self.sources = list(sources)

    def _reader(self) -> StreamedReader:
        return StreamedReader(self.sources, self.config, self.setup, self.consumed)

    def fingerprint(self) -> dict[str, Any]:
        """The mixture and the lists of shards."""
        data = {source.name: source.fingerprint() for source in self.sources}
        return {"reader": "sequential", "order": self.order.fingerprint(), "data": data}


class StreamedReader(SampleReader[StreamedSource]):
    """What comes next in the shards of the process that it is in."""

    def __init__(
        self,
        sources: Sequence[StreamedSource],
        config: DataConfig,
        setup: StreamSetup,
        start: int,
    ) -> None:
        """`start`: position at which the stream begins."""
        super().__init__(sources, config.errors, setup)
        self.config, self.start = config, start
        self._shuffled: dict[int, Iterator[Candidate]] = {}

    def load(self, places: Sequence[Place], batch: OpenBatch) -> None:
        """Nothing: which samples come next is not known."""

    def candidates(self, position: int, place: Place, batch: OpenBatch) -> Iterator[Candidate]:
        """What comes next in the shards of the position's source."""
        for candidate in self._examples(place[0]):
            if (sample := candidate.opened.sample) is not None:
                key = (candidate.shard, candidate.key)
                # Several examples of a batch may share a sample, whose pictures are decoded once.
                if key not in batch.samples:
                    batch.samples[key] = self._with_images(key, sample, batch)
                candidate = candidate._replace(opened=batch.samples[key])
            yield candidate

    def _examples(self, source_index: int) -> Iterator[Candidate]:
        """A source's examples in this process, without end, shuffled by webdataset."""
        if source_index not in self._shuffled:
            source = self.sources[source_index]
            # Processes are numbered through all ranks; without workers the rank is one itself.
            # With 2 workers, ranks 0 and 1 have the processes 0 1 and 2 3.
            worker = torch.utils.data.get_worker_info()
            num_workers = max(1, self.config.num_workers)
            process = self.setup.global_rank * num_workers + (worker.id if worker else 0)
            seed = f"{self.setup.seed}/{source.name}/{self.start}/{process}"
            self._shuffled[source_index] = iter(
                webdataset.DataPipeline(
                    lambda: self._unshuffled(source, process),
                    webdataset.shuffle(self.config.shuffle_buffer, rng=random.Random(seed)),
                )
            )
        return self._shuffled[source_index]

    def _unshuffled(self, source: StreamedSource, process: int) -> Iterator[Candidate]:
        """Every n-th of a source's shards, pass after pass, each in a new permutation. Damage stops
        the run, or takes the place of an example, as the policy says.

        Errors: ShardError.
        """
        # All processes draw the same permutations, and each takes every n-th shard of their
        # sequence. `start` is in the key, so that a resumed run does not read the first shards
        # again.
        key = (self.setup.seed, "sequential", source.name, self.start)
        num_processes = self.setup.cut.world_size * max(1, self.config.num_workers)
        passes = (permutation(len(source.shards), *key, number) for number in count())
        # Shards in a row without an example: without this limit a source of empty shards would
        # read on forever, and the rank would hang.
        num_empty, fault = 0, "it is empty"
        for index in islice(chain.from_iterable(passes), process, None, num_processes):
            num_empty += 1
            dataset, url = source.shards[index]
            shard = without_credentials(url)
            try:
                for name, sample in dataset.read(url, source.num_pictures):
                    if isinstance(sample, SkipSample):
                        num_empty = 0
                        opened = Opened(None, fault=str(sample))
                        yield Candidate(dataset.label, shard, name, 0, opened)
                        continue
                    for annotation in range(len(sample.annotations)):
                        num_empty = 0
                        yield Candidate(dataset.label, shard, name, annotation, Opened(sample))
            except ShardError as error:
                if self.policy.on_bad_shard == "stop":
                    raise
                fault = str(error)
                yield Candidate(dataset.label, shard, "the shard", 0, Opened(None, fault=fault))
            if num_empty > max(len(source.shards), self.policy.max_in_a_row):
                raise ShardError(
                    f"source {source.name}: {num_empty} shards in a row gave no "
                    f"example, such as {shard} ({fault}); look at what they hold"
                )

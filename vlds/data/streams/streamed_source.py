"""A task and the shards that feed it as streams, without an index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

from vlds.data.errors import ErrorPolicy, ShardError
from vlds.data.order.permutation import hashed
from vlds.data.shards.info import DATASET_FILE, DatasetInfo
from vlds.data.shards.sample import FOREIGN_FIELDS, UNUSABLE, check_fields, parse_sample
from vlds.data.shards.shard_stream import is_local, read_shard, shard_urls
from vlds.data.streams.source import ANY_NUMBER, NumPictures, TaskSource, check_pictures
from vlds.runtime.credentials import without_credentials
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
    """Of foreign samples: field of an annotation -> member that holds it."""
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
        known = {shard.name: shard.annotations for shard in self.info.shards}
        return sum(known[Path(url).name] for url in self.urls)

    def read(
        self, url: str, num_pictures: NumPictures = ANY_NUMBER
    ) -> Iterator[tuple[str, Sample | SkipSample]]:
        """Key of each sample of a shard, and the sample or why it cannot be used.

        Errors: ShardError if the shard is damaged or cannot be opened.
        """
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
                yield key, SkipSample(f"sample {key} ({without_credentials(url)}): {error!r}")


def open_streamed(
    location: str, kinds: Sequence[str], fields: Mapping[str, str] | None
) -> StreamedDataset:
    """The shards of a location, for a task that understands `kinds`; `fields` from the recipe.

    Errors: ValueError that names the location and the cure.
    """
    urls = shard_urls(location)
    info = _info_beside(urls)
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


def _info_beside(urls: Sequence[str]) -> DatasetInfo | None:
    """The dataset.json that describes all of these shards."""
    folders = {Path(url).parent if is_local(url) else None for url in urls}
    folder = folders.pop()
    if folders or folder is None or not (folder / DATASET_FILE).is_file():
        return None
    info = DatasetInfo.load(folder)
    if unknown := sorted({Path(url).name for url in urls} - {s.name for s in info.shards}):
        raise ValueError(
            f"{folder / DATASET_FILE} does not list {unknown[0]}; index the folder again with "
            "`python -m data_prep index`, or remove the file"
        )
    return info


class StreamedSource(TaskSource[StreamedDataset]):
    """A task with shards that are read as streams."""

    @cached_property
    def shards(self) -> list[tuple[StreamedDataset, str]]:
        """Data set and URL of each shard."""
        return [(dataset, url) for dataset in self.datasets for url in dataset.urls]

    @property
    def num_annotations(self) -> int | None:
        """Of all data sets; None if unknown."""
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

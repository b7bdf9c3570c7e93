"""How a recipe says that examples are drawn and cut into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlds.data.errors import ErrorPolicy
from vlds.data.shards.cache import ShardCache
from vlds.runtime.checks import Count, Natural, Positive, WrittenPath

Unit = Literal["example", "global_batch"]
"""What holds the examples of one task only."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How examples are drawn and cut into batches."""

    global_batch_size: Count = 64
    """Examples an optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: Count | None = None
    """Most examples a rank holds at once; default: its whole share of the global batch."""
    eval_batch_size: Count = 64
    """Examples a rank decodes at once in evaluation."""
    unit: Unit = "example"
    """What holds one task only: each example by itself, or the whole global batch, whose size each
    task may then set by its own `batch_size`."""
    temperature: Positive | None = None
    """T: a task of n examples is drawn as n^(1/T), 1 is by size; default: by the tasks' weights."""
    window: Count = 64
    """Shards that are shuffled together."""
    parts: Count = 1
    """Parts of similar shape (images, target and prompt length) in which a micro-batch is computed:
    tasks that are mixed within it are not padded to the largest."""
    group: Count = 1
    """Annotations of one image that stay together in a batch: it is decoded and encoded once."""
    lanes: Count = 1
    """Parts of the global batch that each read their own shards: with 64, say, nodes without a
    common disk fetch a part of the shards each. The order depends on it; it divides the global
    batch."""
    num_workers: Natural = 0
    """Loader processes of each rank."""
    reader: Literal["indexed", "sequential"] = "indexed"
    """sequential: webdataset's way, for shards that are unindexed or stream-only: a task's `train`
    names patterns, like `pipe:curl -s https://host/x-{000..009}.tar`. It promises less: shards are
    split over ranks and workers, the order of examples depends on their number, a resumed run
    begins new shards, epochs are not exact."""
    shuffle_buffer: Count = 1000
    """Examples among which the sequential reader draws: in each of its processes, for each task."""
    fields: dict[str, dict[str, str]] = field(default_factory=dict)
    """Foreign samples, for the sequential reader: task -> field of an annotation -> member that
    holds it, like {captions: {caption: txt}} or {vqa: {question: "json:q"}}."""
    decode: Literal["exact", "fast"] = "exact"
    """fast: large JPEGs are decoded at a fraction of their size, which gives other pixels; in
    evaluation too."""
    blank_images: bool = False
    """Replace every picture by plain grey, in evaluation too: the control that sees nothing."""
    cache: WrittenPath | None = None
    """Folder whose folder `vlds` holds copies of data sets named by URL, for all processes of a
    machine; default: $XDG_CACHE_HOME or ~/.cache. The recipe of an artifact has no say in it."""
    cache_bytes: Count | None = None
    """Bytes of shards that the cache keeps at most: the longest unused go; default: no limit."""
    errors: ErrorPolicy = field(default_factory=ErrorPolicy)
    """When bad samples stop the run."""

    def __post_init__(self) -> None:
        indexed_only, sequential_only = ("window", "group", "lanes"), ("shuffle_buffer", "fields")
        for name in sequential_only if self.reader == "indexed" else indexed_only:
            # A field with a default_factory is not an attribute of the class: `fields` is {}.
            value, default = getattr(self, name), getattr(DataConfig, name, {})
            if value != default:
                raise ValueError(
                    f"{name}: got {value}, which data.reader {self.reader} does not know; leave it "
                    "out, or choose the other reader"
                )

    def batch_sizes(self, of_tasks: Sequence[int | None]) -> list[int] | None:
        """Examples of each task's global batches, if these hold one task each. `of_tasks`: the
        tasks' `batch_size`."""
        if self.unit == "example":
            return None
        return [size or self.global_batch_size for size in of_tasks]

    @property
    def shard_cache(self) -> ShardCache:
        """Where copies of data sets named by URL are kept."""
        if self.cache is None:
            return ShardCache(limit=self.cache_bytes)
        return ShardCache(Path(self.cache).expanduser() / "vlds", self.cache_bytes)

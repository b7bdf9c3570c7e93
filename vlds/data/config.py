"""How a recipe says that examples are drawn and cut into batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlds.data.errors import ErrorPolicy
from vlds.data.shards.cache import ShardCache, default_folder
from vlds.runtime.checks import at_least


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How examples are drawn and cut into batches."""

    global_batch_size: int = 64
    """Examples an optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: int | None = None
    """Most examples a rank holds at once; default: its whole share of the global batch."""
    eval_batch_size: int = 64
    """Examples a rank decodes at once in evaluation."""
    unit: Literal["example", "global_batch"] = "example"
    """What is of one task: each example on its own, or the whole global batch, whose size each task
    may then set by its own `batch_size`."""
    temperature: float | None = None
    """T: a task of n examples is drawn as n^(1/T), 1 is by size; default: by the tasks' weights."""
    window: int = 64
    """Shards that are shuffled together."""
    parts: int = 1
    """Parts of similar shape (images, target and prompt length) in which a micro-batch is computed:
    tasks that are mixed within it are not padded to the largest."""
    group: int = 1
    """Annotations of one image that stay together in a batch: decoded and encoded once."""
    lanes: int = 1
    """Parts of the global batch that read shards of their own: with 64, say, nodes without a common
    disk fetch a part of the shards each. The order depends on it; it divides the global batch."""
    num_workers: int = 0
    """Loader processes of each rank."""
    reader: Literal["indexed", "sequential"] = "indexed"
    """sequential: webdataset's way, for shards without an index and such as can only be streamed: a
    task's `train` then names patterns, like `pipe:curl -s https://host/x-{000..009}.tar`. It
    promises less: shards are split over ranks and workers, the order of examples depends on their
    number, a resumed run begins new shards, epochs are not exact."""
    shuffle_buffer: int = 1000
    """Examples among which the sequential reader draws: in each of its processes, for each task."""
    fields: dict[str, dict[str, str]] = field(default_factory=dict)
    """Samples that others have written, for the sequential reader: task -> field of an annotation
    -> member that holds it, like {captions: {caption: txt}} or {vqa: {question: "json:q"}}."""
    decode: Literal["exact", "fast"] = "exact"
    """fast: large JPEGs are decoded at a fraction of their size, which gives other pixels; in
    evaluation too."""
    blank_images: bool = False
    """Replace every picture by plain grey, in evaluation too: the control that sees nothing."""
    cache: str | None = None
    """Folder for copies of data sets named by URL; default: vlds in $XDG_CACHE_HOME or ~/.cache."""
    cache_bytes: int | None = None
    """Bytes of shards that the cache keeps at most: the longest unused go; default: no limit."""
    errors: ErrorPolicy = field(default_factory=ErrorPolicy)
    """When bad samples stop the run."""

    def __post_init__(self) -> None:
        at_least(
            self, 1, "global_batch_size", "eval_batch_size", "window", "group", "parts", "lanes"
        )
        at_least(self, 0, "num_workers")
        if self.micro_batch_size is not None:
            at_least(self, 1, "micro_batch_size")
        if self.cache_bytes is not None:
            at_least(self, 1, "cache_bytes")
        at_least(self, 1, "shuffle_buffer")
        self._check_reader()

    def _check_reader(self) -> None:
        """What only one of the readers understands."""
        own = ("shuffle_buffer", "fields")
        others = ("window", "group", "lanes")
        for name in own if self.reader == "indexed" else others:
            value, default = getattr(self, name), getattr(DataConfig, name, {})
            if value != default:
                raise ValueError(
                    f"{name}: got {value}, which data.reader {self.reader} does not know; leave it "
                    "out, or choose the other reader"
                )

    @property
    def shard_cache(self) -> ShardCache:
        """Where copies of data sets named by URL are kept."""
        folder = default_folder() if self.cache is None else Path(self.cache).expanduser()
        return ShardCache(folder, self.cache_bytes)

"""Run a frozen vision encoder once over a data set and store its features for all epochs.

Each rank does whole shards. A finished shard has a `.done` file until all are finished: an
interrupted command continues with the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlds.config import Recipe, to_tree
from vlds.data.shards.decode import decode_pictures
from vlds.data.shards.info import DATASET_FILE, SCHEMA, DatasetInfo, ShardInfo, check_names
from vlds.data.shards.sample import FEATURES, feature_bytes
from vlds.data.shards.shard_index import beside
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.shards.writing import OpenShard
from vlds.runtime.disk import CannotWrite
from vlds.runtime.json_record import parse_record
from vlds.runtime.progress import Pace
from vlds.runtime.ranks import Ranks, hold_folder
from vlds.runtime.regular_file import read_file
from vlds.runtime.terminal import tell
from vlds.runtime.whole_file import write_whole
from vlds.schema import ImageSpec, Sample, SkipSample
from vlds.training.engine import LONGEST_WAIT, start_ranks
from vlds.training.prepare import check_frozen_files
from vlds.vision.base import GridEncoder, freeze

PAIR = ("left.", "right.")


@dataclass
class Done:
    """The content of a `.done` file."""

    identity: dict[str, Any]
    """What the features depend on: `Job.identity`."""
    shard: ShardInfo | None
    """None if no sample of it can be read."""
    dropped: list[dict[str, str]] = field(default_factory=list)

    def save(self, tar: Path) -> None:
        """Write it beside the shard."""
        write_whole(beside(tar, ".done"), json.dumps(asdict(self)))

    @classmethod
    def load(cls, tar: Path) -> Done | None:
        """What was done before; None if the shard is still to do."""
        path = beside(tar, ".done")
        if not path.is_file():
            return None
        try:
            done = parse_record(cls, read_file(path))
        except ValueError:  # of another version
            return None
        if (shard := done.shard) and not (tar.is_file() and tar.stat().st_size == shard.bytes):
            return None
        return done


def compute_features(recipe: Recipe, folder: str, out: Path, name: str | None) -> int:
    """Write the features of a data set's pictures as another data set. Returns the exit code.

    Errors: ValueError if the encoder reads no pictures, the data set holds none, or `out` holds
    something else or cannot be written.
    """
    image, vision = recipe.image, recipe.encoder
    if image is None:
        raise ValueError("vision: StoredFeatures computes nothing; name an encoder of pictures")
    assert isinstance(image, ImageSpec), "encoders of vlds take pictures of one size"
    if vision.source is None:
        raise ValueError("vision: its weights are random; name pretrained ones, or a file of them")
    dataset = open_dataset(folder, recipe.data.shard_cache)
    if not dataset.read(0).images:
        raise ValueError(f"--data: {folder} holds stored features already, not pictures")
    name = name or f"{dataset.name}_features"
    check_names(name, dataset.split)
    ranks = start_ranks(LONGEST_WAIT)
    job = Job(recipe, image, dataset, out, name)
    if job.is_done():
        if ranks.is_first:
            tell(f"{out} is complete already")
        return 0
    check_frozen_files(recipe, ranks)
    encoder = vision.build(recipe.training.dtype).to(ranks.device)
    freeze(encoder)
    try:
        with hold_folder(ranks, out):
            job.write_shards(encoder, ranks)
            ranks.barrier()
            if ranks.is_first:
                job.finish()
    except CannotWrite as error:
        raise ValueError(f"{error}. Finished shards are kept: start again") from error
    ranks.barrier()
    return 0


@dataclass
class Job:
    """One data set and one encoder."""

    recipe: Recipe
    image: ImageSpec
    dataset: Dataset
    out: Path
    name: str

    @property
    def identity(self) -> dict[str, Any]:
        """What the features depend on."""
        return {
            "data": self.dataset.fingerprint(),
            "name": self.name,
            "encoder": to_tree(self.recipe.encoder),
            "precision": self.recipe.training.precision,
            "decode": self.image.decode,
        }

    @property
    def tars(self) -> list[Path]:
        """The shards to write, one for each shard of the pictures."""
        stem = f"{self.name}-{self.dataset.split}"
        return [self.out / f"{stem}-{n:05d}.tar" for n in range(len(self.dataset.info.shards))]

    def is_done(self) -> bool:
        """True if `out` holds exactly these features; ValueError if it holds or began others."""
        if (self.out / DATASET_FILE).is_file():
            if (DatasetInfo.load(self.out).tool or {}).get("features") != self.identity:
                raise ValueError(f"--out: {self.out} holds another data set; name another folder")
            return True
        for tar in self.tars:
            done = Done.load(tar)
            if done is not None and done.identity != self.identity:
                raise ValueError(
                    f"--out: {self.out} was begun with other pictures or another encoder; remove "
                    "it, or name another folder"
                )
        return False

    def write_shards(self, encoder: GridEncoder, ranks: Ranks) -> None:
        """This rank's shards, except those that are done."""
        self.out.mkdir(parents=True, exist_ok=True)
        share = list(enumerate(self.tars))[ranks.global_rank :: ranks.world_size]
        to_do = [(number, tar) for number, tar in share if Done.load(tar) is None]
        pace, pictures = Pace(), 0
        for count, (number, tar) in enumerate(to_do, 1):
            pictures += self.write_shard(encoder, number, tar)
            if ranks.is_first and pace.line_is_due():
                speed = f"{pictures / pace.seconds:,.0f} pictures/s"
                tell(f"shard {count} of {len(to_do)} of this rank, {speed}", flush=True)

    def write_shard(self, encoder: GridEncoder, number: int, tar: Path) -> int:
        """One shard; returns how many pictures were encoded."""
        dropped: list[dict[str, str]] = []
        pictures = 0
        with OpenShard(tar, self.dataset.info.indexed_classes) as shard:
            for sample, features in self.encoded(encoder, number, dropped):
                pictures += len(features)
                sides = PAIR if len(features) == len(PAIR) else ("",)
                tree = {"id": sample.id, "images": [], "annotations": sample.annotations}
                text = json.dumps({**tree, **sample.extra}, ensure_ascii=False)
                content = {
                    side + FEATURES: feature_bytes(array)
                    for side, array in zip(sides, features, strict=True)
                }
                shard.add(sample.key, content | {"json": text.encode()})
            Done(self.identity, shard.close() if shard.counts else None, dropped).save(tar)
        return pictures

    def encoded(
        self, encoder: GridEncoder, number: int, dropped: list[dict[str, str]]
    ) -> Iterator[tuple[Sample, Sequence[np.ndarray]]]:
        """Samples of a shard with the features of their pictures, batch by batch."""
        first = sum(shard.samples for shard in self.dataset.info.shards[:number])
        last = first + self.dataset.info.shards[number].samples
        size = self.recipe.data.eval_batch_size
        with ThreadPoolExecutor(max(1, self.recipe.data.num_workers)) as pool:
            for begin in range(first, last, size):
                opened = list(pool.map(self.open, range(begin, min(begin + size, last))))
                dropped += [entry for entry in opened if isinstance(entry, dict)]
                good = [entry for entry in opened if not isinstance(entry, dict)]
                arrays = iter(encode(encoder, [pixels for _, images in good for pixels in images]))
                for sample, images in good:
                    yield sample, [next(arrays) for _ in images]

    def open(self, number: int) -> tuple[Sample, Sequence[np.ndarray]] | dict[str, str]:
        """A sample with its decoded pictures, or why it is dropped."""
        sample: Sample | None = None
        try:
            sample = self.dataset.read(number)
            return sample, decode_pictures(sample, self.image)
        except SkipSample as error:
            return {"id": sample.id if sample else f"number {number}", "reason": str(error)}

    def finish(self) -> None:
        """dataset.json, when all shards are there."""
        done = [entry for tar in self.tars if (entry := Done.load(tar)) is not None]
        shards = tuple(entry.shard for entry in done if entry.shard is not None)
        if not shards:
            raise ValueError(f"--data: {self.dataset.folder}: no picture could be read")
        old, vision = self.dataset.info, self.recipe.encoder
        info = DatasetInfo(
            schema=SCHEMA,
            name=self.name,
            kind=old.kind,
            split=old.split,
            shards=shards,
            samples=sum(shard.samples for shard in shards),
            annotations=sum(shard.annotations for shard in shards),
            features={
                "encoder": to_tree(vision),
                "grid": vision.geometry.grid_size,
                "tokens": vision.geometry.grid_size**2,
                "dim": vision.geometry.feature_dim,
                "image_size": [self.image.height, self.image.width],
            },
            answers=old.answers,
            classes=old.classes,
            source=old.source,
            tool={**(old.tool or {}), "features": self.identity},
            dropped=(*old.dropped, *(drop for entry in done for drop in entry.dropped)),
        )
        info.save(self.out)
        for tar in self.tars:
            beside(tar, ".done").unlink(missing_ok=True)
        tell(f"{info.name} {info.split}: {info.samples:,} samples -> {self.out}")
        for drop in info.dropped[len(old.dropped) :]:
            tell(f"  dropped {drop['id']}: {drop['reason']}")


@torch.inference_mode()
def encode(encoder: GridEncoder, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(3, h, w) uint8 each -> (tokens, dim) float16 each."""
    if not pictures:
        return []
    device = next(encoder.parameters()).device
    images: Tensor = torch.from_numpy(np.stack(pictures)).to(device)
    return list(encoder(images).to(torch.float16).cpu().numpy())

"""Run a frozen vision encoder once over a data set and store its features for all epochs.

Each rank, or each worker of a cluster, does whole shards. A finished shard has a `.done` file until
all are finished: an interrupted command continues with the others. It compares content: the data
set's fingerprint, the encoder's weights and settings, and each finished shard with what its file
says.

A cluster may lose a worker in the middle of a shard, or let two of them compute the same one. So
each computes it in a folder of its own (an attempt), and only the command moves finished shards to
their place, one for each number.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from vlds.data.shards.info import DATASET_FILE, SCHEMA, DatasetInfo, ShardInfo, check_names
from vlds.data.shards.pictures import decode_pictures
from vlds.data.shards.sample import FEATURES, feature_bytes
from vlds.data.shards.shard_index import beside, load_index
from vlds.data.shards.store import Dataset, open_dataset
from vlds.data.shards.writing import OpenShard
from vlds.evaluation.sources import check_frozen_files
from vlds.models.loading.gate import check_finite
from vlds.models.vision.base import GridEncoder, freeze
from vlds.recipe.build import to_tree
from vlds.recipe.config import Recipe
from vlds.runtime.cluster import SHARED, Cluster, UnfitWorker, this_worker
from vlds.runtime.deepspeed_start import LONGEST_WAIT, start_ranks, use_gpu
from vlds.runtime.devices import device_of
from vlds.runtime.disk import CannotWrite, sync
from vlds.runtime.files import read_file, write_whole
from vlds.runtime.json_files import parse_record, sha256
from vlds.runtime.ranks import Ranks, hold_folder
from vlds.runtime.terminal import Pace, follow, tell
from vlds.runtime.workers import ordered_map
from vlds.schema import ImageSpec, Sample, SkipSample

PAIR = ("left.", "right.")
Opened: TypeAlias = tuple[Sample, Sequence[np.ndarray]] | dict[str, str]
"""A sample with its pictures, or its id and the reason why it is dropped."""


@dataclass
class Done:
    """The content of a `.done` file."""

    identity: dict[str, Any]
    """What the features depend on: `FeatureJob.identity`."""
    shard: ShardInfo | None
    """None if no sample of it can be read."""
    dropped: list[dict[str, str]] = field(default_factory=list)

    def save(self, tar: Path) -> None:
        """Write it beside the shard."""
        write_whole(beside(tar, ".done"), json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> Done | None:
        """What a file says; None if it is missing, or of another version."""
        try:
            return parse_record(cls, read_file(file))
        except (FileNotFoundError, ValueError):
            return None

    def is_true(self, tar: Path, samples: int, classes: Sequence[str] | None) -> bool:
        """True if a shard of so many samples was done so: what it describes is there, byte by byte,
        and with what was dropped it is all of them."""
        # The cheap checks first: hashing reads the whole shard.
        written = 0 if self.shard is None else self.shard.samples
        if written + len(self.dropped) != samples:
            return False
        if self.shard is None:
            return True
        try:
            load_index(tar.parent, self.shard, classes=classes)
            return self.shard.name == tar.name and sha256(tar) == self.shard.sha256
        except (OSError, ValueError):
            return False


def compute_features(
    recipe: Recipe, folder: str, out: Path, name: str | None, cluster: Cluster | None = None
) -> int:
    """Write the features of a data set's pictures as another data set: on all ranks, or, from a
    single one, on a cluster. Returns the exit code.

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
    check_frozen_files(recipe, ranks)
    encoder = vision.build(recipe.training.dtype)
    freeze(encoder)
    check_finite(encoder, "model.vision")
    # Machines may have different files at one path: then shards of one data set would not match.
    job = FeatureJob(recipe, image, dataset, out, name, encoder.content_hash())
    hashes = ranks.gather(job.content)
    if len(found := set(ranks.broadcast(hashes) or ())) > 1:
        raise ValueError(
            f"model.vision: {vision.source} holds other weights or settings on one rank than on "
            f"another (sha256 {' and '.join(sorted(h[:12] for h in found))}); give all ranks the "
            "same files"
        )
    if job.is_done():
        if ranks.is_first:
            tell(f"{out} is complete already")
        return 0
    try:
        with hold_folder(ranks, out):
            if ranks.is_first:
                adopt_attempts(out, job.identity)
            ranks.barrier()
            if cluster is None:
                encoder.to(ranks.device)
                job.write_shards(encoder, ranks)
            else:
                job.write_on(cluster, folder)
            # All shards must be there before the first rank describes them.
            ranks.barrier()
            if ranks.is_first:
                job.finish()
    except CannotWrite as error:
        raise ValueError(f"{error}. Finished shards are kept: start again") from error
    # No rank ends, and with it the launcher, while the first one still writes.
    ranks.barrier()
    return 0


@dataclass
class FeatureJob:
    """One data set and one encoder."""

    recipe: Recipe
    image: ImageSpec
    dataset: Dataset
    out: Path
    name: str
    content: str
    """sha256 of the encoder's weights and settings."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the features depend on. The encoder's path does not count: other weights may lie
        there later, and the same ones elsewhere."""
        vision = self.recipe.encoder
        tree = to_tree(vision)
        settings = {k: v for k, v in tree["init_args"].items() if v is None or v != vision.source}
        return {
            "data": self.dataset.fingerprint(),
            "name": self.name,
            "encoder": {**tree, "init_args": settings},
            "encoder (sha256)": self.content,
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
            info = DatasetInfo.load(self.out)
            self.check_same((info.tool or {}).get("features"), "holds another data set")
            for shard in info.shards:
                load_index(self.out, shard, classes=info.indexed_classes)
            return True
        for file in sorted(self.out.glob("*.done")):
            if (done := Done.load(file)) is not None:
                self.check_same(done.identity, "was begun with other pictures or another encoder")
        return False

    def check_same(self, found: Any, what: str) -> None:
        """Errors: ValueError that names the first difference from what is in `out`."""
        mine = self.identity
        if found == mine:
            return
        there = found if isinstance(found, dict) else {}
        name = next((name for name in mine if there.get(name) != mine[name]), "what was stored")
        raise ValueError(
            f"--out: {self.out} {what}: {name} is {there.get(name, 'unknown')} there, and "
            f"{mine.get(name)} for {self.dataset.folder} and {self.recipe.encoder.source}; bring "
            "back what it was begun with, remove the folder, or name another one"
        )

    def still_to_do(self, number: int, tar: Path) -> bool:
        """False if an interrupted command has finished a shard."""
        if (done := Done.load(beside(tar, ".done"))) is None:
            return True
        samples = self.dataset.info.shards[number].samples
        if done.is_true(tar, samples, self.dataset.info.indexed_classes):
            # Pictures that could not be read then may be whole now: a server or disk was at fault.
            entries = (e for opened in self.opened(number) for e in opened) if done.dropped else ()
            if done.dropped == [entry for entry in entries if isinstance(entry, dict)]:
                return False
        tell(f"{tar} is not what {tar.name}.done says, and is computed again", error=True)
        return True

    def write_shards(self, encoder: GridEncoder, ranks: Ranks) -> None:
        """This rank's shards, except those that are done."""
        self.out.mkdir(parents=True, exist_ok=True)
        # Whole shards in turn: ranks need not wait for each other.
        share = list(enumerate(self.tars))[ranks.global_rank :: ranks.world_size]
        to_do = [(number, tar) for number, tar in share if self.still_to_do(number, tar)]
        pace, pictures = Pace(), 0
        for count, (number, tar) in enumerate(to_do, 1):
            pictures += self.write_shard(encoder, number, tar)
            if ranks.is_first and pace.line_is_due():
                speed = f"{pictures / pace.seconds:,.0f} pictures/s"
                tell(f"shard {count} of {len(to_do)} of this rank, {speed}", flush=True)

    def write_on(self, cluster: Cluster, folder: str) -> None:
        """All shards, except those that are done, by a cluster's workers. `folder`: of the
        pictures, as the recipe's user names it."""
        store = StoreShard(pickle.dumps((self.recipe, folder, self.out, self.name, self.content)))
        with token_in(self.out) as token:
            pictures = Path(folder, DATASET_FILE)
            landmarks = [token, *[pictures] * pictures.is_file()]
            numbers = range(len(self.tars))
            attempts = ordered_map(store, numbers, 1, chunk=1, cluster=cluster, files=landmarks)
            for tar, attempt in zip(
                self.tars, follow(attempts, "shards", len(self.tars)), strict=True
            ):
                if attempt:
                    if Done.load(beside(tar, ".done")) is not None:
                        tell(f"{tar} was not what {tar.name}.done says", error=True)
                    accept(self.out / attempt, self.out)
            remove_attempts(self.out)

    def write_shard(self, encoder: GridEncoder, number: int, tar: Path) -> int:
        """One shard; returns how many pictures were encoded. Its `.done` file is written last."""
        dropped: list[dict[str, str]] = []
        pictures = 0
        with OpenShard(tar, self.dataset.info.indexed_classes) as shard:
            for sample, features in self.encoded(encoder, number, dropped):
                pictures += len(features)
                # Samples have one picture or a pair; members of a pair sort left before right.
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
        for opened in self.opened(number):
            dropped += [entry for entry in opened if isinstance(entry, dict)]
            good = [entry for entry in opened if not isinstance(entry, dict)]
            # All pictures of a batch in one pass; samples may have one or two.
            arrays = iter(encode(encoder, [pixels for _, images in good for pixels in images]))
            for sample, images in good:
                yield sample, [next(arrays) for _ in images]

    def opened(self, number: int) -> Iterator[list[Opened]]:
        """What `open` gives for the samples of a shard, batch by batch."""
        shards = self.dataset.info.shards
        first = sum(shard.samples for shard in shards[:number])
        last = first + shards[number].samples
        size = self.recipe.data.eval_batch_size
        # Pillow releases the GIL while it decodes.
        with ThreadPoolExecutor(max(1, self.recipe.data.num_workers)) as pool:
            for begin in range(first, last, size):
                yield list(pool.map(self.open, range(begin, min(begin + size, last))))

    def open(self, number: int) -> Opened:
        """A sample with its decoded pictures, or why it is dropped."""
        sample: Sample | None = None
        try:
            sample = self.dataset.read(number)
            return sample, decode_pictures(sample, self.image)
        except SkipSample as error:
            return {"id": sample.id if sample else f"number {number}", "reason": str(error)}

    def finish(self) -> None:
        """dataset.json, when all shards are there."""
        found = {tar: Done.load(beside(tar, ".done")) for tar in self.tars}
        if missing := [tar.name for tar, entry in found.items() if entry is None]:
            raise ValueError(f"--out: {missing[0]} is missing in {self.out}; start again")
        done = [entry for entry in found.values() if entry is not None]
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
        # dataset.json is whole, and says what the `.done` files said.
        for tar in self.tars:
            beside(tar, ".done").unlink(missing_ok=True)
        tell(f"{info.name} {info.split}: {info.samples:,} samples -> {self.out}")
        for drop in info.dropped[len(old.dropped) :]:
            tell(f"  dropped {drop['id']}: {drop['reason']}")


ATTEMPT = ".attempt"


@dataclass(frozen=True)
class StoreShard:
    """On a worker: computes the shard of a number in a folder of its own."""

    work: bytes
    """Pickled recipe, folder of the pictures, output folder, name, and sha256 of the encoder."""

    def __call__(self, number: int) -> str:
        """Name of the folder, which lies in the output folder; "" if the shard is done."""
        job, encoder = prepared(self.work)
        tar = job.tars[number]
        if not job.still_to_do(number, tar):
            return ""
        maker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        attempt = job.out / f".{tar.name}@{maker}{ATTEMPT}"
        try:
            job.write_shard(encoder, number, attempt / tar.name)
        except BaseException:
            shutil.rmtree(attempt, ignore_errors=True)
            raise
        return attempt.name


@lru_cache(maxsize=1)
def prepared(work: bytes) -> tuple[FeatureJob, GridEncoder]:
    """The job, and the encoder on this worker's GPU, if there is one.

    Errors: UnfitWorker if the encoder has other weights here.
    """
    recipe, folder, out, name, content = pickle.loads(work)
    encoder = recipe.encoder.build(recipe.training.dtype)
    freeze(encoder)
    if (here := encoder.content_hash()) != content:
        raise UnfitWorker(
            f"{this_worker()} has other weights or settings at model.vision: "
            f"{recipe.encoder.source} (sha256 {here[:12]}, the command has {content[:12]}); give "
            "all machines the same files"
        )
    device = device_of(0)  # a cluster gives each worker its own GPU, or none
    if device.type != "cpu":
        use_gpu(device)
    encoder.to(device)
    dataset = open_dataset(folder, recipe.data.shard_cache)
    return FeatureJob(recipe, recipe.image, dataset, out, name, content), encoder


@contextmanager
def token_in(out: Path) -> Iterator[Path]:
    """A file by which workers show that they see an output folder."""
    token = out / f".token-{uuid4().hex[:8]}"
    write_whole(token, uuid4().hex)
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def accept(attempt: Path, out: Path) -> None:
    """Move a finished shard from the folder of a worker to its place; what was there is replaced.

    Errors: ValueError if this machine does not see it.
    """
    files = sorted(attempt.iterdir()) if attempt.is_dir() else []
    if not any(file.suffix == ".done" for file in files):
        raise ValueError(
            f"a worker has written {attempt}, and this command does not see it there; {SHARED}"
        )
    # The .done file says that all others are there.
    for file in sorted(files, key=lambda file: file.suffix == ".done"):
        os.replace(file, out / file.name)
    sync(out)
    attempt.rmdir()


def adopt_attempts(out: Path, identity: Mapping[str, Any]) -> None:
    """Accept the finished attempts that a killed command has left, and remove the others."""
    for attempt in sorted(out.glob(f".*{ATTEMPT}")):
        done = [Done.load(file) for file in attempt.glob("*.done")]
        if done and done[0] is not None and done[0].identity == identity:
            accept(attempt, out)
    remove_attempts(out, quiet=True)


def remove_attempts(out: Path, quiet: bool = False) -> None:
    """Remove all attempts, and say which shards were computed twice or by half."""
    for attempt in sorted(out.glob(f".*{ATTEMPT}")):
        tar, _, maker = attempt.name.removeprefix(".").partition("@")
        maker = maker.removesuffix(ATTEMPT)
        if any(attempt.glob("*.done")):
            what = f"was computed twice: the copy of worker {maker} is removed"
        else:
            what = f"was left half written by worker {maker}, and is removed: another computed it"
        if not quiet:
            tell(f"{tar} {what}", error=True, flush=True)
        shutil.rmtree(attempt, ignore_errors=True)


@torch.inference_mode()
def encode(encoder: GridEncoder, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(3, h, w) uint8 each -> (tokens, dim) float16 each."""
    if not pictures:
        return []
    device = next(encoder.parameters()).device
    # uint8 to the device, where the encoder makes floats of it: a fraction of the bytes to copy.
    images: Tensor = torch.from_numpy(np.stack(pictures)).to(device)
    return list(encoder(images).to(torch.float16).cpu().numpy())

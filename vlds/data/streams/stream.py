"""The streams of batches that training and evaluation read.

`MixedStream` is what all endless streams of a mixture share: position, micro-batches, state.
`TrainStream` and `EvalStream` read indexed shards; sequential.py has the stream of others.
`ask_all` asks the tasks about a sample before a run does.
"""

from __future__ import annotations

import re
import reprlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count
from typing import Any

import numpy as np
import torch

import vlds.tasks
from vlds.data.config import DataConfig
from vlds.data.errors import BadSample, ErrorBook, ErrorPolicy, ShardError
from vlds.data.order.epoch_order import WHOLE_SAMPLE, EpochOrder, differences, hashed, random_words
from vlds.data.order.mixed_order import Phase, SourceOrder, mixed_order, mixture_of
from vlds.data.shards.store import Dataset
from vlds.data.streams.assemble import (
    Assembler,
    Candidate,
    OpenBatch,
    Opened,
    Place,
    SampleReader,
    StreamSetup,
)
from vlds.data.streams.loader import parcels
from vlds.data.streams.source import (
    EvalOrder,
    NumPictures,
    Source,
    SourceCounts,
    TaskSource,
    check_pictures,
)
from vlds.schema import Batch, Sample, SkipSample
from vlds.tasks.base import Task, Unlabelled, ask

TASKS: tuple[Task, ...] = tuple(
    getattr(vlds.tasks, name)() for name in vlds.tasks.__all__ if name != Task.__name__
)


@dataclass
class Asked:
    """What the tasks found."""

    faults: list[str] = field(default_factory=list)
    """Why a run would replace the sample, or refuse to start with it."""
    labelled: set[int] = field(default_factory=set)
    """Numbers of the annotations that a task can train on."""


def ask_all(sample: Sample) -> Asked:
    """Ask the tasks of a sample's kind about all its annotations, in training and evaluation.

    The tasks have their own prompts; a recipe may give longer ones.
    """
    asked = Asked()
    indices = range(len(sample.annotations))
    for task in TASKS:
        if sample.kind not in task.kinds:
            continue
        try:
            NumPictures(task.num_pictures or 0, task.num_pictures).check(sample)
            rng = np.random.default_rng(0)
            for index in indices:
                try:
                    example = ask(task, sample.kind, sample, index, rng)
                except Unlabelled:
                    continue
                if example.target is not None:
                    asked.labelled.add(index)
            for annotation in indices if task.unit == "annotation" else [None]:
                ask(task, sample.kind, sample, annotation, None)
        except SkipSample as error:
            asked.faults.append(str(error))
    return asked


FIXED = tuple(f"order.{key}:" for key in ("seed", "window", "group", "lanes", "batch_size"))
"""What a new phase cannot change: mid-epoch, that would repeat or skip examples."""
SHARE = re.compile(r"\d+(/\d+)?")
"""Stricter than Fraction, which would make a huge integer of 1e999999999."""


class MixedStream(ABC):
    """Micro-batches of one rank, without end.

    An optimizer step consists of one global batch of the order, whatever the number of ranks,
    workers and micro-batches: `BatchCut` says which of its slots a rank computes. Its state
    is `consumed`, the position of the next global batch, and the phase that it lies in. It counts
    batches as they are handed out, so what workers have prepared ahead is not lost.
    """

    notice: str | None = None
    """What a user must know about this reader, in a line."""

    def __init__(
        self,
        sources: Sequence[TaskSource[object]],
        orders: Sequence[SourceOrder],
        config: DataConfig,
        setup: StreamSetup,
    ) -> None:
        """`orders`: of each source's examples."""
        batch_sizes = config.batch_sizes([source.batch_size for source in sources])
        self.order = mixed_order(
            orders,
            [source.weight for source in sources],
            seed=setup.seed,
            temperature=config.temperature,
            global_batch_size=config.global_batch_size,
            batch_sizes=batch_sizes,
            lanes=config.lanes,
        )
        setup.cut.check(min(batch_sizes or [config.global_batch_size]), "global_batch_size")
        self.config = config
        self.setup = setup
        self._book = ErrorBook(config.errors, setup.ledger)
        self.consumed = 0
        """Position of the next global batch."""
        self._iteration = 0

    @abstractmethod
    def _reader(self) -> SampleReader[TaskSource[object]]:
        """The reader of the samples from `consumed` on; workers use it."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the order depends on; a state fits only streams with the same fingerprint."""

    @property
    def num_bad(self) -> int:
        """Examples of this rank that were replaced, since the process started."""
        return self._book.num_bad

    def epochs(self, after_steps: int | None = None) -> dict[str, float]:
        """Epochs of each source so far, or after so many steps of the current mixture; without
        sources of unknown size."""
        position = self.consumed
        if after_steps is not None:
            position = self.order.phase.at + after_steps * self.order.stride
        given = self.order.given(position)
        # Examples given by all lanes of a source, over those of one epoch.
        return {o.name: sum(given[o.name]) / o.size for o in self.order.orders if o.size}

    def __iter__(self) -> Iterator[Batch]:
        return chain.from_iterable(self.steps())

    def steps(self) -> Generator[list[Batch], None, None]:
        """This rank's micro-batches of each global batch, equally many on every rank. A micro-batch
        without its own rows holds another rank's, which is not `valid`."""
        # Not a generator itself: older iterators are void from this call on, not only from the
        # first batch that is taken.
        self._iteration += 1
        return self._steps(self._iteration)

    def _steps(self, iteration: int) -> Generator[list[Batch], None, None]:
        first, stride = self.consumed, self.order.stride
        # Torch's loader makes no empty batches, so a micro-batch without rows reads the first
        # example of its global batch.
        positions = (
            list(piece) or [start]
            for start in count(first, stride)
            for piece in self._pieces(start)
        )
        assembler = self.assembler()
        num_workers, timeout = self.config.num_workers, self.setup.worker_timeout
        # Closed at once: an error's traceback would keep the workers.
        with closing(parcels(assembler, positions, num_workers, timeout)) as loaded:
            for start in count(first, stride):
                batches = []
                for piece in self._pieces(start):
                    parcel = next(loaded)
                    # Two iterators that move one `consumed` would hand out examples twice.
                    if iteration != self._iteration:
                        raise RuntimeError(
                            "the stream was moved or restarted; this iterator is void"
                        )
                    if piece:
                        self._book.record(parcel.positions, parcel.bad)
                    batch = parcel.unpack()
                    # Computed for the collectives alone: no row counts in loss or gradient.
                    if not piece:
                        batch = replace(batch, valid=torch.zeros_like(batch.valid))
                    batches.append(batch)
                # Counted as it is handed out: a state saved after this step begins with the next.
                self.consumed = start + stride
                yield batches

    def assembler(self) -> Assembler:
        """What makes batches of positions, from `consumed` on."""
        return Assembler(self._reader(), self.order)

    def _pieces(self, start: int) -> list[range]:
        """Positions of this rank's micro-batches in the global batch that begins at `start`."""
        size = int(self.order.sizes_at(np.array([start]))[0])
        pieces = self.setup.cut.pieces(size, self.setup.global_rank)
        return [range(start + slots.start, start + slots.stop) for slots in pieces]

    def state(self) -> dict[str, Any]:
        """JSON-able state: one integer, what it refers to, and where the mixture was changed."""
        return {
            "consumed": self.consumed,
            "global_batch_size": self.config.global_batch_size,
            "phase": asdict(self.order.phase),
            "fingerprint": self.fingerprint(),
        }

    def load_state(self, state: dict[str, Any], *, new_phase: bool = False) -> None:
        """Continue where `state` was saved, on any number of ranks and workers.

        With `new_phase` the sources, their data, weights and units may have changed: each source
        continues where it was, in the new mixture.

        Errors: ValueError with the differences for the state of another order, and for a state that
        no stream saves.
        """
        check_state(state)
        lines = differences(state["fingerprint"], self.fingerprint())
        fixed = [line for line in lines if line.startswith(FIXED)] if new_phase else lines
        if fixed:
            cure = (
                "These cannot change within a run: resume with the saved ones, or start a new run."
                if new_phase
                else "Resume with the saved recipe and data, or start a new run; with --new-phase "
                "each task continues from where it was, in the new mixture."
            )
            raise ValueError(
                "this run's data differ from those of the state to resume (saved -> now):\n  "
                + "\n  ".join(fixed)
                + f"\n{cure}"
            )
        saved_size, size = state["global_batch_size"], self.config.global_batch_size
        # For batches of one task the fingerprint holds their sizes.
        if self.order.batch_sizes is None and saved_size != size:
            warnings.warn(
                f"global_batch_size was {saved_size}, is {size}: the order of examples continues, "
                "its batches are cut differently",
                stacklevel=2,
            )
        phase = Phase(**state["phase"])
        # Without a change the saved phase continues, as if the flag were not given.
        if new_phase and lines:
            phase = Phase(state["consumed"], given_before(state))
        self.consumed, self.order.phase = state["consumed"], phase
        self._iteration += 1


def check_state(state: Mapping[str, Any]) -> None:
    """Errors: ValueError that names a field and its value that no stream saves."""
    kinds = {"consumed": int, "global_batch_size": int, "phase": dict, "fingerprint": dict}
    for name, kind in kinds.items():
        # Not isinstance, which takes True for a number.
        if type(state.get(name)) is not kind:
            raise invalid_state(name, state.get(name))
    # Beyond any run, and far enough below 2^63 that sums of positions fit 64 bits.
    if not 0 <= state["consumed"] < 1 << 53:
        raise invalid_state("consumed", state["consumed"])
    if state["global_batch_size"] < 1:
        raise invalid_state("global_batch_size", state["global_batch_size"])
    order = state["fingerprint"].get("order")
    if not isinstance(order, dict):
        raise invalid_state("fingerprint.order", order)
    # A phase began before this position, and has counts of examples for each lane.
    phase = state["phase"]
    at, given = phase.get("at"), phase.get("given")
    is_phase = phase.keys() == {"at", "given"} and type(at) is int and isinstance(given, dict)
    if not is_phase or not 0 <= at <= state["consumed"]:
        raise invalid_state("phase", phase)
    for counts in given.values():
        fits = isinstance(counts, list) and len(counts) == order.get("lanes")
        if not fits or not all(type(count) is int and 0 <= count <= at for count in counts):
            raise invalid_state("phase", phase)


def given_before(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Examples of each source before a state, lane by lane. They follow from the mixture in which
    the state was saved.

    Errors: ValueError for a mixture that no run has.
    """
    order = state["fingerprint"]["order"]
    try:
        if not all(map(SHARE.fullmatch, order["shares"].values())):
            raise invalid_state("fingerprint.order.shares", order["shares"])
        mixture = mixture_of(order)
        mixture.phase = Phase(**state["phase"])
        return mixture.given(state["consumed"])
    # A hand-written state may hold any numbers and words.
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise invalid_state("fingerprint.order", order) from error


def invalid_state(name: str, value: Any) -> ValueError:
    """The error for a field whose value no stream saves."""
    return ValueError(
        f"its position in the data is invalid: data.{name} is {reprlib.repr(value)}, which no run "
        "has saved; move that folder away to resume from the state before it, or name another "
        "output"
    )


MOST_NAMED = 4
"""Data sets that a state names one by one; of more it says only whether a task's are the same."""


class TrainStream(MixedStream):
    """Indexed shards: any number of ranks and workers reads the same global batches."""

    def __init__(self, sources: Sequence[Source], config: DataConfig, setup: StreamSetup) -> None:
        """Check everything; read the first sample of each data set."""
        names = [source.name for source in sources]
        if not sources or len(set(names)) < len(names):
            raise ValueError(f"sources {names}: give at least one, each with a different name")
        for source in sources:
            source.check(setup.image)
        orders = [
            EpochOrder(
                source.name,
                SourceCounts(source.datasets),
                seed=setup.seed,
                window=config.window,
                group=config.group,
                lanes=config.lanes,
            )
            for source in sources
        ]
        super().__init__(sources, orders, config, setup)
        self.sources = list(sources)
        self._indexed_reader = IndexedReader(sources, config.errors, setup)

    def assembler(self) -> Assembler:
        # Half a window before a source's next one begins, its shards are fetched. Of a whole window
        # ahead, the order would keep tables of four windows at once.
        windows = [
            source.num_annotations * self.config.lanes * self.config.window / share / shards
            for source, share in zip(self.sources, self.order.shares, strict=True)
            if any(dataset.is_remote for dataset in source.datasets)
            # A source within one window has nothing to expect.
            and (shards := source.num_shards) > self.config.lanes * self.config.window
        ]
        ahead = int(min(windows) / 2) if windows else 0
        return Assembler(self._reader(), self.order, ahead=ahead)

    def _reader(self) -> IndexedReader:
        return self._indexed_reader

    def fingerprint(self) -> dict[str, Any]:
        # Labels and content, not folders: data may move between the parts of a run.
        data: dict[str, Any] = {
            source.name: {dataset.label: dataset.fingerprint() for dataset in source.datasets}
            for source in self.sources
        }
        if sum(map(len, data.values())) > MOST_NAMED:
            data = {name: hashed(prints) for name, prints in data.items()}
        return {"order": self.order.fingerprint(), "data": data}


class EvalStream:
    """One rank's part of an evaluation: some of its batches, whatever the number of ranks."""

    def __init__(
        self,
        source: Source,
        order: EvalOrder,
        setup: StreamSetup,
        *,
        num_workers: int = 0,
        task_index: int = 0,
    ) -> None:
        """`task_index`: of the task in the recipe."""
        source.check(setup.image)
        self.bad: list[BadSample] = []
        """Examples of this rank that could not be read, as of the last iteration."""
        reader = IndexedReader([source], ErrorPolicy(), setup, evaluation=True)
        self._assembler = Assembler(reader, order, first_task=task_index)
        # Ranks take turns, and the batches are sorted by work: all ranks get about as much.
        self._batches = order.batches[setup.global_rank :: setup.cut.world_size]
        self._num_workers = num_workers
        self._worker_timeout = setup.worker_timeout

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        self.bad = []
        num_workers, timeout = self._num_workers, self._worker_timeout
        with closing(parcels(self._assembler, self._batches, num_workers, timeout)) as loaded:
            for parcel in loaded:
                first_bad: dict[int, BadSample] = {}  # a bad substitute adds no entry
                for entry in parcel.bad:
                    first_bad.setdefault(entry.position, entry)
                self.bad += first_bad.values()
                yield parcel.unpack()


class IndexedReader(SampleReader[Source]):
    """Opens samples by their places, in training and evaluation."""

    def load(self, places: Sequence[Place], batch: OpenBatch) -> None:
        """Read samples, then decode their pictures.

        All reads come before all decoding, which evicts everything else from the processor's
        caches: alternating, reading takes twice as long.
        """
        undecoded = []
        # Not of a substitute, which comes alone.
        for dataset, indices in self._remote(places) if len(places) > 1 else ():
            dataset.gather(indices)
        for source, source_sample, _ in places:
            dataset, index = self.sources[source].locate(source_sample)
            key = (dataset.key, index)  # the same for all sources that have the data set
            if key not in batch.samples:
                opened = batch.samples[key] = self._read(source, dataset, index, batch)
                # Stored features are on the stack already.
                if self.setup.image is not None and opened.sample and not opened.fault:
                    undecoded.append((key, opened.sample))
        for key, sample in undecoded:
            batch.samples[key] = self._with_images(key, sample, batch)

    def expect(self, places: Sequence[Place]) -> None:
        """Fetch the shards of later samples in the background."""
        for dataset, indices in self._remote(places):
            dataset.expect(indices)

    def _remote(self, places: Sequence[Place]) -> Iterable[tuple[Dataset, list[int]]]:
        """The remote data sets among the places, with the samples wanted of each."""
        wanted: dict[str, tuple[Dataset, list[int]]] = {}
        for source, source_sample, _ in places:
            dataset, index = self.sources[source].locate(source_sample)
            if dataset.is_remote:
                wanted.setdefault(dataset.key, (dataset, []))[1].append(index)
        return [(dataset, list(dict.fromkeys(indices))) for dataset, indices in wanted.values()]

    def _read(self, source: int, dataset: Dataset, index: int, batch: OpenBatch) -> Opened:
        """Read a sample, and copy its features to the stack."""
        fault = dataset.quarantine.get(index)
        if fault and not self.evaluation:
            return Opened(None, fault=fault)
        try:
            sample = dataset.read(index)
            if not dataset.is_small and not self.evaluation:  # `Source.check` has not seen it
                self.sources[source].num_pictures.check(sample)
        except (SkipSample, ShardError) as error:
            damaged = isinstance(error, ShardError)
            return Opened(None, fault=str(error), shard_is_damaged=damaged)
        if fault:  # evaluation needs its ids and references
            return Opened(sample, fault=fault)
        check_pictures(dataset.folder, sample, self.setup.image)
        if self.setup.image is not None:
            return Opened(sample)
        # Without its features the next sample is read into the same memory, still in the
        # processor's caches: that saves a third of the time of stored features.
        return Opened(replace(sample, features=()), batch.stack.add(self.shown(sample.features)))

    def candidates(self, position: int, place: Place, batch: OpenBatch) -> Iterator[Candidate]:
        """The sample at a place, then others of its data set; they depend on the position alone."""
        source_index, sample, annotation = place
        source = self.sources[source_index]
        for attempt in count():
            dataset, index = source.locate(sample)
            self.load([(source_index, sample, annotation)], batch)
            opened = batch.samples[dataset.key, index]
            if opened.shard_is_damaged and self.policy.on_bad_shard == "stop":
                raise ShardError(opened.fault)
            name = opened.sample.key if opened.sample else f"number {index}"
            yield Candidate(dataset.label, dataset.shard_of(index), name, annotation, opened)
            # From the same data set, so that a substitute asks the same sort of question, and the
            # mixture keeps its shares.
            words = random_words(1, self.setup.seed, "substitute", source.name, position, attempt)
            word = int(words[0])
            if annotation == WHOLE_SAMPLE:
                substitute = word % dataset.num_samples
            else:
                # All annotations of the data set are equally likely, not all samples.
                substitute, annotation = dataset.place_of(word % dataset.num_annotations)
            sample += substitute - index  # these count in the data set, `sample` in the source

"""Everything that can be wrong with a run, found before the long work starts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlds.data.order.mixed_order import BatchCut, check_lanes, steps_in
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.sequential import SequentialStream, StreamedSource
from vlds.data.streams.source import Source, check_cache_limit
from vlds.data.streams.stream import MixedStream, TrainStream
from vlds.evaluation.evaluator import first_conversations, nothing_learned, unknown_answers
from vlds.evaluation.sources import evaluation_sources, streamed_sources, training_sources
from vlds.models.loading.load_backbone import Longest
from vlds.models.model import BACKBONE_PREFIX, Model
from vlds.recipe.build import to_tree
from vlds.recipe.config import DTYPES, Recipe
from vlds.recipe.paths import inputs_of
from vlds.runtime.deepspeed_start import computes_fp16
from vlds.runtime.devices import device_name, emulates_bf16
from vlds.runtime.disk import check_writable
from vlds.runtime.process import find
from vlds.runtime.rank_environment import check_processes
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import tell
from vlds.tasks.base import task_of
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.optimizer import check_rates
from vlds.training.overlap import compared, test_sources
from vlds.training.sinks import check_tracking
from vlds.training.states import Resume, check_output
from vlds.training.transfer import Transfer

FEW_PROCESSES = 8
"""Loader processes that no machine minds."""
SLOW = 4.0
"""Times that bf16 may be slower than fp32 before a run says so."""


@dataclass(frozen=True)
class Prepared:
    """Everything that can fail before long work starts, opened and checked."""

    cut: BatchCut
    deepspeed: dict[str, Any]
    train_sources: list[Source]
    """Empty if the reader is the sequential one."""
    streamed_sources: list[StreamedSource]
    evaluation_sources: list[Source]
    test_sources: list[Source]
    """Those that are there; the run looks at them and does not score them. Of the first rank."""
    notices: list[str]
    """What to tell the user."""
    transfer: Transfer | None = None
    """Another run's weights, with which this one begins."""


def prepare(recipe: Recipe, ranks: Ranks, resume: Resume) -> Prepared:
    """Check the recipe against files, data and ranks."""
    # What needs the recipe alone is checked before data sets are opened, which may be remote.
    check_output(recipe.output, resume, inputs_of(to_tree(recipe), Recipe))
    check_tracking(recipe.tracking)
    cut = cut_batches(recipe, ranks.world_size)
    check_learnable(recipe, cut)
    check_recipe(recipe, cut)
    transfer = Transfer.of(recipe)
    warning = check_precision(recipe.training.precision, ranks.device)
    if ranks.is_first and warning is not None:
        tell(warning, flush=True)
    train, streamed, evaluation = open_sources(recipe, cut, ranks.on_this_machine)
    check_writable(Path(recipe.output), "output")
    tested: list[Source] = []
    notices: list[str] = []
    if ranks.is_first:
        tested, notices = test_sources(recipe)
        notices += compared([*train, *streamed], [*evaluation, *tested])
    return Prepared(
        cut=cut,
        deepspeed=complete_deepspeed_config(find(recipe.training.deepspeed), recipe, cut),
        train_sources=train,
        streamed_sources=streamed,
        evaluation_sources=evaluation,
        test_sources=tested,
        notices=[
            *unknown_answers(train),
            *nothing_learned(train),
            *far_too_large(recipe, train, ranks),
            *notices,
        ],
        transfer=transfer,
    )


def check_recipe(recipe: Recipe, cut: BatchCut) -> None:
    """Errors: ValueError for what a recipe says that cannot be, whatever its files and data are."""
    check_parts(recipe, cut)
    check_rates(recipe)
    for field, size in recipe.batch_sizes.items():
        check_lanes(recipe.data.lanes, size, field)


def open_sources(
    recipe: Recipe, cut: BatchCut, ranks_here: range
) -> tuple[list[Source], list[StreamedSource], list[Source]]:
    """The data of the tasks: indexed or else streamed training data, and what is evaluated.
    `ranks_here`: those of this machine, which share a cache.

    Errors: ValueError that names the field.
    """
    data = recipe.data
    is_sequential = data.reader == "sequential"
    train = [] if is_sequential else training_sources(recipe)
    streamed = streamed_sources(recipe) if is_sequential else []
    evaluation = evaluation_sources(recipe)
    sizes = recipe.batch_sizes.values()
    # Each lane that a rank of this machine reads keeps shards in the cache.
    num_lanes = max(cut.lanes_read(data.lanes, size, ranks_here) for size in sizes)
    check_cache_limit(data.cache_bytes, train, evaluation, window=data.window, num_lanes=num_lanes)
    check_turns(recipe, [*train, *evaluation])
    return train, streamed, evaluation


def stream_of(
    recipe: Recipe,
    train: Sequence[Source],
    streamed: Sequence[StreamedSource],
    setup: StreamSetup,
) -> MixedStream:
    """A rank's stream of training examples, at its beginning.

    Errors: ValueError if the data do not fit the model or the batches.
    """
    if recipe.data.reader == "sequential":
        return SequentialStream(streamed, recipe.data, setup)
    return TrainStream(train, recipe.data, setup)


def outside_peft(recipe: Recipe, model: Model) -> Iterator[str]:
    """What to tell a user whose method peft could hold, but not beside the connector that trains
    too."""
    bare = [name.removeprefix(BACKBONE_PREFIX) for name in model.trained_connector()[1]]
    if bare and any("peft" in method.libraries for method in recipe.methods.values()):
        more = f" and {len(bare) - 1} more weights" if len(bare) > 1 else ""
        yield (
            f"model.train_{recipe.model.trained_text[0]}: true; `vlds convert peft` cannot hold "
            f"{bare[0]}{more}, in no whole module of the backbone; `vlds convert hf` and `merge` "
            "hold all"
        )


def longest_row(recipe: Recipe, name: str, num_turns: int = 1) -> Longest:
    """The most that a row of a task can hold, if conversations have so many turns."""
    task = recipe.tasks[name]
    decoding, answer = task.decoding, task.max_target_tokens
    if task.head is not None:
        answer = 1  # one label stands for the classes
    elif task.evaluate and decoding.choices is None and decoding.answers is None:
        answer = max(answer, decoding.max_new_tokens)
    pictures = task.num_pictures or recipe.model.most_images[0]
    return Longest(pictures, task.max_prompt_tokens, answer, num_turns)


def check_turns(recipe: Recipe, sources: Sequence[Source]) -> None:
    """Errors: ValueError if the longest row of a task has more tokens than the model positions,
    with as many turns as the first conversations of its data have."""
    for source in sources:
        name = task_of(source.name)
        turns = [len(example.turns) for example in first_conversations(source)]
        if (most := max(turns, default=1)) > 1:
            recipe.model.check_length(f"tasks.{name}", longest_row(recipe, name, most))


def check_learnable(recipe: Recipe, cut: BatchCut) -> None:
    """Errors: ValueError if the longest row of a task has more tokens than the model positions, or
    a task or a method wants what the model, the reader or the cut of the batches does not give."""
    for name in recipe.tasks:
        recipe.model.check_length(f"tasks.{name}", longest_row(recipe, name))
    num_micro_batches = max(map(cut.accumulation_steps, recipe.batch_sizes.values()))
    recipe.model.check_tasks(recipe.tasks, num_micro_batches)
    for name, task in recipe.tasks.items():
        if task.num_others(evaluation=False) and recipe.data.reader == "sequential":
            raise ValueError(
                f"data.reader: got sequential, and tasks.{name} compares samples, which stand "
                "anywhere in the shards; use indexed"
            )
    for name, method in recipe.methods.items():
        if method.compares_examples and num_micro_batches > 1:
            raise ValueError(
                f"methods.{name}: its loss compares all examples of a global batch, and a rank's "
                f"share is cut into {num_micro_batches} micro-batches; leave data.micro_batch_size "
                "out, or lower data.global_batch_size"
            )


def check_parts(recipe: Recipe, cut: BatchCut) -> None:
    """Errors: ValueError if a micro-batch has fewer rows than `data.parts`, the number of parts in
    which each rank computes it."""
    parts = recipe.data.parts
    smallest = min(map(cut.smallest_piece, recipe.batch_sizes.values()))
    if parts > smallest:
        raise ValueError(
            f"data.parts: {parts}, but the smallest micro-batch of a rank has {smallest} "
            f"example{'s' * (smallest > 1)}; give at most that many"
        )
    if parts > 1 and recipe.training.activation_checkpointing:
        raise ValueError(
            f"data.parts: {parts} with training.activation_checkpointing: the layers "
            "of one part cannot be recomputed after another part; use smaller micro-batches "
            "(data.micro_batch_size) instead of parts"
        )


def with_steps(recipe: Recipe, sources: Sequence[Source | StreamedSource]) -> Recipe:
    """The recipe with the number of steps that `training.epochs` takes.

    Errors: ValueError if a task's number of examples is unknown, or a method needs other steps.
    """
    steps = number_of_steps(recipe, sources)
    for name, method in recipe.methods.items():
        try:
            method.check_steps(steps)
        except ValueError as error:
            raise ValueError(f"methods.{name}.{error}") from None
    # From here on only `steps` counts: all later parts read `num_steps`.
    return replace(recipe, training=replace(recipe.training, steps=steps, epochs=None))


def number_of_steps(recipe: Recipe, sources: Sequence[Source | StreamedSource]) -> int:
    """Optimizer steps of a run; ValueError if a task's number of examples is unknown."""
    training = recipe.training
    if training.epochs is None:
        return training.num_steps
    sizes: list[int] = []
    for source in sources:
        if source.num_annotations is None:
            raise ValueError(
                f"training.epochs: got {training.epochs}, but it is unknown how many examples the "
                f"shards of {source.name} hold; give training.steps, or index the shards"
            )
        sizes.append(source.num_annotations)
    size = recipe.data.global_batch_size
    batch_sizes = recipe.data.batch_sizes([source.batch_size for source in sources])
    return steps_in(training.epochs, sizes, size, batch_sizes)


def far_too_large(recipe: Recipe, sources: Sequence[Source], ranks: Ranks) -> Iterator[str]:
    """Warnings of sizes far beyond the data or this machine, with which a run seems to hang for
    minutes."""
    data, cores = recipe.data, len(os.sched_getaffinity(0))
    check_processes("data.num_workers", processes := data.num_workers * len(ranks.on_this_machine))
    if processes > max(cores, FEW_PROCESSES):
        yield (
            f"data.num_workers: {processes:,} loader processes start on this machine, which has "
            f"{cores} core{'s' * (cores > 1)}; more than one a core only takes time and memory"
        )
    # A sequential reader has no sources, and may not know how many examples its shards hold.
    examples = sum(source.num_annotations for source in sources)
    for field, size in recipe.batch_sizes.items():
        if sources and size > examples:
            yield (
                f"{field}: {size:,} examples a step, and the training data have {examples:,}: each "
                "step computes them several times, and the first line of the log may take long"
                + ("" if data.micro_batch_size else "; set data.micro_batch_size to bound memory")
            )


def check_precision(precision: str, device: torch.device) -> str | None:
    """What to tell a user whose device emulates the recipe's precision.

    Errors: ValueError if DeepSpeed does not train in it there.
    """
    if precision == "fp16" and not computes_fp16():
        raise ValueError(
            f"training.precision: got fp16, in which DeepSpeed does not train on "
            f"{device_name(device)}; set bf16 or fp32"
        )
    if precision == "bf16" and emulates_bf16(device):
        return (
            f"training.precision: {device_name(device)} has no instructions for bf16, so that "
            "products take much longer; --training.precision fp16 is faster here"
        )
    if precision == "fp32" or device.type != "cpu":
        return None
    ratio = slowdown(DTYPES[precision])
    if ratio < SLOW:
        return None
    return (
        f"training.precision: {precision} products take {ratio:.0f} times as long as fp32 ones on "
        "this CPU, which has no instructions for them; --training.precision fp32 is faster here"
    )


def slowdown(dtype: torch.dtype) -> float:
    """How many times longer than in fp32 a product of two small matrices takes on this CPU."""
    shortest = []
    for each in (dtype, torch.float32):
        matrix = torch.ones(256, 256, dtype=each)
        seconds = []
        for _ in range(5):  # the first one warms up
            started = time.perf_counter()
            torch.matmul(matrix, matrix)
            seconds.append(time.perf_counter() - started)
        shortest.append(min(seconds))  # other programs can only make a product slower
    return shortest[0] / shortest[1]

"""From a recipe to a run that stands before its first step: what can be wrong is found first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlds.config import Recipe
from vlds.data.order.batch_cut import BatchCut
from vlds.data.order.mixed_order import check_lanes
from vlds.data.order.mixture import steps_in
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.cache_limit import check_cache_limit, lanes_read
from vlds.data.streams.collate import Tokenizer
from vlds.data.streams.mixed_stream import MixedStream
from vlds.data.streams.sequential import SequentialStream
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.data.streams.streamed_source import StreamedSource
from vlds.evaluation.evaluator import (
    Evaluator,
    evaluation_sources,
    streamed_sources,
    training_sources,
)
from vlds.models.build import build_model
from vlds.models.partitioned_loading import partitioned_loading
from vlds.models.vl_model import VLModel
from vlds.runtime.disk import check_writable
from vlds.runtime.ranks import Ranks
from vlds.runtime.resources import find
from vlds.runtime.terminal import tell
from vlds.training.alignment import align
from vlds.training.best import BestStep, check_best
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optim import parameter_groups
from vlds.training.precision import PRECISIONS, slow_precision
from vlds.training.resume import RunStates, find_state, restore
from vlds.training.run import Run
from vlds.training.sinks import check_tracking
from vlds.training.start import write_start
from vlds.training.states import Resume, check_output
from vlds.training.tracker import Tracker


@dataclass(frozen=True)
class Prepared:
    """Everything that can fail before long work starts, opened and checked."""

    cut: BatchCut
    deepspeed: dict[str, Any]
    train_sources: list[Source]
    """Empty where the reader is the sequential one."""
    streamed_sources: list[StreamedSource]
    evaluation_sources: list[Source]


def prepare(recipe: Recipe, ranks: Ranks, resume: Resume) -> Prepared:
    """Check the recipe against files, data and ranks."""
    check_output(Path(recipe.output), resume)
    check_tracking(recipe.tracking)
    cut = cut_batches(recipe, ranks.world_size)
    check_parts(recipe, cut)
    for field, size in recipe.batch_sizes.items():
        check_lanes(recipe.data.lanes, size, field)
    if ranks.is_first and (warning := slow_precision(recipe.training.precision, ranks.device)):
        tell(warning, flush=True)
    sequential = recipe.data.reader == "sequential"
    train = [] if sequential else training_sources(recipe)
    streamed = streamed_sources(recipe) if sequential else []
    evaluation = evaluation_sources(recipe)
    check_cache_limit(
        recipe.data.cache_bytes,
        train,
        evaluation,
        window=recipe.data.window,
        num_lanes=max(
            lanes_read(recipe.data.lanes, size, cut, ranks.on_this_machine)
            for size in recipe.batch_sizes.values()
        ),
    )
    check_writable(Path(recipe.output), "output")
    return Prepared(
        cut=cut,
        deepspeed=complete_deepspeed_config(find(recipe.training.deepspeed), recipe, cut),
        train_sources=train,
        streamed_sources=streamed,
        evaluation_sources=evaluation,
    )


def check_parts(recipe: Recipe, cut: BatchCut) -> None:
    """Every rank computes each micro-batch in `data.parts` parts, and each part needs a row.

    Errors: ValueError that names the largest number of parts.
    """
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
            "(data.micro_batch_size) in the place of parts"
        )


def with_steps(recipe: Recipe, prepared: Prepared) -> Recipe:
    """The recipe with the number of steps that `training.epochs` takes.

    Errors: ValueError where nobody knows how many examples a task has.
    """
    training = recipe.training
    if training.epochs is None:
        return replace(recipe, training=replace(training, steps=training.num_steps))
    sources = prepared.train_sources or prepared.streamed_sources
    sizes: list[int] = []
    for source in sources:
        if source.num_annotations is None:
            raise ValueError(
                f"training.epochs: got {training.epochs}, but nobody knows how many examples the "
                f"shards of {source.name} hold; give training.steps, or index the shards"
            )
        sizes.append(source.num_annotations)
    size = recipe.data.global_batch_size
    batch_sizes = recipe.data.batch_sizes([source.batch_size for source in sources])
    steps = steps_in(training.epochs, sizes, size, batch_sizes)
    return replace(recipe, training=replace(training, steps=steps, epochs=None))


def build_run(
    recipe: Recipe, ranks: Ranks, prepared: Prepared, resume: Resume, new_phase: bool = False
) -> Run:
    """Model, engine, stream and tracker; at the newest run state when resuming."""
    found = find_state(recipe, ranks, resume)
    tokenizer = recipe.backbone.load_tokenizer()
    evaluator = Evaluator(recipe, prepared.evaluation_sources, tokenizer, ranks)
    best = None
    if recipe.training.best is not None:
        check_best(recipe.training.best, evaluator)
        folder = Path(recipe.output) / "best"
        known = found is not None and ranks.is_first
        best = BestStep(recipe.training.best, folder, resumed=known)
    stream = open_stream(recipe, ranks, prepared, tokenizer)
    engine = Engine(
        model := load_model(recipe, prepared, tokenizer, ranks),
        parameter_groups(model, recipe),
        prepared.deepspeed,
        ranks=ranks,
        tasks=list(recipe.tasks.values()),
        seed=recipe.seed,
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        eps=recipe.optimizer.eps,
        parts=recipe.data.parts,
    )
    check_choices(recipe, model)
    states = RunStates(
        recipe, engine, stream, recipe.model.source_hashes() if ranks.is_first else {}
    )
    if found is not None:
        restore(recipe, states, ranks, found, new_phase)
    if best is not None:
        states.best = best.found  # a state is older than the evaluation of its own step
    tracker = Tracker(recipe, ranks, engine.steps_done)
    evaluator.say = tracker.say
    run = Run(recipe, ranks, engine, stream, tracker, tokenizer, evaluator, best, states)
    if ranks.is_first:
        for line in write_start(recipe, ranks, engine.steps_done, resumed=found is not None):
            tracker.say(line)
    announce(run)
    return run


def check_choices(recipe: Recipe, model: VLModel) -> None:
    """Errors: ValueError for words to choose from that the tokenizer does not tell apart."""
    for name, task in recipe.tasks.items():
        if task.evaluate and task.decoding.choices is not None:
            try:
                model.choice_ids(task.decoding.choices)
            except ValueError as error:
                raise ValueError(f"tasks.{name}.decoding.{error}") from error


def open_stream(
    recipe: Recipe, ranks: Ranks, prepared: Prepared, tokenizer: Tokenizer
) -> MixedStream:
    """This rank's stream of examples, at its beginning."""
    setup = StreamSetup(
        tokenizer=tokenizer,
        image=recipe.image,
        seed=recipe.seed,
        cut=prepared.cut,
        global_rank=ranks.global_rank,
        worker_timeout=recipe.training.worker_timeout,
        ledger=Path(recipe.output) / f"data_errors-{ranks.global_rank}.jsonl",
    )
    if recipe.data.reader == "sequential":
        return SequentialStream(prepared.streamed_sources, recipe.data, setup)
    return TrainStream(prepared.train_sources, recipe.data, setup)


def load_model(recipe: Recipe, prepared: Prepared, tokenizer: Any, ranks: Ranks) -> VLModel:
    """Build the model, aligned if the recipe says so, in the run's precision."""
    dtype = PRECISIONS[recipe.training.precision]
    if recipe.alignment is None:
        with partitioned_loading(prepared.deepspeed):
            return build_model(recipe.model, list(recipe.tasks), dtype, tokenizer)
    model = build_model(recipe.model, list(recipe.tasks), torch.float32, tokenizer)
    align(model, recipe, tokenizer, ranks)
    return model.to(dtype)


def announce(run: Run) -> None:
    """What trains and where, and how often each task's examples are seen."""
    counts, held = run.engine.model.count_parameters(), run.engine.bytes_per_rank()
    num_ranks = run.ranks.world_size
    run.tracker.say(
        f"{counts.trainable:,} of {counts.total:,} weights train ({counts.percent:.2f} %), "
        f"ZeRO-{run.engine.stage} on {num_ranks} rank{'s' * (num_ranks > 1)}; bytes per rank: "
        f"frozen {held['frozen']:,}, trainable {held['trainable']:,}, optimizer "
        f"{held['optimizer']:,}; step {run.engine.steps_done} of "
        f"{run.recipe.training.num_steps}"
    )
    run.tracker.say(epochs_told(run))
    if run.stream.notice:
        run.tracker.say(run.stream.notice)
    run.tracker.write(
        run.engine.steps_done, {"bytes_per_rank": held, "trainable": counts.as_dict()}
    )


def epochs_told(run: Run) -> str:
    """How often the run goes through each task's examples."""
    steps = run.recipe.training.num_steps
    epochs = run.stream.epochs_after(steps)
    told = [f"{epoch:,.2f} epochs of {task}" for task, epoch in epochs.items()]
    unknown = [task for task in run.recipe.tasks if task not in epochs]
    told += [f"an unknown number of epochs of {task}" for task in unknown]
    return f"{steps:,} steps = {', '.join(told)}"

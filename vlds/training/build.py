"""From a checked recipe to a run that is ready for its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlds.artifact import TrainedOn
from vlds.beginning.alignment import align
from vlds.beginning.few_shot import fill_caches
from vlds.beginning.meta import check_meta, meta_learn, meta_seed
from vlds.config import Recipe
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.mixed_stream import MixedStream
from vlds.data.streams.sequential import SequentialStream
from vlds.data.streams.source import Source
from vlds.data.streams.stream import TrainStream
from vlds.data.streams.streamed_source import StreamedSource
from vlds.evaluation.cut_texts import cut_texts
from vlds.evaluation.evaluator import Evaluator
from vlds.models.build import build_model
from vlds.models.kind import hash_processor
from vlds.models.loading.partitioned_loading import partitioned_loading
from vlds.models.model import Model
from vlds.models.revising import fit_saved
from vlds.runtime.ranks import Ranks
from vlds.schema import Collator
from vlds.training.best import BestStep, check_best
from vlds.training.checkpoint import RunStates, find_state, restore, saved_shapes
from vlds.training.engine import Engine
from vlds.training.optim import parameter_groups
from vlds.training.prepare import Prepared
from vlds.training.profile import FOLDER, StepProfile, check_profile, takes
from vlds.training.run import Run, write_start
from vlds.training.states import Resume
from vlds.training.tracker import Tracker


def build_run(
    recipe: Recipe,
    ranks: Ranks,
    prepared: Prepared,
    resume: Resume,
    new_phase: bool = False,
    profile: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> Run:
    """Model, engine, stream and tracker; at the newest run state when resuming.

    Errors: ValueError, before the run's folder has a new file; MetaStopped if `stopping` is true on
    a rank before the model has been meta-learnt.
    """
    state_folder = find_state(recipe, ranks, resume)
    resumed = state_folder is not None
    check_profile(profile, Path(recipe.output), None if resumed else recipe.training.num_steps)
    processor = recipe.model.load_processor()
    collator = recipe.model.collator(processor)
    evaluator = Evaluator(recipe, prepared.evaluation_sources, collator, ranks)
    best = None
    if recipe.training.best is not None:
        check_best(recipe.training.best, evaluator)
        folder = Path(recipe.output) / "best"
        best = BestStep(recipe.training.best, folder, resumed=resumed and ranks.is_first)
    stream = open_stream(recipe, ranks, prepared, collator)
    model = load_model(recipe, prepared, processor, ranks, state_folder)
    groups = parameter_groups(model, recipe)
    check_choices(recipe, model)
    learnt = None
    if recipe.meta is not None and not resumed:
        learnt = learn_start(model, recipe, ranks, prepared, collator, stopping)
    engine = open_engine(model, groups, recipe, ranks, prepared)
    notices = recipe.model.check_built(model)
    states = RunStates(recipe, engine, stream, source_hashes(recipe) if ranks.is_first else {})
    if state_folder is not None:
        restore(recipe, states, ranks, state_folder, new_phase)
        check_steps(recipe, engine.steps_done)
    if best is not None:
        states.best = best.known  # a state is older than the evaluation of its own step
    tracker = Tracker(recipe, ranks, engine.steps_done)
    evaluator.say = tracker.say
    known = trained_on(prepared.train_sources or prepared.streamed_sources)
    run = Run(recipe, ranks, engine, stream, tracker, processor, evaluator, best, states, known)
    if ranks.is_first:
        write_start(run, resumed)
    announce(run)
    if learnt is not None:
        tracker.write(0, {"meta": learnt})
    if ranks.is_first:
        notices = [*notices, *add_profile(run, profile), *prepared.notices]
        for line in [*notices, *cut_texts(prepared.train_sources, collator)]:
            tracker.say(line)
    return run


def trained_on(sources: Sequence[Source | StreamedSource]) -> dict[str, TrainedOn]:
    """What is known of each task's training data."""
    return {
        source.name: TrainedOn(
            examples=source.num_annotations,
            most_pictures=source.most_pictures if isinstance(source, Source) else None,
        )
        for source in sources
    }


def source_hashes(recipe: Recipe) -> dict[str, str]:
    """Part of the model, or place in the recipe -> sha256 of what frozen weights come from, and of
    the tokenizer."""
    of_methods = {
        f"methods.{name}.{field}": digest
        for name, method in recipe.methods.items()
        for field, digest in method.source_hashes().items()
    }
    source, _ = recipe.model.processor_place
    words = {} if source is None else {recipe.model.processor_word: hash_processor(source)}
    return {**recipe.model.source_hashes(), **of_methods, **words}


def check_steps(recipe: Recipe, steps_done: int) -> None:
    """Errors: ValueError if a resumed run has taken more steps than the recipe says."""
    steps = recipe.training.num_steps
    if steps_done > steps:
        raise ValueError(
            f"training.steps: {steps:,}, but the run in {recipe.output} has taken {steps_done:,}; "
            f"give at least {steps_done:,}, or another output"
        )


def add_profile(run: Run, num_steps: int) -> list[str]:
    """Let this rank profile so many steps; what to say if too few are left for it."""
    left = run.recipe.training.num_steps - run.engine.steps_done
    if left < takes(num_steps):
        steps = f"{takes(num_steps)} steps, of which the run has {left} left"
        return [f"--profile is left out: it takes {steps}"]
    if num_steps:
        run.profile = StepProfile(num_steps, run.folder / FOLDER, run.engine.model.vision_module)
    return []


def check_choices(recipe: Recipe, model: Model) -> None:
    """Errors: ValueError if the tokenizer gives two words to choose from the same ids."""
    for name, task in recipe.tasks.items():
        if task.evaluate and task.head is None and task.decoding.choices is not None:
            try:
                model.choice_ids(task.decoding.choices)
            except ValueError as error:
                raise ValueError(f"tasks.{name}.decoding.{error}") from error


def open_stream(
    recipe: Recipe, ranks: Ranks, prepared: Prepared, collator: Collator
) -> MixedStream:
    """This rank's stream of examples, at its beginning."""
    setup = StreamSetup(
        collator=collator,
        image=recipe.image,
        seed=recipe.seed,
        cut=prepared.cut,
        global_rank=ranks.global_rank,
        worker_timeout=recipe.training.worker_timeout,
        blank_images=recipe.data.blank_images,
        ledger=Path(recipe.output) / f"data_errors-{ranks.global_rank}.jsonl",
    )
    if recipe.data.reader == "sequential":
        return SequentialStream(prepared.streamed_sources, recipe.data, setup)
    return TrainStream(prepared.train_sources, recipe.data, setup)


def load_model(
    recipe: Recipe, prepared: Prepared, processor: Any, ranks: Ranks, state_folder: Path | None
) -> Model:
    """Build the model in the run's precision: aligned if the recipe says so, with the training
    pictures that methods keep, and with the shapes of the state that it resumes from.

    A state holds all that meta-learning changes, but not the frozen weights that alignment changes.
    """
    setup, tasks, dtype = recipe.model_setup, list(recipe.tasks), recipe.training.dtype
    if state_folder is not None:
        methods = {name: method.resumed() for name, method in recipe.methods.items()}
        setup = replace(setup, methods=methods)
    if recipe.alignment is not None or any(m.needs_whole_model for m in recipe.methods.values()):
        model = build_model(setup, tasks, torch.float32, processor)
        if recipe.alignment is not None:
            align(model, recipe, ranks)
        fill_caches(model, recipe, prepared.train_sources, ranks)
        model.to(dtype)
    else:
        learns = recipe.meta is not None and state_folder is None
        with nullcontext() if learns else partitioned_loading(prepared.deepspeed):
            model = build_model(setup, tasks, dtype, processor)
    if state_folder is not None:
        fit_saved(model, saved_shapes(state_folder))
    return model


def learn_start(
    model: Model,
    recipe: Recipe,
    ranks: Ranks,
    prepared: Prepared,
    collator: Collator,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """Meta-learn what trains, on examples in an order of their own; what the metrics keep of it.

    Errors: as `meta_learn`, and ValueError if the model cannot be.
    """
    check_meta(model)
    recipe.model.check_built(model)
    # Half of a task's rows in a micro-batch run at once: it may have twice as many.
    most = prepared.cut.micro_batch_size
    cut = replace(prepared.cut, micro_batch_size=most and 2 * most)
    reading = replace(recipe, seed=meta_seed(recipe.seed))
    stream = open_stream(reading, ranks, replace(prepared, cut=cut), collator)
    return meta_learn(model, recipe, ranks, stream, stopping)


def open_engine(
    model: Model,
    groups: list[dict[str, Any]],
    recipe: Recipe,
    ranks: Ranks,
    prepared: Prepared,
) -> Engine:
    """An engine around the model, before its first step."""
    return Engine(
        model,
        groups,
        prepared.deepspeed,
        ranks=ranks,
        tasks=list(recipe.tasks.values()),
        seed=recipe.seed,
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        eps=recipe.optimizer.eps,
        update=recipe.optimizer.update,
        parts=recipe.data.parts,
        num_steps=recipe.training.num_steps,
    )


def announce(run: Run) -> None:
    """What trains and where, and how often each task's examples are seen."""
    engine, tracker, num_ranks = run.engine, run.tracker, run.ranks.world_size
    num_steps = run.recipe.training.num_steps
    counts, sizes = engine.model.count_parameters(), engine.bytes_per_rank()
    tracker.say(
        f"{counts.trainable:,} of {counts.total:,} weights train ({counts.percent:.2f} %), "
        f"ZeRO-{engine.stage} on {num_ranks} rank{'s' * (num_ranks > 1)}; bytes per rank: "
        f"frozen {sizes['frozen']:,}, trainable {sizes['trainable']:,}, optimizer "
        f"{sizes['optimizer']:,}; step {engine.steps_done} of {num_steps}"
    )
    if (passes := engine.model.num_passes) > 1:
        losses = engine.model.batch_losses.items()
        names = ", ".join(f"methods.{name}" for name, loss in losses if loss.passes > 1)
        tracker.say(f"{passes} passes over each batch ({names}); `vlds plan` says what they cost")
    epochs = run.stream.epochs(after_steps=num_steps)
    parts = [f"{epoch:,.2f} epochs of {task}" for task, epoch in epochs.items()]
    unknown = [task for task in run.recipe.tasks if task not in epochs]
    parts += [f"an unknown number of epochs of {task}" for task in unknown]
    tracker.say(f"{num_steps:,} steps = {', '.join(parts)}")
    if run.stream.notice:
        tracker.say(run.stream.notice)
    facts = {
        "bytes_per_rank": sizes,
        "zero_stage": engine.stage,
        "trainable": counts.as_dict(),
        "passes": passes,
    }
    tracker.write(engine.steps_done, facts)

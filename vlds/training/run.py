"""A run: what it writes down when it starts, and what it saves and evaluates between its steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlds.artifact import TrainedOn, own_tensors, save_artifact
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.source import Source
from vlds.data.streams.stream import MixedStream
from vlds.evaluation.evaluator import Evaluator, cut_texts, unknown_words
from vlds.evaluation.shown import shown_examples
from vlds.models.build import build_model
from vlds.models.kinds.base import fit_saved
from vlds.models.loading.hashes import hash_processor
from vlds.models.model import Model
from vlds.models.partitioned import partitioned_loading
from vlds.recipe.config import Recipe, save_recipe
from vlds.runtime.command_line import WIDTH
from vlds.runtime.devices import device_name
from vlds.runtime.files import write_whole
from vlds.runtime.folders import PREDICTIONS, STARTS, add_start, read_starts
from vlds.runtime.ranks import Ranks
from vlds.runtime.terminal import bytes_text, without_credentials
from vlds.schema import Collator
from vlds.training.alignment import align, fill_caches
from vlds.training.checkpoint import (
    BestStep,
    RunStates,
    check_best,
    check_ended,
    find_state,
    recipe_changes,
    restore,
    saved_shapes,
)
from vlds.training.engine import Engine
from vlds.training.meta import check_meta, meta_learn, meta_seed
from vlds.training.optimizer import parameter_groups
from vlds.training.prepare import Prepared, outside_peft, stream_of
from vlds.training.profile import FOLDER, StepProfile, check_profile, takes
from vlds.training.sinks import Tracker, has_scores
from vlds.training.states import RECIPE, Resume
from vlds.training.transfer import Transfer

SHOWN_CHANGES = 20
MANY_EPOCHS = 100
"""Epochs above which a run says so."""


@dataclass
class Run:
    """What the loop works with."""

    recipe: Recipe
    ranks: Ranks
    engine: Engine
    stream: MixedStream
    tracker: Tracker
    processor: Any
    evaluator: Evaluator
    best: BestStep | None
    states: RunStates
    trained_on: Mapping[str, TrainedOn]
    profile: StepProfile | None = None
    """On the first rank, if the user asked for it."""

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.recipe.output)


def write_start(run: Run, resumed: bool) -> None:
    """Write recipe.yaml and a line of starts.jsonl; say what has changed since the start before.
    On the first rank alone.

    Errors: CannotWrite.
    """
    file, step = run.folder / RECIPE, run.engine.steps_done
    changes: list[str] = []
    if resumed:
        try:
            changes = recipe_changes(run.recipe)
        except (OSError, ValueError) as error:
            run.tracker.say(f"resuming: the previous recipe cannot be read ({error})")
    else:
        write_whole(run.folder / STARTS, "")  # an earlier attempt that saved no state
    words = (word for word in sys.argv[1:] if not word.startswith("--local_rank="))
    command = " ".join(["vlds", *map(without_credentials, words)])  # as a user would type it
    add_start(run.folder, step, command, hardware(run.ranks), changes)
    # Of all starts, the new one included: recipe.yaml keeps them as comments.
    comments = [
        f"changed at step {start.step}: {change}"
        for start in read_starts(run.folder)
        for change in start.changes
    ]
    save_recipe(run.recipe, file, comments)
    for change in changes[:SHOWN_CHANGES]:
        run.tracker.say(f"resuming with a change: {change}")
    if len(changes) > SHOWN_CHANGES:
        run.tracker.say(f"and {len(changes) - SHOWN_CHANGES} more changes, see {file}")


def hardware(ranks: Ranks) -> str:
    """The number of ranks, and what each runs on."""
    return f"{ranks.world_size} rank{'s' * (ranks.world_size > 1)}, {device_name(ranks.device)}"


def evaluation_due(run: Run) -> bool:
    """True if the recipe asks for scores after the last step that was done."""
    config, step = run.recipe.training, run.engine.steps_done
    if step == 0:
        return config.evaluate_first
    return config.evaluate_every > 0 and step % config.evaluate_every == 0


def evaluation_missing(run: Run) -> bool:
    """True if the evaluation of the step at which a run starts or resumes was interrupted: the
    step's state is saved before its scores. Collective."""
    step = run.engine.steps_done
    if not evaluation_due(run) or step == run.recipe.training.num_steps:
        return False
    return not run.ranks.broadcast(
        run.ranks.is_first and has_scores(run.folder / "metrics.jsonl", step)
    )


def save_state(run: Run) -> None:
    """Begin to write the run state, and log for how long training stood still."""
    with run.tracker.paused():
        seconds = run.states.save()
    run.tracker.write(run.engine.steps_done, {"save": {"blocking_seconds": seconds}})


def revise(run: Run) -> list[str]:
    """Let methods change what trains, and rebuild the engine around it; what to say. Collective."""
    before = run.engine.model.count_parameters().trainable
    run.engine.revise(lambda: parameter_groups(run.engine.model, run.recipe))
    counts = run.engine.model.count_parameters()
    run.tracker.write(run.engine.steps_done, {"trainable": counts.as_dict()})
    return [
        f"step {run.engine.steps_done}  from here on {counts.trainable:,} weights train "
        f"({counts.percent:.2f} %), before it were {before:,}"
    ]


def save_run_artifact(run: Run, folder: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write the artifact of the present weights; `notes` as in `save_artifact`. Collective."""
    # Masters in fp32, which are more exact than what `own_tensors` finds in a bf16 model.
    state = run.engine.export()
    masters = {
        name: torch.empty(0) if state is None else state[name]["fp32"]
        for name, _ in run.engine.trainable_parameters()
    }
    tensors = own_tensors(run.engine.model, masters)
    if state is not None:
        save_artifact(folder, tensors, run.recipe, run.processor, notes, run.trained_on)
    run.ranks.barrier()  # no rank goes on, or ends, before the artifact is whole


def tell_evaluation(run: Run) -> None:
    """Evaluate, write predictions, say the scores, keep the best step's artifact and state. The
    scores are logged last: a resumed run that finds them repeats none of this."""
    if not run.evaluator.tasks:
        return
    since_log = run.tracker.seconds_since_log
    with run.tracker.paused():
        with run.engine.evaluation() as model:
            evaluations = run.evaluator(model)
        step = run.engine.steps_done
        for evaluation in evaluations:
            evaluation.write(run.folder / PREDICTIONS / f"step-{step:08d}")
            title, values = f"step {step}  {evaluation.title}:", evaluation.headlines()
            fits = len(title) + len(values) < WIDTH
            for said in (f"{title} {values}",) if fits else (title, f"  {values}"):
                run.tracker.say(said)
        if most := run.tracker.num_shown:
            sources = {source.name: source for source in run.evaluator.sources}
            shown = (shown_examples(sources[e.task], e, most) for e in evaluations)
            run.tracker.show(step, [example for examples in shown for example in examples])
        if run.best is not None:
            # The first rank knows the best value so far; to save the artifact takes all ranks.
            value = run.ranks.broadcast(run.best.better(evaluations, step))
            if value is not None:
                save_run_artifact(run, run.best.folder, run.best.note(value, step))
                run.states.best = run.best.known
        if evaluations:
            answers = sum(len(e.predictions) for e in evaluations)
            speed = answers / sum(e.seconds for e in evaluations)
            scores = {e.task: e.scores for e in evaluations}
            line = {"scores": scores, "answers_per_second": speed, "seconds_since_log": since_log}
            run.tracker.write(step, line)


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
    # The order is by cost: what may refuse the run comes before what takes long.
    state_folder = find_state(recipe, ranks, resume)
    resumed = state_folder is not None
    check_profile(profile, Path(recipe.output), None if resumed else recipe.training.num_steps)
    processor = recipe.model.load_processor()
    collator = recipe.model.collator(processor, recipe.training.dtype)
    # Reads all questions that will be scored, so that a bad one is found now and not hours later.
    evaluator = Evaluator(recipe, prepared.evaluation_sources, collator, ranks)
    evaluator.check_headlines()
    best = None
    if recipe.training.best is not None:
        is_low = check_best(recipe.training.best, evaluator)
        best = BestStep(
            recipe.training.best,
            Path(recipe.output) / "best",
            resumed=resumed and ranks.is_first,
            lower_is_better=is_low,
        )
    stream = open_stream(recipe, ranks, prepared, collator)
    model, begun = load_model(recipe, prepared, processor, ranks, state_folder)
    sources = prepared.train_sources or prepared.streamed_sources
    known = [dataset.info for source in sources for dataset in source.datasets]
    model.shows_clips = any(info is None or info.may_show_clips for info in known)
    # Meta-learning takes long, so errors of the groups come before it.
    groups = parameter_groups(model, recipe)
    check_choices(recipe, model)
    learnt = None
    if recipe.meta is not None and not resumed:
        learnt = learn_start(model, recipe, ranks, prepared, collator, stopping)
    engine = Engine(
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
        evaluates_whole=recipe.training.evaluate_whole,
    )
    notices = [*begun, *recipe.model.check_built(model, engine.evaluation)]
    hashes = source_hashes(recipe, prepared.transfer) if ranks.is_first else {}
    states = RunStates(recipe, engine, stream, hashes)
    if state_folder is not None:
        restore(recipe, states, ranks, state_folder, new_phase)
    left = recipe.training.num_steps - engine.steps_done
    if left < 0:
        raise ValueError(
            f"training.steps: {recipe.training.num_steps:,}, but the run in {recipe.output} has "
            f"taken {engine.steps_done:,}; give at least {engine.steps_done:,}, or another output"
        )
    if resumed and left == 0:
        check_ended(recipe, ranks)
    if best is not None:
        states.best = best.known  # a state is older than the evaluation of its step
    tracker = Tracker(recipe, ranks, engine.steps_done)
    evaluator.say = tracker.say
    trained_on = {
        source.name: TrainedOn(
            examples=source.num_annotations,
            most_pictures=source.most_pictures if isinstance(source, Source) else None,
        )
        for source in sources
    }
    run = Run(
        recipe, ranks, engine, stream, tracker, processor, evaluator, best, states, trained_on
    )
    if ranks.is_first:
        write_start(run, resumed)
    announce(run)
    if learnt is not None:
        tracker.write(0, {"meta": learnt})
    if ranks.is_first:
        if left < takes(profile):
            steps = f"{takes(profile)} steps, of which the run has {left} left"
            notices = [*notices, f"--profile is left out: it takes {steps}"]
        elif profile:
            run.profile = StepProfile(profile, run.folder / FOLDER, model.vision_module)
        cut = cut_texts(prepared.train_sources, collator)
        cut += cut_texts(prepared.evaluation_sources, collator, "evaluate")
        cut += cut_texts(prepared.test_sources, collator, "test")
        cut += unknown_words(prepared.train_sources, model.tokenizer)
        for line in [*notices, *outside_peft(recipe, model), *prepared.notices, *cut]:
            tracker.say(line)
    return run


def source_hashes(recipe: Recipe, transfer: Transfer | None = None) -> dict[str, str]:
    """Part of the model, or place in the recipe -> sha256 of what frozen weights come from, and of
    the tokenizer."""
    of_methods = {
        f"methods.{name}.{field}": digest
        for name, method in recipe.methods.items()
        for field, digest in method.source_hashes().items()
    }
    source, _ = recipe.model.processor_place
    words = {} if source is None else {recipe.model.processor_word: hash_processor(source)}
    begun = {} if transfer is None else {"start": transfer.hash}
    return {**recipe.model.source_hashes(), **of_methods, **words, **begun}


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
    return stream_of(recipe, prepared.train_sources, prepared.streamed_sources, setup)


def load_model(
    recipe: Recipe, prepared: Prepared, processor: Any, ranks: Ranks, state_folder: Path | None
) -> tuple[Model, list[str]]:
    """Build the model in the run's precision: with another run's weights or aligned if the recipe
    says so, with the training pictures that methods keep, and with the shapes of the state that it
    resumes from. Also what to say of it.

    A state holds all that meta-learning changes, but not the frozen weights that alignment changes.
    """
    setup, tasks, dtype = recipe.model_setup, list(recipe.tasks), recipe.training.dtype
    transfer, is_resumed = prepared.transfer, state_folder is not None
    begun: list[str] = []
    if state_folder is not None:
        methods = {name: method.resumed() for name, method in recipe.methods.items()}
        setup = replace(setup, methods=methods)
    if recipe.alignment is not None or any(m.needs_whole_model for m in recipe.methods.values()):
        # Alignment and caches are computed in fp32, whatever the run's precision.
        model = build_model(setup, tasks, torch.float32, processor)
        if recipe.alignment is not None:
            align(model, recipe, ranks)
        if transfer is not None:
            begun = transfer.fill(model, is_resumed)
        fill_caches(model, recipe, prepared.train_sources, ranks)
        model.to(dtype)
    else:
        # Under stage 3, weights are partitioned while they are read: no rank ever holds all.
        # Meta-learning runs before the engine, on whole weights.
        learns = recipe.meta is not None and state_folder is None
        with nullcontext() if learns else partitioned_loading(prepared.deepspeed):
            model = build_model(setup, tasks, dtype, processor)
        if transfer is not None:
            begun = transfer.fill(model, is_resumed)
    if state_folder is not None:
        fit_saved(model, saved_shapes(state_folder))
    return model, begun


def learn_start(
    model: Model,
    recipe: Recipe,
    ranks: Ranks,
    prepared: Prepared,
    collator: Collator,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """Meta-learn what trains, on examples in a separate order; returns what the metrics keep.

    Errors: as `meta_learn`, and ValueError if the model cannot be.
    """
    check_meta(model)
    recipe.model.check_built(model, model.evaluating)
    # Half of a task's rows in a micro-batch run at once: it may have twice as many.
    most = prepared.cut.micro_batch_size
    cut = replace(prepared.cut, micro_batch_size=most and 2 * most)
    reading = replace(recipe, seed=meta_seed(recipe.seed))
    stream = open_stream(reading, ranks, replace(prepared, cut=cut), collator)
    return meta_learn(model, recipe, ranks, stream, stopping)


def announce(run: Run) -> None:
    """What trains and where, and how often each task's examples are seen."""
    engine, tracker, num_ranks = run.engine, run.tracker, run.ranks.world_size
    num_steps = run.recipe.training.num_steps
    counts, sizes = engine.model.count_parameters(), engine.bytes_per_rank()
    tracker.say(
        f"{counts.trainable:,} of {counts.total:,} weights train ({counts.percent:.2f} %), "
        f"ZeRO-{engine.stage} on {num_ranks} rank{'s' * (num_ranks > 1)}"
    )
    held = ", ".join(f"{name} {bytes_text(size)}" for name, size in sizes.items())
    tracker.say(f"a rank holds {held}")
    if (passes := engine.model.num_passes) > 1:
        losses = engine.model.batch_losses.items()
        names = ", ".join(f"methods.{name}" for name, loss in losses if loss.passes > 1)
        tracker.say(f"{passes} passes over each batch ({names}); `vlds plan` says what they cost")
    epochs = run.stream.epochs(after_steps=num_steps)
    parts = [f"{epoch:,.2f} of {task}" for task, epoch in epochs.items()]
    unknown = [task for task in run.recipe.tasks if task not in epochs]
    parts += [f"an unknown number of {task}" for task in unknown]
    begun = f", from step {engine.steps_done}" if engine.steps_done else ""
    tracker.say(f"{num_steps:,} steps{begun}; epochs: {', '.join(parts)}")
    for line in too_often(epochs):
        tracker.say(line)
    if run.stream.notice:
        tracker.say(run.stream.notice)
    facts = {
        "bytes_per_rank": sizes,
        "zero_stage": engine.stage,
        "trainable": counts.as_dict(),
        "passes": passes,
    }
    tracker.write(engine.steps_done, facts)


def too_often(epochs: Mapping[str, float]) -> Iterator[str]:
    """What to tell a user whose run sees the examples of some tasks very often."""
    if many := [f"{task} ({num:,.0f})" for task, num in epochs.items() if num > MANY_EPOCHS]:
        yield (
            f"more than {MANY_EPOCHS} epochs of {', '.join(many)}: a model learns so few examples "
            "by heart; set training.epochs instead of steps, or training.best, which keeps what "
            "scores best on other data"
        )

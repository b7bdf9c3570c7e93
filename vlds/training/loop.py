"""The training loop: draw a global batch, step, tell, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlds.artifact import own_tensors, save_artifact
from vlds.config import Recipe, save_recipe
from vlds.data import MixedStream, SequentialStream, Source, StreamedSource, TrainStream
from vlds.data.cache_limit import check_cache_limit, lanes_read
from vlds.models.build import build_model
from vlds.models.partitioned_loading import partitioned_loading
from vlds.models.vl_model import VLModel
from vlds.resources import find
from vlds.training.alignment import align
from vlds.training.best import BestStep, check_best
from vlds.training.deepspeed_config import BatchPlan, complete_deepspeed_config, plan_batches
from vlds.training.distributed import Ranks
from vlds.training.engine import Engine, start_ranks
from vlds.training.evaluate import (
    Evaluator,
    blanked,
    evaluation_sources,
    streamed_sources,
    training_sources,
    with_answer_lists,
)
from vlds.training.faults import NonFiniteSteps, check_writable, explained
from vlds.training.gradients import GradientWatch
from vlds.training.optim import parameter_groups, schedule_factor, set_learning_rate
from vlds.training.precision import PRECISIONS, slow_precision
from vlds.training.resume import Resume, RunStates, check_output, find_state, restore
from vlds.training.signals import StopRequest, stop_on_signals
from vlds.training.sinks import check_tracking, scores_told
from vlds.training.tracker import Tracker


@dataclass(frozen=True)
class Prepared:
    """Everything that can fail before long work starts, opened and checked."""

    plan: BatchPlan
    deepspeed: dict[str, Any]
    train_sources: list[Source]
    """Empty where the reader is the sequential one."""
    streamed_sources: list[StreamedSource]
    evaluation_sources: list[Source]


@dataclass
class Run:
    """What the loop works with."""

    recipe: Recipe
    ranks: Ranks
    engine: Engine
    stream: MixedStream
    tracker: Tracker
    tokenizer: Any
    evaluator: Evaluator
    best: BestStep | None
    states: RunStates

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.recipe.output)


def train(recipe: Recipe, *, resume: Resume = False, new_phase: bool = False) -> int:
    """Run a recipe on the ranks that were started. Returns the exit code: 0, or 128 + n after
    signal n. `new_phase`: the mixture of tasks may be another than that of the run so far.

    Errors: ValueError for anything wrong with the recipe, its files or its data, and for a lack
    (memory, disk) that starting again would not cure.
    """
    ranks = start_ranks(recipe.training.collective_timeout)
    with explained(recipe), stop_on_signals() as stop:
        recipe = with_answer_lists(recipe)
        prepared = prepare(recipe, ranks, resume)
        run = build_run(recipe, ranks, prepared, resume, new_phase)
        try:
            code = loop(run, prepared.plan, stop)
        finally:
            run.states.close()
            run.tracker.close()
    run.engine.close()
    return code


def prepare(recipe: Recipe, ranks: Ranks, resume: Resume) -> Prepared:
    """Check the recipe against files, data and ranks."""
    check_output(recipe, resume)
    check_tracking(recipe.tracking)
    plan = plan_batches(
        recipe.data.global_batch_size, recipe.data.micro_batch_size, ranks.world_size
    )
    if recipe.data.parts > plan.micro_batch_size:
        raise ValueError(
            f"data.parts: {recipe.data.parts}, but a micro-batch has {plan.micro_batch_size} "
            "examples; give at most that many"
        )
    if recipe.data.parts > 1 and recipe.training.activation_checkpointing:
        raise ValueError(
            f"data.parts: {recipe.data.parts} with training.activation_checkpointing: the layers "
            "of one part cannot be recomputed after another part; use smaller micro-batches "
            "(data.micro_batch_size) in the place of parts"
        )
    if ranks.is_first and (warning := slow_precision(recipe.training.precision, ranks.device)):
        print(warning, flush=True)
    sequential = recipe.data.reader == "sequential"
    train = [] if sequential else training_sources(recipe)
    streamed = streamed_sources(recipe) if sequential else []
    evaluation = evaluation_sources(recipe)
    check_cache_limit(
        recipe.data.cache_bytes,
        train,
        evaluation,
        window=recipe.data.window,
        num_lanes=lanes_read(
            recipe.data.lanes,
            plan.global_batch_size,
            plan.micro_batch_size,
            ranks.world_size,
            ranks.on_this_machine,
        ),
    )
    check_writable(Path(recipe.output))
    return Prepared(
        plan=plan,
        deepspeed=complete_deepspeed_config(find(recipe.training.deepspeed), recipe, plan),
        train_sources=train,
        streamed_sources=streamed,
        evaluation_sources=evaluation,
    )


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


def open_stream(recipe: Recipe, ranks: Ranks, prepared: Prepared, tokenizer: Any) -> MixedStream:
    """This rank's stream of examples, at its beginning."""
    data, plan = recipe.data, prepared.plan
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "image": recipe.image,
        "seed": recipe.seed,
        "global_batch_size": plan.global_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "world_size": ranks.world_size,
        "global_rank": ranks.global_rank,
        "num_workers": data.num_workers,
        "unit": data.unit,
        "temperature": data.temperature,
        "errors": data.errors,
        "ledger": Path(recipe.output) / f"data_errors-{ranks.global_rank}.jsonl",
    }
    if data.reader == "sequential":
        return SequentialStream(
            prepared.streamed_sources, shuffle_buffer=data.shuffle_buffer, **common
        )
    return TrainStream(
        prepared.train_sources, window=data.window, group=data.group, lanes=data.lanes, **common
    )


def load_model(recipe: Recipe, prepared: Prepared, tokenizer: Any, ranks: Ranks) -> VLModel:
    """Build the model, aligned if the recipe says so, in the run's precision."""
    torch.manual_seed(recipe.seed)
    dtype = PRECISIONS[recipe.training.precision]
    if recipe.alignment is None:
        with partitioned_loading(prepared.deepspeed):
            return build_model(recipe.model, list(recipe.tasks), dtype, tokenizer)
    model = build_model(recipe.model, list(recipe.tasks), torch.float32, tokenizer)
    align(model, recipe, tokenizer, ranks)
    return model.to(dtype)


def announce(run: Run) -> None:
    """One line about what trains and where, and the resolved recipe into the run folder."""
    if run.ranks.is_first:
        save_recipe(run.recipe, run.folder / "recipe.yaml")
    counts, held = run.engine.model.count_parameters(), run.engine.bytes_per_rank()
    run.tracker.say(
        f"{counts.trainable:,} of {counts.total:,} weights train ({counts.percent:.2f} %), "
        f"ZeRO-{run.engine.stage} on "
        f"{run.ranks.world_size} ranks; bytes per rank: frozen {held['frozen']:,}, trainable "
        f"{held['trainable']:,}, "
        f"optimizer {held['optimizer']:,}; step {run.engine.steps_done} of "
        f"{run.recipe.training.steps}"
    )
    if run.stream.notice:
        run.tracker.say(run.stream.notice)
    run.tracker.write(
        run.engine.steps_done, {"bytes_per_rank": held, "trainable": counts.as_dict()}
    )


def loop(run: Run, plan: BatchPlan, stop: StopRequest) -> int:
    """Steps until the last one, or until someone asks for a stop."""
    config, engine = run.recipe.training, run.engine
    watch = GradientWatch(engine.model, engine.model.parts, run.ranks)
    nonfinite = NonFiniteSteps(config.max_nonfinite_steps, run.ranks)
    micro_batches = iter(blanked(run.stream) if run.recipe.data.blank_images else run.stream)
    if evaluation_lacks(run):
        tell_evaluation(run)
    save_due = False
    while engine.steps_done < config.steps:
        factor = schedule_factor(engine.steps_done, config.steps, run.recipe.optimizer)
        set_learning_rate(engine.parameter_groups, factor)
        batches = [next(micro_batches) for _ in range(plan.accumulation_steps)]
        report = engine.step(batches)
        step = engine.steps_done
        learning_rate = factor * run.recipe.optimizer.learning_rate
        run.tracker.step(step, report, learning_rate, run.stream)
        stopping, failed = run.ranks.any_of(stop.reason is not None, run.states.failed)
        if failed:
            run.states.finish()
        last = step == config.steps
        for line in [*watch.after_step(last), *nonfinite.after_step(step, report, batches)]:
            run.tracker.say(line)
        # A step that was skipped may be one of a row that ends the run: its good state stays.
        save_due |= step % config.save_every == 0
        if stopping or last or (save_due and not report.skipped):
            save_state(run)
            save_due = False
        if stopping and not last:
            run.states.finish()
            run.tracker.say(
                f"stopped by {stop.reason or 'another rank'} after step {step}; --resume goes on "
                "from it"
            )
            return stop.exit_code or 143
        if not last and evaluation_due(run):
            tell_evaluation(run)
    # Also where the run was resumed at its last step: it may have ended before this.
    tell_evaluation(run)
    save_run_artifact(run, run.folder / "artifact")
    run.states.finish()
    run.tracker.say(f"done: {run.folder}/artifact")
    return 0


def evaluation_due(run: Run) -> bool:
    """Whether the recipe asks for scores after the step that was done last."""
    config, step = run.recipe.training, run.engine.steps_done
    if step == 0:
        return config.evaluate_first
    return config.evaluate_every > 0 and step % config.evaluate_every == 0


def evaluation_lacks(run: Run) -> bool:
    """Whether the step that a run begins or goes on at still is to be evaluated: its state was
    saved before that, and then the run may have been stopped or killed. Collective."""
    step = run.engine.steps_done
    if not evaluation_due(run) or step == run.recipe.training.steps:
        return False
    told = run.ranks.is_first and scores_told(run.folder / "metrics.jsonl", step)
    return not run.ranks.broadcast(told)


def save_state(run: Run) -> None:
    """Begin to write the run state, and tell how long training stood still."""
    seconds = run.states.save()
    run.tracker.write(run.engine.steps_done, {"save": {"blocking_seconds": seconds}})


def save_run_artifact(run: Run, folder: Path) -> None:
    """Write the artifact of the weights as they are now."""
    state = run.engine.export()
    with run.engine.evaluation() as model:
        if state is not None:
            masters = {
                name: tensors["fp32"] for name, tensors in state.items() if "fp32" in tensors
            }
            tensors = own_tensors(model, masters)
            save_artifact(folder, tensors, run.recipe, run.tokenizer)
    run.ranks.barrier()


def tell_evaluation(run: Run) -> None:
    """Evaluate, write predictions, say the scores, keep the best step's artifact and state; the
    scores are written last, which tells a resumed run that all of this is done."""
    if not run.evaluator.orders:
        return
    run.tracker.pause()
    with run.engine.evaluation() as model:
        evaluations = run.evaluator(model)
    step = run.engine.steps_done
    for evaluation in evaluations:
        evaluation.write(run.folder / "predictions" / f"step-{step:08d}")
        run.tracker.say(
            f"step {step}  {evaluation.task} ({len(evaluation.predictions):,} examples): "
            f"{evaluation.headlines()}"
        )
    if run.best is not None:
        value = run.ranks.broadcast(run.best.better(evaluations, step))
        if value is not None:
            save_run_artifact(run, run.best.folder)
            if run.ranks.is_first:
                run.states.best = run.best.note(value, step)
            if run.states.newest_step != step:
                save_state(run)
            run.tracker.say(f"step {step}  best so far, kept in {run.best.folder}")
    if evaluations:
        run.tracker.write(step, {"scores": {e.task: e.scores for e in evaluations}})
    run.tracker.resume_clock()

"""The training loop: draw a global batch, step, log, save."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from vlds.evaluation.evaluator import EvaluationStopped
from vlds.evaluation.sources import check_frozen_files, with_lists
from vlds.models.kinds.base import revision_due
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import model_line
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.devices import hardware
from vlds.runtime.process import heard, signal_name, signals_collected
from vlds.runtime.ranks import hold_folder
from vlds.runtime.terminal import shell_command, tell
from vlds.training.agreement import check_agreement
from vlds.training.faults import NonFiniteSteps, explained, library_faults
from vlds.training.gradients import GradientWatch
from vlds.training.meta import MetaStopped
from vlds.training.optimizer import run_factor, set_learning_rate
from vlds.training.prepare import prepare, with_steps
from vlds.training.profile import between_steps, span
from vlds.training.run import (
    Run,
    build_run,
    evaluation_due,
    evaluation_missing,
    revise,
    save_run_artifact,
    save_state,
    tell_evaluation,
)
from vlds.training.states import Resume


def train(
    recipe: Recipe, *, resume: Resume = False, new_phase: bool = False, profile: int = 0
) -> int:
    """Run a recipe on the started ranks. Returns the exit code: 0, or 128 + n after signal n.
    `new_phase`: a resumed run may mix its tasks differently from here on. `profile`: steps of which
    to say where their time goes.

    Errors: ValueError for anything wrong with the recipe, its files or its data, and for a lack
    of memory or disk that a restart would not cure.
    """
    ranks = start_ranks(recipe.training.collective_timeout)
    if ranks.is_first:
        tell(f"on {hardware(ranks.world_size)}", flush=True)
    # torchrun passes SIGINT on to its ranks, even where they inherit that it is ignored.
    stopping = {signal.SIGTERM, signal.SIGINT, *heard()}
    with explained(recipe), signals_collected(stopping) as stop:
        # From cheap to expensive: nothing is built before the ranks agree.
        recipe = with_lists(recipe)
        prepared = prepare(recipe, ranks, resume)
        recipe = with_steps(recipe, prepared.train_sources or prepared.streamed_sources)
        check_agreement(ranks, recipe, prepared, f"resume={resume} new_phase={new_phase}")
        check_frozen_files(recipe, ranks)
        with hold_folder(ranks, Path(recipe.output)):
            try:
                run = build_run(
                    recipe, ranks, prepared, resume, new_phase, profile, lambda: bool(stop)
                )
            except MetaStopped as place:
                if ranks.is_first:
                    tell(stop_line(stop, str(place), "start it again"), flush=True)
                return exit_code(stop)
            run.evaluator.stopping = lambda: bool(stop)
            # The writers and the profile are closed however the loop ends.
            with ExitStack() as closing:
                closing.callback(run.tracker.close)
                closing.callback(run.states.close)
                if run.profile is not None:
                    closing.callback(run.profile.close)
                try:
                    code = loop(run, stop)
                except EvaluationStopped:
                    if run.engine.steps_done > (run.states.newest_step or 0):
                        save_state(run)  # not saved yet if the step before was skipped
                    code = stopped(run, stop, "during the evaluation ")
    run.engine.close()
    return code


def loop(run: Run, stop: Sequence[int]) -> int:
    """Steps until the last one, or until a signal is in `stop`. Returns the exit code."""
    config, optimizer, engine = run.recipe.training, run.recipe.optimizer, run.engine
    num_steps = config.num_steps
    watch = GradientWatch(engine.model, engine.model.trained_by, run.ranks)
    nonfinite = NonFiniteSteps(run.recipe, run.ranks)
    global_batches = run.stream.steps()
    if engine.steps_done == num_steps:
        run.tracker.say("all steps are done; what is left is to evaluate and to write the artifact")
    elif evaluation_missing(run):
        tell_evaluation(run)
    save_due = False
    while engine.steps_done < num_steps:
        with run.tracker.waiting(), span("data"):
            batches = next(global_batches)
        factor = run_factor(engine.steps_done, run.recipe)
        set_learning_rate(engine.parameter_groups, factor)
        with library_faults():
            report = engine.step(batches)
        step = engine.steps_done
        run.tracker.step(step, report, factor * optimizer.learning_rate, run.stream)
        # Ranks hear of a signal at different times, but must leave the loop after the same step.
        stopping, failed = run.ranks.any_of(bool(stop), run.states.failed)
        if failed:
            run.states.finish()  # raises the writer's error on all ranks
        last = step == num_steps
        lines = [*watch.after_step(last), *nonfinite.after_step(step, report, batches)]
        if revision_due(engine.model, step, num_steps):
            with run.tracker.paused():
                lines += revise(run)
        if run.profile is not None:
            with run.tracker.paused():  # to write a trace takes seconds
                lines += run.profile.after_step()
        for line in lines:
            run.tracker.say(line)
        # Too many skipped steps in a row end the run: the good state before them stays the newest.
        # A state that falls due at a skipped step is saved after the next good one.
        save_due |= step % config.save_every == 0
        with between_steps():
            if stopping or last or (save_due and not report.skipped):
                save_state(run)
                save_due = False
            if stopping and not last:
                return stopped(run, stop)
            if not last and evaluation_due(run):
                if run.states.newest_step != step and not report.skipped:
                    save_state(run)  # a stop or a fault during the evaluation loses no step
                    save_due = False
                tell_evaluation(run)
    # A run that is resumed at its last step may have ended before this.
    tell_evaluation(run)
    save_run_artifact(run, run.folder / "artifact")
    run.states.finish()
    if line := model_line(run.folder):
        run.tracker.say(line)
    run.tracker.say(f"next: {shell_command('vlds', 'report', run.folder)}")
    memory = run.ranks.most_memory() / 1e9
    run.tracker.say(f"done: {run.folder}/artifact; a rank used at most {memory:.2f} GB of memory")
    return 0


def stopped(run: Run, stop: Sequence[int], when: str = "") -> int:
    """Wait until the newest state is on disk and say how to continue. Returns the exit code."""
    run.states.finish()
    step = run.states.newest_step
    advice = "start it again" if step is None else f"--resume continues from step {step}"
    run.tracker.say(stop_line(stop, f"{when}after step {run.engine.steps_done}", advice))
    return exit_code(stop)


def stop_line(stop: Sequence[int], where: str, advice: str) -> str:
    """What a run says that ends because of signals to this rank, or else to another one."""
    by = f" by {signal_name(stop[0])}" if stop else ""
    why = "" if stop else " because another rank was told to"
    return f"stopped{by} {where}{why}; {advice}"


def exit_code(stop: Sequence[int]) -> int:
    """The exit code after these signals, or after one to another rank."""
    return 128 + (stop[0] if stop else signal.SIGTERM)

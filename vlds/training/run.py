"""A run: what it writes down when it starts, and what it saves and evaluates between its steps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlds.artifact import TrainedOn, own_tensors, save_artifact
from vlds.config import Recipe, save_recipe
from vlds.data.streams.mixed_stream import MixedStream
from vlds.evaluation.evaluator import Evaluator
from vlds.runtime.credentials import without_credentials
from vlds.runtime.ranks import Ranks
from vlds.runtime.run_folder import (
    PREDICTIONS,
    STARTS,
    add_start,
    cpu_name,
    new_start,
    read_starts,
)
from vlds.runtime.whole_file import write_whole
from vlds.training.best import BestStep
from vlds.training.checkpoint import RunStates
from vlds.training.engine import Engine
from vlds.training.optim import parameter_groups
from vlds.training.profile import StepProfile
from vlds.training.recipe_changes import RECIPE, recipe_changes
from vlds.training.sinks import has_scores
from vlds.training.tracker import Tracker

SHOWN_CHANGES = 20


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
    add_start(run.folder, new_start(step, command_line(), hardware(run.ranks), changes))
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


def command_line() -> str:
    """This process's words as a user would type them."""
    words = (word for word in sys.argv[1:] if not word.startswith("--local_rank="))
    return " ".join(["vlds", *map(without_credentials, words)])


def hardware(ranks: Ranks) -> str:
    """The number of ranks, and what each runs on."""
    on_gpu = ranks.device.type == "cuda"
    name = torch.cuda.get_device_name(ranks.device) if on_gpu else cpu_name()
    return f"{ranks.world_size} rank{'s' * (ranks.world_size > 1)}, {name}"


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
    state = run.engine.export()
    with run.engine.evaluation() as model:
        if state is not None:
            masters = {
                name: tensors["fp32"] for name, tensors in state.items() if "fp32" in tensors
            }
            tensors = own_tensors(model, masters)
            save_artifact(folder, tensors, run.recipe, run.processor, notes, run.trained_on)
    run.ranks.barrier()


def tell_evaluation(run: Run) -> None:
    """Evaluate, write predictions, say the scores, keep the best step's artifact and state. The
    scores are logged last: a resumed run that finds them repeats none of this."""
    if not run.evaluator.orders:
        return
    with run.tracker.paused():
        with run.engine.evaluation() as model:
            evaluations = run.evaluator(model)
        step = run.engine.steps_done
        for evaluation in evaluations:
            evaluation.write(run.folder / PREDICTIONS / f"step-{step:08d}")
            run.tracker.say(f"step {step}  {evaluation.title}: {evaluation.headlines()}")
        if run.best is not None:
            value = run.ranks.broadcast(run.best.better(evaluations, step))
            if value is not None:
                save_run_artifact(run, run.best.folder, run.best.note(value, step))
                run.states.best = run.best.known
                run.tracker.say(f"step {step}  best so far, kept in {run.best.folder}")
        if evaluations:
            answers = sum(len(e.predictions) for e in evaluations)
            speed = answers / sum(e.seconds for e in evaluations)
            scores = {e.task: e.scores for e in evaluations}
            run.tracker.write(step, {"scores": scores, "answers_per_second": speed})

"""A run, and what it does between its steps: states, artifacts, evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlds.artifact import own_tensors, save_artifact
from vlds.config import Recipe
from vlds.data.streams.mixed_stream import MixedStream
from vlds.evaluation.evaluator import Evaluator
from vlds.runtime.ranks import Ranks
from vlds.runtime.run_folder import PREDICTIONS
from vlds.training.best import BestStep
from vlds.training.engine import Engine
from vlds.training.resume import RunStates
from vlds.training.sinks import scores_told
from vlds.training.tracker import Tracker


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
    if not evaluation_due(run) or step == run.recipe.training.num_steps:
        return False
    told = run.ranks.is_first and scores_told(run.folder / "metrics.jsonl", step)
    return not run.ranks.broadcast(told)


def save_state(run: Run) -> None:
    """Begin to write the run state, and tell how long training stood still."""
    seconds = run.states.save()
    run.tracker.write(run.engine.steps_done, {"save": {"blocking_seconds": seconds}})


def save_run_artifact(run: Run, folder: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write the artifact of the weights as they are now; `notes` as in `save_artifact`."""
    state = run.engine.export()
    with run.engine.evaluation() as model:
        if state is not None:
            masters = {
                name: tensors["fp32"] for name, tensors in state.items() if "fp32" in tensors
            }
            tensors = own_tensors(model, masters)
            save_artifact(folder, tensors, run.recipe, run.tokenizer, notes)
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
        evaluation.write(run.folder / PREDICTIONS / f"step-{step:08d}")
        run.tracker.say(f"step {step}  {evaluation.title}: {evaluation.headlines()}")
    if run.best is not None:
        value = run.ranks.broadcast(run.best.better(evaluations, step))
        if value is not None:
            save_run_artifact(run, run.best.folder, run.best.note(value, step))
            run.states.best = run.best.found
            run.tracker.say(f"step {step}  best so far, kept in {run.best.folder}")
    if evaluations:
        run.tracker.write(step, {"scores": {e.task: e.scores for e in evaluations}})
    run.tracker.resume_clock()

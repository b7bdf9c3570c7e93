"""What a sweep will do, and how long that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlds.config import Recipe
from vlds.evaluation.sources import training_sources, with_lists
from vlds.plan import Machine, forecast_or_reason, plan_recipe
from vlds.plan.duration import Duration
from vlds.report.render.table import Cell, Row, Table, terminal_table
from vlds.runtime.durations import duration_text
from vlds.runtime.metrics_file import read_metric_lines
from vlds.runtime.terminal import open_console, tell
from vlds.sweep.file import Sweep
from vlds.sweep.runs import SweepRun
from vlds.sweep.work import Work
from vlds.training.prepare import number_of_steps


@dataclass(frozen=True)
class Estimate:
    """How long a row's runs train."""

    run: float | None = None
    """Seconds of a whole run; None if they are not known."""
    left: float | None = 0.0
    """Seconds of all of the row's runs that are left."""
    is_measured: bool = False
    """True if a run of this row told it, False if the step was rehearsed."""
    reason: str = ""
    """Why nothing is known."""


def say_agenda(
    file: str, sweep: Sweep, work: Work, runs: Sequence[SweepRun], num_ranks: int, at_once: int
) -> None:
    """Print what is done, what is left and its time."""
    by_row = {row: [run for run in runs if run.row == row] for row in sweep.rows}
    estimates = {row: estimate(of_row, num_ranks) for row, of_row in by_row.items()}
    rows = []
    for row, of_row in by_row.items():
        done = sum(run.is_done for run in of_row)
        started = sum(run.is_started and not run.is_done for run in of_row)
        known = estimates[row]
        cells = [f"{done} of {len(of_row)}", str(started), time_text(known.run), left_text(known)]
        rows.append(Row(row, [Cell(text) for text in cells]))
    table = Table(["row", "done", "begun", "a run trains", "left"], rows)
    tell(f"{file}: {len(runs)} runs, in {sweep.output}")
    open_console().print(terminal_table(table))
    if missing := sum(not part.is_done for part in work.preparations):
        tell(f"{missing} of {len(work.preparations)} preparations come first")
    on = f"{num_ranks} rank{'s' * (num_ranks > 1)}"
    left = [known.left for known in estimates.values()]
    for reason in dict.fromkeys(known.reason for known in estimates.values() if known.reason):
        of = ", ".join(row for row, known in estimates.items() if known.reason == reason)
        tell(f"the time of {of} is not known yet: {reason}")
    if total := sum(seconds for seconds in left if seconds is not None):
        how = "one run after another" if at_once == 1 else f"{at_once} runs at a time"
        tell(f"training alone: about {duration_text(total / at_once)} on {on}, {how}")


def time_text(seconds: float | None) -> str:
    """A time; a dash if it is not known."""
    return "-" if seconds is None else duration_text(seconds)


def left_text(known: Estimate) -> str:
    """What is left, and how that is known."""
    if not known.left:
        return time_text(known.left)
    return f"{duration_text(known.left)}{'' if known.is_measured else ' (rehearsed)'}"


def estimate(runs: Sequence[SweepRun], num_ranks: int) -> Estimate:
    """The time of a row's runs, from what some have logged, or else from a rehearsed step."""
    missing = [run for run in runs if not run.is_trained]
    measured = [seconds for run in runs if (seconds := logged_step(run))]
    recipe = runs[0].recipe
    if not missing and not measured:
        return Estimate()
    try:
        steps = number_of_steps(recipe, training_sources(recipe))
    except ValueError as error:
        return Estimate(left=None if missing else 0.0, reason=str(error))
    step = min(measured) if measured else rehearsed_step(recipe, num_ranks)
    if isinstance(step, str):
        return Estimate(left=None, reason=step)
    left = sum(max(0, steps - run.steps_done) for run in missing)
    return Estimate(steps * step, left * step, is_measured=bool(measured))


def logged_step(run: SweepRun) -> float | None:
    """Seconds of a step, as a run has logged them."""
    lines = [line for _, line in read_metric_lines(run.folder / "metrics.jsonl").lines]
    seconds = sum(line.get("seconds", 0.0) for line in lines)
    steps = max((line["step"] for line in lines), default=0)
    return seconds / steps if steps > 0 and 0 < seconds < math.inf else None


def rehearsed_step(recipe: Recipe, num_ranks: int) -> float | str:
    """Seconds of a step on this machine as `vlds plan` finds them, or why they are not known."""
    try:
        recipe = with_lists(recipe)
        (plan,) = plan_recipe(recipe, [num_ranks])
        machine = Machine()
        forecast = forecast_or_reason(recipe, num_ranks, on_gpu=not machine.is_here)
        if isinstance(forecast, str):
            return forecast
        return Duration.of(plan, recipe, forecast, machine).step
    except ValueError as error:
        return str(error)

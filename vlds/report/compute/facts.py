"""Facts about a run in words and numbers: its method, size, speed and history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from datetime import UTC, datetime
from typing import Any

from vlds.config import Recipe
from vlds.methods.base import Method
from vlds.report.numbers import bytes_text
from vlds.report.read.inputs import RunInputs
from vlds.report.read.scores import Scores
from vlds.runtime.durations import duration_text
from vlds.runtime.run_folder import Start

MADE = ("started", "training took", "hardware", "versions", "command")
"""Facts about how a run was made."""


def trained_text(recipe: Recipe) -> str:
    """What a recipe trains: methods with their fields, norms, visual embedding."""
    trained = [method_text(method) for method in recipe.methods.values()]
    return " + ".join([*trained, *recipe.trained_text]) or "nothing"


def method_text(method: Method) -> str:
    """A method's class with its numbers, and with other fields that differ from their default."""
    shown = []
    for field in fields(method):
        value = getattr(method, field.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number or value != default_of(field):
            written = "/".join(map(str, value)) if isinstance(value, list) else value
            shown.append(f"{field.name}={written}")
    name = type(method).__name__
    return f"{name} ({', '.join(shown)})" if shown else name


def default_of(field: Field[Any]) -> Any:
    """The default of a dataclass's field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def recipe_facts(recipe: Recipe, run: RunInputs) -> dict[str, str]:
    """How it was trained, as far as recipe and metrics tell."""
    steps = "" if run.steps_done is None else f"{run.steps_done:,} of "
    return {
        "method": trained_text(recipe),
        "steps": f"{steps}{recipe.training.num_steps:,}",
        "examples a step": ", ".join(f"{size:,}" for size in recipe.batch_sizes.values()),
        "learning rate": f"{recipe.optimizer.learning_rate:g}",
        "precision": recipe.training.precision,
        "DeepSpeed": recipe.training.deepspeed,
        **({"partition": run.partition} if run.partition else {}),
        "seed": str(recipe.seed),
    }


def start_facts(starts: Sequence[Start], run: RunInputs) -> dict[str, str]:
    """When, where and with what it was trained."""
    if not starts:
        return {}
    first, last = starts[0], starts[-1]
    facts = {"started": time_text(first.time)}
    if len(starts) > 1:
        facts["resumed"] = ", ".join(f"{time_text(s.time)} at step {s.step:,}" for s in starts[1:])
    if run.seconds:
        facts["training took"] = duration_text(run.seconds)
    facts["hardware"] = "; then ".join(dict.fromkeys(start.hardware for start in starts))
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in last.versions.items())
    facts["command"] = last.command
    changes = [f"at step {s.step:,}: {change}" for s in starts for change in s.changes]
    if changes:
        facts["recipe changed"] = "; ".join(changes)
    return facts


def time_text(time: str) -> str:
    """ "2026-03-01 12:00 UTC"."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def stopped_text(recipe: Recipe, run: RunInputs) -> str:
    """The steps that an unfinished run has done; "" for a finished one."""
    done, planned = run.steps_done, recipe.training.num_steps
    return "" if done is None or done >= planned else f"{done:,} of {planned:,} steps"


def size_facts(scores: Scores) -> dict[str, str]:
    """What is known about size and speed."""
    facts = {}
    if counts := scores.trainable:
        facts["weights that train"] = (
            f"{counts['trainable']:,.0f} of {counts['total']:,.0f} ({counts['percent']:.2f} %)"
        )
    for what, count in scores.bytes_per_rank.items():
        facts[f"{what}, bytes per rank"] = bytes_text(count)
    for what, speed in scores.samples_per_second.items():
        facts[f"{what}, examples a second"] = speed_text(speed)
    return facts


def speed_text(speed: float) -> str:
    """Examples a second: whole ones where there are ten."""
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"

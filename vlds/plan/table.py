"""A plan for people, at most 80 columns wide, and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import PurePath
from textwrap import fill
from typing import Any

from vlds.config import Recipe
from vlds.plan.duration import Duration
from vlds.plan.forecast import Forecast
from vlds.plan.machine import Machine
from vlds.plan.needs import Needs, Plan

WIDEST = 100_000_000_000
"""Bytes from which on a column has no place for a decimal."""
HEAD = ("MB", "frozen", "trainable", "optimizer", "in CPU", "step", "peak")


def page(plan: Plan, recipe: Recipe, forecast: Forecast | str, machine: Machine) -> Iterator[str]:
    """The plan for one number of ranks, in two pieces: the second one may take a while. `forecast`:
    of micro-batches, or why there is none."""
    number, rows = plan.world_size, plan.micro_batch
    ranks = "1 rank" if number == 1 else f"each of {number:,} ranks"
    lines = [f"What {ranks} holds, in {recipe.training.precision}", line(*HEAD)]
    for file, needs in plan.files.items():
        held = needs.held
        numbers = (held.frozen, held.trainable, held.optimizer, held.offloaded)
        cells = (*numbers, *step_and_peak(needs, rows, forecast))
        lines.append(line(PurePath(file).name, *map(megabytes, cells)))
    lines.append("The first file is the recipe's. `in CPU`: in the CPU's memory, beside a GPU.")
    if isinstance(forecast, str):
        reason = f"`step` is not known: {forecast}"
        yield "\n".join([*lines, fill(reason, 80, break_long_words=False)])
        return
    of_rows = f"micro-batches of {rows:,} row{'s' * (rows != 1)}"
    lines.append(fill(f"`step`: what a step of {of_rows} adds. `peak`: all without `in CPU`.", 80))
    if machine.memory is not None:
        lines.append(fits(plan, forecast, machine.memory))
    yield "\n".join(lines)
    yield Duration.of(plan, recipe, forecast, machine).text(recipe.training.steps, machine)


def step_and_peak(
    needs: Needs, rows: int, forecast: Forecast | str
) -> tuple[int, int] | tuple[None, None]:
    """What a step adds, and what a rank then has in the memory of its GPU, if it has one; None if
    it is not known."""
    if isinstance(forecast, str):
        return None, None
    step = needs.extra + forecast.at(rows).peak
    return step, needs.held.together - needs.held.offloaded + step


def fits(plan: Plan, forecast: Forecast, memory: int) -> str:
    """How large micro-batches may be, and which file to choose."""
    most = most_rows(plan, forecast, memory)
    rows = [f"{number:,} with {PurePath(file).name}" for file, number in most.items()]
    text = f"Most rows of a micro-batch in {memory / 1e9:g} GB: {', '.join(rows)}."
    return fill(f"{text} {choice(plan, most)}", 80)


def most_rows(plan: Plan, forecast: Forecast, memory: int) -> dict[str, int]:
    """File -> rows of the largest micro-batch; what lies in the CPU's memory takes none of a
    GPU's."""
    most = {}
    for file, needs in plan.files.items():
        taken = needs.held.together - needs.held.offloaded + needs.extra
        most[file] = forecast.most_rows(memory - taken)
    return most


def choice(plan: Plan, most: Mapping[str, int]) -> str:
    """The file to choose, given how many rows each can hold."""
    rows = f"{plan.micro_batch:,} row{'s' * (plan.micro_batch != 1)}"
    if (chosen := chosen_file(plan, most)) is None:
        return f"None holds {rows}: set a smaller data.micro_batch_size, or take more ranks."
    name = PurePath(chosen).name
    return f"Choose {name}: of those that hold {rows}, it partitions and offloads least."


def chosen_file(plan: Plan, most: Mapping[str, int]) -> str | None:
    """Of the files that hold a micro-batch, the one that costs least; None if there is none."""
    enough = {file: needs for file, needs in plan.files.items() if most[file] >= plan.micro_batch}
    # What moves to the CPU's memory and back each step costs more than what stage 3 gathers.
    return min(enough, key=lambda f: (enough[f].held.offloaded > 0, enough[f].stage), default=None)


def tree(plan: Plan, recipe: Recipe, forecast: Forecast | str, machine: Machine) -> dict[str, Any]:
    """The plan for programs, in bytes and seconds: what the page says."""
    files = {}
    for file, needs in plan.files.items():
        step, peak = step_and_peak(needs, plan.micro_batch, forecast)
        files[file] = {**asdict(needs.held), "step": step, "peak": peak, "sent": needs.sent}
    found: dict[str, Any] = {"micro_batch": plan.micro_batch, "files": files}
    if isinstance(forecast, str):
        return {**found, "unknown": forecast}
    if machine.memory is not None:
        most = most_rows(plan, forecast, machine.memory)
        found |= {"most_rows": most, "choose": chosen_file(plan, most)}
    duration = Duration.of(plan, recipe, forecast, machine)
    return {**found, "seconds": {**asdict(duration), "step": duration.step}}


def megabytes(number: int | None) -> str:
    """Of bytes; a dash for what is not known."""
    if number is None:
        return "-"
    return f"{number / 1e6:,.1f}" if number < WIDEST else f"{number / 1e6:,.0f}"


def line(name: str, *cells: str) -> str:
    """A line of the table."""
    return f"{name[:19]:<20}" + "".join(f"{cell:>10}" for cell in cells)

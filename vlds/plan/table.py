"""A plan for people, at most 80 columns wide, and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from textwrap import fill
from typing import Any

from vlds.config import Recipe
from vlds.plan.forecast import Forecast
from vlds.plan.held import MASTER_BYTES
from vlds.plan.machine import Machine
from vlds.plan.needs import Needs, Plan
from vlds.plan.replay import update_seconds
from vlds.runtime.durations import duration_text

UPDATE_BYTES = 40
"""Bytes that an update reads and writes of a weight: gradient, master, moments."""
WIDEST = 100_000_000_000
"""Bytes from which on a column has no place for a decimal."""
HEAD = ("MB", "frozen", "trainable", "optimizer", "in CPU", "step", "peak")


def page(plan: Plan, recipe: Recipe, forecast: Forecast | str, machine: Machine) -> str:
    """The plan for one number of ranks. `forecast`: of micro-batches, or why there is none."""
    number, rows = plan.world_size, plan.micro_batch
    ranks = "1 rank" if number == 1 else f"each of {number:,} ranks"
    lines = [f"What {ranks} holds, in {recipe.training.precision}", line(*HEAD)]
    for file, needs in plan.files.items():
        held, step = needs.held, step_bytes(needs, rows, forecast)
        numbers = (held.frozen, held.trainable, held.optimizer, held.offloaded, step)
        peak = None if step is None else held.together + step
        lines.append(line(PurePath(file).name, *map(megabytes, (*numbers, peak))))
    lines += [
        "The first file is the recipe's. `in CPU`: in the CPU's memory, beside a GPU.",
        f"`step`: what a step of micro-batches of {rows:,} row{'s' * (rows != 1)} adds.",
    ]
    if isinstance(forecast, str):
        reason = f"`step` is not known: {forecast}"
        return "\n".join([*lines, fill(reason, 80, break_long_words=False)])
    if machine.memory is not None:
        lines.append(fits(plan, forecast, machine.memory))
    lines.append(duration(plan, recipe, forecast, machine))
    return "\n".join(lines)


def step_bytes(needs: Needs, rows: int, forecast: Forecast | str) -> int | None:
    """What a step adds; None if it is not known."""
    return None if isinstance(forecast, str) else needs.extra + forecast.at(rows).peak


def fits(plan: Plan, forecast: Forecast, memory: int) -> str:
    """How large micro-batches may be, and which file to choose; what lies in the CPU's memory takes
    none of a GPU's."""
    most = {}
    for file, needs in plan.files.items():
        taken = needs.held.together - needs.held.offloaded + needs.extra
        most[file] = forecast.most_rows(memory - taken)
    rows = [f"{number:,} with {PurePath(file).name}" for file, number in most.items()]
    text = f"Most rows of a micro-batch in {memory / 1e9:g} GB: {', '.join(rows)}."
    return fill(f"{text} {choice(plan, most)}", 80)


def choice(plan: Plan, most: Mapping[str, int]) -> str:
    """The file to choose, given how many rows each can hold."""
    enough = {file: needs for file, needs in plan.files.items() if most[file] >= plan.micro_batch}
    rows = f"{plan.micro_batch:,} row{'s' * (plan.micro_batch != 1)}"
    if not enough:
        return f"None holds {rows}: set a smaller data.micro_batch_size, or take more ranks."
    # What moves to the CPU's memory and back each step costs more than what stage 3 gathers.
    chosen = min(enough, key=lambda file: (enough[file].held.offloaded > 0, enough[file].stage))
    name = PurePath(chosen).name
    return f"Choose {name}: of those that hold {rows}, it partitions and offloads least."


def duration(plan: Plan, recipe: Recipe, forecast: Forecast, machine: Machine) -> str:
    """How long a step of the first file and the run take: about, if the machine is this one, else
    at least."""
    needs = next(iter(plan.files.values()))
    updated = needs.held.optimizer // MASTER_BYTES
    if machine.is_here:
        pair = forecast.seconds_here(plan.micro_batch, plan.world_size)
        update, about, rates = update_seconds(updated, recipe.training.dtype), "about", []
    else:
        machine = machine.measured(recipe.training.dtype)
        pair = machine.seconds(forecast.at(plan.micro_batch))
        flops, bandwidth = machine.ceilings
        update, about = updated * UPDATE_BYTES / bandwidth, "at least"
        rates = [f"{flops / 1e12:.3g} TFLOP/s", f"{bandwidth / 1e9:,.0f} GB/s of memory"]
    products, others = (plan.micro_batches * seconds for seconds in pair)
    between = needs.sent / machine.link
    step, steps = products + others + update + between, recipe.training.steps
    run = "" if steps is None else f", the run {duration_text(step * steps)}"
    shares = [
        f"products {products / step:.0%}",
        f"other operations {others / step:.0%}",
        f"update of the weights {update / step:.0%}",
    ]
    if needs.sent:
        shares.append(f"between ranks {between / step:.0%} ({needs.sent / 1e6:,.1f} MB)")
        rates.append(f"{machine.link / 1e9:,.3g} GB/s between ranks")
    text = f"A step takes {about} {step:.3g} s{run}: {', '.join(shares)}"
    text += f", at {', '.join(rates)}." if rates else "."
    return fill(text, 80)


def tree(plan: Plan, forecast: Forecast | str) -> dict[str, Any]:
    """The plan for programs: bytes, by DeepSpeed's files."""
    files = {}
    for file, needs in plan.files.items():
        step = step_bytes(needs, plan.micro_batch, forecast)
        files[file] = {**asdict(needs.held), "step": step, "sent": needs.sent}
    return files


def megabytes(number: int | None) -> str:
    """Of bytes; a dash for what is not known."""
    if number is None:
        return "-"
    return f"{number / 1e6:,.1f}" if number < WIDEST else f"{number / 1e6:,.0f}"


def line(name: str, *cells: str) -> str:
    """A line of the table."""
    return f"{name[:19]:<20}" + "".join(f"{cell:>10}" for cell in cells)

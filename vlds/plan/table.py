"""A plan for people, at most 80 columns wide."""

from __future__ import annotations

from pathlib import PurePath

from vlds.config import Recipe
from vlds.plan.ceilings import Ceilings
from vlds.plan.forecast import Forecast
from vlds.plan.needs import Needs, Plan

HEAD = ("MB", "frozen", "trainable", "optimizer", "in CPU", "step", "peak")


def table(plan: Plan, recipe: Recipe, forecast: Forecast | str, memory: int | None = None) -> str:
    """The plan for one number of ranks. `forecast`: of micro-batches, or why there is none;
    `memory`: bytes that a rank has."""
    number, rows = plan.world_size, plan.micro_batch
    ranks = "1 rank" if number == 1 else f"each of {number:,} ranks"
    lines = [f"What {ranks} holds, in {recipe.training.precision}", line(*HEAD)]
    for file, needs in plan.files.items():
        step = None if isinstance(forecast, str) else needs.extra + forecast.at(rows).peak
        held = needs.held
        numbers = (held.frozen, held.trainable, held.optimizer, held.offloaded, step)
        peak = None if step is None else held.together + step
        lines.append(line(PurePath(file).name, *map(megabytes, (*numbers, peak))))
    lines += [
        "The first file is the recipe's. `in CPU`: in the CPU's memory, beside a GPU. `step`:",
        f"what a step adds, for micro-batches of {rows:,} row{'s' * (rows > 1)}.",
    ]
    if isinstance(forecast, str):
        lines.append(f"`step` is not known: {forecast}")
    elif memory is not None:
        lines += [fits(file, needs, forecast, memory) for file, needs in plan.files.items()]
    return "\n".join(lines)


def fits(file: str, needs: Needs, forecast: Forecast, memory: int) -> str:
    """How large micro-batches may be."""
    most = forecast.most_rows(memory - needs.held.together - needs.extra)
    rows = f"micro-batches of at most {most:,} rows" if most else "no micro-batch"
    return f"{memory / 1e9:g} GB hold {rows} with {PurePath(file).name}"


def duration(plan: Plan, steps: int | None, forecast: Forecast, ceilings: Ceilings) -> str:
    """How long a step of the first file and the whole run take, if nothing is slower than the
    ceilings say."""
    needs = next(iter(plan.files.values()))
    parts = Seconds.of(forecast.at(plan.micro_batch), ceilings).times(plan.micro_batches)
    between = needs.sent / ceilings.link
    step = parts.products + parts.others + between
    run = "" if steps is None else f", the run of {steps:,} steps {clock(step * steps)}"
    return (
        f"A step takes about {step:.3g} s{run}: products {parts.products / step:.0%},\n"
        f"other operations {parts.others / step:.0%}, between ranks {between / step:.0%} "
        f"({needs.sent / 1e6:,.1f} MB), at {ceilings.flops / 1e12:.3g} TFLOP/s,\n"
        f"{ceilings.bandwidth / 1e9:.3g} GB/s of memory and {ceilings.link / 1e9:.3g} GB/s "
        "between ranks."
    )


def megabytes(number: int | None) -> str:
    """Of bytes; a dash for what is not known."""
    return "-" if number is None else f"{number / 1e6:,.1f}"


def line(name: str, *cells: str) -> str:
    """A line of the table."""
    return f"{name[:19]:<20}" + "".join(f"{cell:>10}" for cell in cells)

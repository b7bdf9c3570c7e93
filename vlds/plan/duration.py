"""How long a step takes on a machine, and of what."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill

import torch

from vlds.beginning.meta import batches_a_step
from vlds.config import Recipe
from vlds.plan.forecast import Forecast
from vlds.plan.held import MASTER_BYTES
from vlds.plan.machine import Machine
from vlds.plan.needs import Plan
from vlds.plan.replay import update_seconds
from vlds.runtime.durations import duration_text

UPDATE_BYTES = 40
"""Bytes that an update reads and writes of a weight: gradient, master, moments."""


@dataclass(frozen=True)
class Duration:
    """Seconds of a step of a plan's first file on one rank."""

    products: float
    others: float
    """Other operations."""
    update: float
    between: float
    """Between ranks."""
    sent: int
    """Bytes that go between ranks."""
    flops: float | None
    """Rates that were assumed; None if the operations ran on this machine."""
    bandwidth: float | None
    threads: int | None
    """Of a rank, where they ran here."""
    passes: int
    """How often the model runs over a batch."""
    further: float
    """Of products and other operations: those of the passes after the first."""
    further_memory: int
    """Bytes of a micro-batch that these passes take."""
    meta: float
    """Of meta-learning before the first step, without its sums over ranks."""

    @classmethod
    def of(cls, plan: Plan, recipe: Recipe, forecast: Forecast, machine: Machine) -> Duration:
        """Measured here, if the machine is this one, else at the machine's rates."""
        needs = next(iter(plan.files.values()))
        updated = needs.held.optimizer // MASTER_BYTES
        flops = bandwidth = threads = None
        if machine.is_here:
            threads = max(1, torch.get_num_threads() // plan.world_size)
            pair = forecast.seconds(plan.world_size)
            update = update_seconds(updated, recipe.training.dtype)
        else:
            machine = machine.measured(recipe.training.dtype)
            pair = machine.seconds(forecast.at(plan.micro_batch))
            flops, bandwidth = machine.ceilings
            update = updated * UPDATE_BYTES / bandwidth
        products, others = (plan.micro_batches * seconds for seconds in pair)
        between = needs.sent / machine.link
        num_batches = 0 if recipe.meta is None else recipe.meta.steps * batches_a_step(recipe)
        whole, more = forecast.whole, forecast.further
        return cls(
            products,
            others,
            update,
            between,
            needs.sent,
            flops,
            bandwidth,
            threads,
            passes=forecast.passes,
            further=products * more.flops / whole.flops + others * more.moved / whole.moved,
            further_memory=forecast.at(plan.micro_batch).peak * more.peak // whole.peak,
            meta=num_batches * (products + others),
        )

    @property
    def step(self) -> float:
        """Seconds of all."""
        return self.products + self.others + self.update + self.between

    def text(self, steps: int | None, machine: Machine) -> str:
        """For people; `steps`: of the run, None if they are not known."""
        run = "" if steps is None else f", the run {duration_text(self.step * steps)}"
        shares = [
            f"products {self.products / self.step:.0%}",
            f"other operations {self.others / self.step:.0%}",
            f"update of the weights {self.update / self.step:.0%}",
        ]
        rates = []
        if self.flops is not None and self.bandwidth is not None:
            rates = [
                f"{self.flops / 1e12:.3g} TFLOP/s",
                f"{self.bandwidth / 1e9:,.0f} GB/s of memory",
            ]
        elif self.threads is not None:
            rates = [f"{self.threads} thread{'s' * (self.threads != 1)} of this CPU a rank"]
        if self.sent:
            share = self.between / self.step
            shares.append(f"between ranks {share:.0%} ({self.sent / 1e6:,.1f} MB)")
            rates.append(f"{machine.link / 1e9:,.3g} GB/s between ranks")
        about = "about" if self.flops is None else "at least"
        text = f"A step takes {about} {self.step:.3g} s{run}: {', '.join(shares)}"
        if self.meta:
            before = f" Meta-learning before takes {about} {duration_text(self.meta)}."
        else:
            before = ""
        return fill(f"{text}, with {', '.join(rates)}.{self.text_of_passes()}{before}", 80)

    def text_of_passes(self) -> str:
        """What passes after the first cost; nothing if there are none."""
        if self.passes == 1:
            return ""
        others = "the second takes" if self.passes == 2 else f"the other {self.passes - 1} take"
        return (
            f" It runs {self.passes} passes over each batch, forward and backward: {others} "
            f"{self.further:.3g} s of it ({self.further / self.step:.0%}) and "
            f"{self.further_memory / 1e6:,.1f} MB of its memory."
        )

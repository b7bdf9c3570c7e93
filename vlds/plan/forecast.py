"""How much memory and time the steps of a plan take: a micro-batch as a function of its rows, the
machine that computes it, the seconds of a step, and the page of `vlds plan`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from textwrap import fill
from typing import Any, NamedTuple, TypeVar

import torch

from vlds.data.order.mixed_order import BatchCut
from vlds.models.build import build_shapes
from vlds.plan.needs import MASTER_BYTES, Needs, Plan
from vlds.plan.rehearsal import (
    NOTHING,
    Answering,
    Operation,
    Work,
    answering,
    micro_batch,
    rehearse,
    seconds_here,
    update_seconds,
)
from vlds.recipe.config import Recipe
from vlds.runtime.checks import guess
from vlds.runtime.devices import device_of, finish_work, uses_gpu
from vlds.runtime.terminal import duration_text
from vlds.schema import Batch
from vlds.training.deepspeed_config import cut_batches
from vlds.training.meta import batches_a_step

FEW = 16
"""Rows below which half of a micro-batch says little of a larger one."""
SIDE = (1024, 8192)
"""Side of the matrices that are multiplied to measure a machine, on a CPU and on a GPU."""
ELEMENTS = (1 << 20, 1 << 26)
"""Elements of the tensors that are added, about an activation of a model; on a CPU and on a GPU."""
ROUNDS = 7
BOUNDS = (0.001, 1_000_000)
"""The least and the most that an option of the command may be."""
LINK = 1e9
"""Bytes a second between ranks, if none are given."""
HEAD = ("MB", "frozen", "trainable", "optimizer", "in CPU", "step", "peak")


@dataclass(frozen=True)
class Forecast:
    """What a micro-batch takes, by its rows: a straight line through two rehearsals."""

    rows: int
    """Rows of the micro-batch that was rehearsed."""
    whole: Work
    """What that micro-batch takes."""
    row: Work
    """What one more row adds."""
    operations: Counter[Operation]
    """The operations of that micro-batch."""
    passes: int = 1
    """How often the model runs over a batch."""
    further: Work = NOTHING
    """What the passes after the first take of `whole`, and the losses that compare passes."""
    answers: Answering | str | None = None
    """What answers take in evaluation, or why it is not known; None if no task is evaluated."""

    def at(self, rows: int) -> Work:
        """What a micro-batch of so many rows takes."""
        # Not below 0, where the line leads for few rows.
        pairs = zip(self.whole, self.row, strict=True)
        return Work(*(max(0, whole + row * (rows - self.rows)) for whole, row in pairs))

    def most_rows(self, memory: int) -> int:
        """The largest micro-batch that fits into so many bytes; 0 if none does."""
        # A negative spare takes rows away; // rounds down, so the result fits.
        spare = memory - self.whole.peak
        return max(0, self.rows + spare // max(1, self.row.peak))


def forecast(recipe: Recipe, cut: BatchCut, *, on_gpu: bool = False) -> Forecast:
    """Rehearse the recipe's largest micro-batch, and one of another size, on this CPU or a GPU.
    Packed weights are rehearsed as whole ones, into which they are unpacked layer by layer.

    Errors: ValueError if the data of a task cannot be opened; RuntimeError if the model's code asks
    for numbers.
    """
    setup = replace(recipe.model_setup, kind=recipe.model.unpacked())
    model = build_shapes(setup, list(recipe.tasks), recipe.training.dtype)
    batch = micro_batch(recipe, model, cut)
    rows, parts = len(batch.ids), recipe.data.parts
    whole, operations = rehearse(model, batch, parts, on_gpu=on_gpu)
    # The second size: half of a large micro-batch; for a small one, more rows of a global batch,
    # which are padded to the longest of more.
    if rows >= max(FEW, 2 * parts):
        other: Batch | None = batch.select(torch.arange(rows // 2))
    else:
        larger = micro_batch(recipe, model, BatchCut())
        larger = larger.select(torch.arange(min(len(larger.ids), 2 * FEW)))
        other = larger if len(larger.ids) > rows else None
    # Without a second size the line goes through 0, which overrates a further row.
    if other is None:
        row = Work(*(number // rows for number in whole))
    else:
        others = len(other.ids)
        work = rehearse(model, other, parts, on_gpu=on_gpu).work
        row = Work(*((a - b) // (rows - others) for a, b in zip(whole, work, strict=True)))
    passes, further = model.num_passes, NOTHING
    if passes > 1:
        # The same model again, without the losses that compare passes.
        losses = model.batch_losses.items()
        model.batch_losses = {name: loss for name, loss in losses if loss.passes == 1}
        one = rehearse(model, batch, parts, on_gpu=on_gpu).work
        further = Work(*(max(0, a - b) for a, b in zip(whole, one, strict=True)))
    return Forecast(rows, whole, row, operations, passes, further)


def forecast_or_reason(recipe: Recipe, world_size: int, *, on_gpu: bool = False) -> Forecast | str:
    """A forecast, or why there is none."""
    return or_reason(lambda: forecast(recipe, cut_batches(recipe, world_size), on_gpu=on_gpu))


Found = TypeVar("Found")


def or_reason(find: Callable[[], Found]) -> Found | str:
    """What is found, or why nothing is: the recipe's data or tokenizer cannot be read here, or the
    model cannot be rehearsed."""
    try:
        return find()
    except ValueError as error:
        return str(error)
    except RuntimeError as error:
        return f"this model's code cannot run without numbers ({str(error).splitlines()[0]})"


def forecasts_of(
    recipe: Recipe, plans: Iterable[Plan], *, on_gpu: bool = False
) -> Iterator[tuple[Plan, Forecast | str]]:
    """Each plan with the forecast of its micro-batch, or why there is none; plans whose
    micro-batches are of one size share it."""
    known: dict[int, Forecast | str] = {}
    answers: Answering | str | None = None
    for plan in plans:
        if (rows := plan.micro_batch) not in known:
            found = forecast_or_reason(recipe, plan.world_size, on_gpu=on_gpu)
            if not isinstance(found, str):
                # Evaluation has batches of its own, the same on any number of ranks.
                if not known:
                    answers = or_reason(lambda: answering(recipe, on_gpu=on_gpu))
                found = replace(found, answers=answers)
            known[rows] = found
        yield plan, known[rows]


class Gpu(NamedTuple):
    """What a card has and can do, from its maker's data sheet."""

    memory: float
    """GB."""
    half: float
    """10^12 operations a second of products in bf16."""
    single: float
    """The same in fp32, which vlds computes without tensor cores' TF32."""
    bandwidth: float
    """GB a second of its memory."""
    link: float
    """GB a second to another card."""


GPUS = {
    "a10-24g": Gpu(24, 125, 31.2, 600, 32),
    "a100-40g": Gpu(40, 312, 19.5, 1555, 300),
    "a100-80g": Gpu(80, 312, 19.5, 2039, 300),
    "h100-80g": Gpu(80, 989, 67, 3350, 450),
    "h100-pcie-80g": Gpu(80, 756, 51, 2000, 64),
    "h200-141g": Gpu(141, 989, 67, 4800, 450),
    "l4-24g": Gpu(24, 121, 30.3, 300, 32),
    "l40s-48g": Gpu(48, 362, 91.6, 864, 32),
    "rtx-3090-24g": Gpu(24, 71, 35.6, 936, 32),
    "rtx-4090-24g": Gpu(24, 165, 82.6, 1008, 32),
    "rtx-a6000-48g": Gpu(48, 155, 38.7, 768, 32),
}
"""Name -> card. Rates are peaks, dense and not sparse, which a program comes near only in large
products; the link is one direction of NVLink, or of PCIe where a card has none. From NVIDIA's data
sheets; for the RTX 3090 and 4090, the white papers of Ampere (GA102) and Ada, with sums in fp32."""


def gpu_of(name: str) -> Gpu:
    """Errors: ValueError for an unknown name."""
    if name not in GPUS:
        raise ValueError(
            f"--gpu: '{name}' is unknown; {guess(name, GPUS)}choose from: {', '.join(GPUS)}"
        )
    return GPUS[name]


@dataclass(frozen=True)
class Machine:
    """What a rank's machine has and can do."""

    memory: int | None = None
    """Bytes; None if they are not known."""
    flops: float | None = None
    """Operations of products a second; None to measure them."""
    bandwidth: float | None = None
    """Bytes a second that other operations read and write; None to measure them."""
    link: float = LINK
    """Bytes a second between ranks."""

    @classmethod
    def given(
        cls,
        memory: str | None,
        tflops: str | None,
        bandwidth: str | None,
        link: str | None,
        gpu: str | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Machine:
        """From the words of a command: GB, thousands of GFLOP or GB a second, and the name of a
        card that has what the others do not say, for computing in a type.

        Errors: ValueError if one is not a number in `BOUNDS`, for an unknown card, or if one of the
        two rates is missing and cannot be measured because this machine has no GPU.
        """

        def number(option: str, text: str | None, unit: float) -> float | None:
            if text is None:
                return None
            try:
                value = float(text)
            except ValueError:
                value = 0.0
            least, most = BOUNDS
            if not least <= value <= most:  # false for NaN, too
                raise ValueError(f"{option} is {text!r}; give a number from {least} to {most:,}")
            return value * unit

        in_bytes = number("--memory", memory, 1e9)
        flops = number("--tflops", tflops, 1e12)
        rate = number("--bandwidth", bandwidth, 1e9)
        in_link = number("--link", link, 1e9)
        if gpu is not None:
            card = gpu_of(gpu)
            peak = card.half if dtype.itemsize == 2 else card.single
            in_bytes = card.memory * 1e9 if in_bytes is None else in_bytes
            flops = peak * 1e12 if flops is None else flops
            rate = card.bandwidth * 1e9 if rate is None else rate
            in_link = card.link * 1e9 if in_link is None else in_link
        if (flops is None) != (rate is None) and not uses_gpu():
            given, missing = ("--tflops", "--bandwidth")[:: 1 if rate is None else -1]
            raise ValueError(
                f"{given} without {missing}: this machine has no GPU whose rate could be measured "
                f"in its place; give {missing} too"
            )
        return cls(None if in_bytes is None else int(in_bytes), flops, rate, in_link or LINK)

    @property
    def is_here(self) -> bool:
        """True if it is this CPU, where a rehearsal's operations can run; rates are a GPU's."""
        return self.flops is None and self.bandwidth is None and not uses_gpu()

    def rates(self, dtype: torch.dtype) -> tuple[float, float]:
        """Operations of products, and bytes, a second: as given, or measured here, on the GPU or on
        the CPU with this process's threads."""
        on_gpu = uses_gpu()

        def median_seconds(work: Callable[[], object]) -> float:
            seconds = []
            for _ in range(ROUNDS + 1):  # the first one warms up
                began = time.perf_counter()
                work()
                finish_work()
                seconds.append(time.perf_counter() - began)
            return sorted(seconds[1:])[ROUNDS // 2]

        flops, bandwidth = self.flops, self.bandwidth
        with device_of():
            if flops is None:
                left, right = (torch.randn(SIDE[on_gpu], SIDE[on_gpu]).to(dtype) for _ in range(2))
                # n^3 multiplications and as many additions.
                flops = 2 * len(left) ** 3 / median_seconds(lambda: left @ right)
            if bandwidth is None:
                one, other = (torch.randn(ELEMENTS[on_gpu]).to(dtype) for _ in range(2))
                moved = 3 * len(one) * one.element_size()  # two are read, one is written
                bandwidth = moved / median_seconds(lambda: one + other)
        return flops, bandwidth


@dataclass(frozen=True)
class Duration:
    """Seconds of a step on one rank, with the first file of a plan."""

    products: float
    """Seconds of the products of matrices."""
    others: float
    """Seconds of the other operations."""
    update: float
    """Seconds of the optimizer's step."""
    between: float
    """Seconds of what goes between ranks."""
    sent: int
    """Bytes that go between ranks."""
    flops: float | None
    """Rates that were assumed; None if the operations ran on this machine."""
    bandwidth: float | None
    threads: int | None
    """CPU threads of a rank; None if timed for another machine."""
    passes: int
    """How often the model runs over a batch."""
    further: float
    """Seconds of products and other operations in the passes after the first."""
    further_memory: int
    """Bytes of a micro-batch that these passes take."""
    meta: float
    """Seconds of meta-learning before the first step, without its sums over ranks."""

    @classmethod
    def of(cls, plan: Plan, recipe: Recipe, forecast: Forecast, machine: Machine) -> Duration:
        """Measured here, if the machine is this one, else at the machine's rates."""
        needs = next(iter(plan.files.values()))
        # Each rank updates its part of the weights alone, of which it holds the masters.
        updated = needs.held.optimizer // MASTER_BYTES
        flops = bandwidth = threads = None
        if machine.is_here:
            # As on a rank, which has its share of the machine's threads, and one at least.
            all_threads = torch.get_num_threads()
            threads = max(1, all_threads // plan.world_size)
            torch.set_num_threads(threads)
            try:
                pair = seconds_here(forecast.operations)
            finally:
                torch.set_num_threads(all_threads)
            update = update_seconds(updated, recipe.training.dtype)
        else:
            flops, bandwidth = machine.rates(recipe.training.dtype)
            work = forecast.at(plan.micro_batch)
            # An operation takes 5 microseconds at least. An update reads and writes 40 bytes of a
            # weight: gradient, master, moments.
            pair = work.flops / flops, work.moved / bandwidth + work.calls * 5e-6
            update = updated * 40 / bandwidth
        # The largest micro-batch stands for all of a step, so the forecast errs on the slow side.
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
        """Seconds of a whole step."""
        return self.products + self.others + self.update + self.between

    def text(self, steps: int | None, machine: Machine) -> str:
        """The duration for people; `steps`: those of the run, None if they are not known."""
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
        text += f", with {', '.join(rates)}."
        if self.passes > 1:
            others = "the second takes" if self.passes == 2 else f"the other {self.passes - 1} take"
            text += (
                f" It runs {self.passes} passes over each batch, forward and backward: {others} "
                f"{self.further:.3g} s of it ({self.further / self.step:.0%}) and "
                f"{self.further_memory / 1e6:,.1f} MB of its memory."
            )
        if self.meta:
            text += f" Meta-learning before takes {about} {duration_text(self.meta)}."
        return fill(text, 80)


def page(plan: Plan, recipe: Recipe, forecast: Forecast | str, machine: Machine) -> Iterator[str]:
    """The plan for one number of ranks, at most 80 columns wide, in two pieces: the second one may
    take a while. `forecast`: that of micro-batches, or why there is none."""
    number, rows = plan.world_size, plan.micro_batch
    file, own = next(iter(plan.files.items()))
    ranks = "1 rank" if number == 1 else f"each of {number:,} ranks"
    lines = [f"What {ranks} holds, in {recipe.training.precision}", line(*HEAD)]
    for name, needs in plan.files.items():
        held = needs.held
        numbers = (held.frozen, held.trainable, held.optimizer, held.offloaded)
        cells = (*numbers, *step_and_peak(needs, rows, forecast))
        lines.append(line(PurePath(name).name, *map(megabytes, cells)))
    lines.append("The first file is the recipe's. `in CPU`: in the CPU's memory, beside a GPU.")
    if isinstance(forecast, str):
        note = f"`step` is not known: {forecast}"
    else:
        of_rows = f"micro-batches of {rows:,} row{'s' * (rows != 1)}"
        note = f"`step`: what a step of {of_rows} adds. `peak`: all without `in CPU`."
    lines.append(fill(note, 80, break_long_words=False))
    if number > 1:
        lines.append(fill(sent_text(plan), 80, break_long_words=False))
    for needs in plan.files.values():
        if needs.evaluated[0]:
            chosen = recipe.training.evaluate_whole
            lines.append(evaluation_text(needs, chosen, machine.memory))
            break
    if not isinstance(forecast, str) and forecast.answers is not None:
        lines.append(
            answers_text(forecast.answers, own, recipe.training.evaluate_whole, machine.memory)
        )
    loading, saving = (megabytes(size) for size in (own.loading, plan.saving))
    text = (
        f"Main memory with {PurePath(file).name}: up to {loading} MB of each rank to load (less if "
        f"the files are in {recipe.training.precision}), and {saving} MB of the first to save."
    )
    lines.append(fill(text, 80))
    lines += [fill(note, 80, break_long_words=False) for note in plan.notes]
    if isinstance(forecast, str):
        yield "\n".join(lines)
        return
    if machine.memory is not None:
        lines.append(fits(plan, forecast, machine.memory))
    yield "\n".join(lines)
    yield Duration.of(plan, recipe, forecast, machine).text(recipe.training.steps, machine)


def sent_text(plan: Plan) -> str:
    """What a rank sends in a step, by files; those that send as much are named together."""
    files: dict[str, list[str]] = {}
    for file, needs in plan.files.items():
        files.setdefault(f"{megabytes(needs.sent)} MB", []).append(PurePath(file).name)
    amounts = (f"{size} with {', '.join(names)}" for size, names in files.items())
    return f"Each rank sends in a step: {'; '.join(amounts)}."


def evaluation_text(needs: Needs, chosen: bool | None, memory: int | None) -> str:
    """What evaluation gathers under stage 3. `chosen`: training.evaluate_whole; `memory`: bytes of
    a rank."""
    whole, layers = (f"{size / 1e6:,.1f} MB" for size in needs.evaluated)
    text = f"Evaluation under stage 3 gathers {whole} of weights, or {layers} at a time"
    if chosen is not None:
        choice = f"training.evaluate_whole is {str(chosen).lower()}"
    elif memory is None:
        choice = "training.evaluate_whole"
    else:
        does = "all" if gathers_whole(needs, memory) else "layer by layer"
        choice = f"{does}, in {memory / 1e9:g} GB; training.evaluate_whole changes that"
    return fill(f"{text} ({choice}).", 80)


def gathers_whole(needs: Needs, memory: int) -> bool:
    """As `partitioned.fits_whole`: room for all weights, and as much again for caches and
    activations, beside what a rank holds between steps."""
    return held_between_steps(needs) + 2 * needs.evaluated[0] <= memory


def held_between_steps(needs: Needs) -> int:
    """Bytes, with the sums of gradients, which keep their memory."""
    return needs.held.together + needs.held.gradients - needs.held.offloaded


def answers_text(
    answers: Answering | str, needs: Needs, chosen: bool | None, memory: int | None
) -> str:
    """What the largest batch of an evaluation adds, and whether it fits; `chosen` and `memory` as
    in `evaluation_text`."""
    if isinstance(answers, str):
        return fill(f"What answers take in evaluation is not known: {answers}", 80)
    rows, beams = answers.rows, answers.decoding.num_beams
    of = f"of {answers.task}" + (f" with {beams} beams" if beams > 1 else "")
    added = f"{answers.peak / 1e6:,.1f} MB"
    text = f"Answers to {rows:,} example{'s' * (rows != 1)} {of} take up to {added} in evaluation."
    if memory is not None:
        whole, layers = needs.evaluated
        gathered = whole if chosen or (chosen is None and gathers_whole(needs, memory)) else layers
        spare = memory - held_between_steps(needs) - gathered
        if answers.peak > spare:
            text += (
                f" {memory / 1e9:g} GB leave {max(0, spare) / 1e6:,.1f} MB for them: set a smaller "
                "data.eval_batch_size."
            )
    return fill(text, 80)


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
    most, chosen = most_rows(plan, forecast, memory)
    rows = [f"{number:,} with {PurePath(file).name}" for file, number in most.items()]
    text = f"Most rows of a micro-batch in {memory / 1e9:g} GB: {', '.join(rows)}."
    wanted = f"{plan.micro_batch:,} row{'s' * (plan.micro_batch != 1)}"
    if chosen is None:
        choice = f"None holds {wanted}: set a smaller data.micro_batch_size, or take more ranks."
    else:
        choice = (
            f"Choose {PurePath(chosen).name}: of those that hold {wanted}, it partitions and "
            "offloads least."
        )
    return fill(f"{text} {choice}", 80)


def most_rows(plan: Plan, forecast: Forecast, memory: int) -> tuple[dict[str, int], str | None]:
    """File -> rows of the largest micro-batch; and of the files that hold the plan's micro-batch
    the one that costs least, None if there is none."""
    most = {}
    for file, needs in plan.files.items():
        # What lies in the CPU's memory takes none of a GPU's.
        taken = needs.held.together - needs.held.offloaded + needs.extra
        most[file] = forecast.most_rows(memory - taken)
    enough = {file: needs for file, needs in plan.files.items() if most[file] >= plan.micro_batch}
    # What moves to the CPU's memory and back each step costs more than what stage 3 gathers.
    costs = {file: (needs.held.offloaded > 0, needs.stage) for file, needs in enough.items()}
    return most, min(enough, key=lambda file: costs[file], default=None)


def tree(plan: Plan, recipe: Recipe, forecast: Forecast | str, machine: Machine) -> dict[str, Any]:
    """The plan for programs, in bytes and seconds: what the page says."""
    files = {}
    for file, needs in plan.files.items():
        step, peak = step_and_peak(needs, plan.micro_batch, forecast)
        whole, layers = needs.evaluated
        files[file] = {
            **asdict(needs.held), "step": step, "peak": peak, "sent": needs.sent,
            "evaluation": {"whole": whole, "layers": layers}, "loading": needs.loading,
        }  # fmt: skip
    found: dict[str, Any] = {"micro_batch": plan.micro_batch, "files": files}
    found |= {"saving": plan.saving, "notes": list(plan.notes)}
    if isinstance(forecast, str):
        return {**found, "unknown": forecast}
    if isinstance(answers := forecast.answers, str):
        found["answers"] = {"unknown": answers}
    elif answers is not None:
        found["answers"] = {"task": answers.task, "rows": answers.rows, "bytes": answers.peak}
    if machine.memory is not None:
        most, chosen = most_rows(plan, forecast, machine.memory)
        found |= {"most_rows": most, "choose": chosen}
    duration = Duration.of(plan, recipe, forecast, machine)
    return {**found, "seconds": {**asdict(duration), "step": duration.step}}


def megabytes(number: int | None) -> str:
    """Bytes in MB; a dash for what is not known."""
    if number is None:
        return "-"
    # From 100,000 MB on, a column has no place for a decimal.
    return f"{number / 1e6:,.1f}" if number < 100_000_000_000 else f"{number / 1e6:,.0f}"


def line(name: str, *cells: str) -> str:
    """A line of the table."""
    return f"{name[:19]:<20}" + "".join(f"{cell:>10}" for cell in cells)

"""Rank free, resume free, and fits: runs of real processes, compared with each other and with the
plan.

A sum over ranks has other terms than a sum on one rank, and so other roundings. All other things
are the same: weights, examples, dropout (on a CPU), and what a step does to them.
"""

from __future__ import annotations

import math
from statistics import median

import torch

from vlds.plan import Machine, forecasts_of, plan_recipe, tree
from vlds.prove.bench import Bench
from vlds.prove.finding import (
    OF_GRADIENTS,
    OF_LOSSES,
    ROUNDING,
    Comparison,
    Finding,
    compare_numbers,
)
from vlds.prove.started import (
    FEW,
    HALF,
    STEPS,
    Trained,
    Way,
    changes_of,
    killed,
    most_ranks,
    refused,
    resumed,
    trained,
)
from vlds.runtime.process import find

MOMENTS = ("exp_avg", "exp_avg_sq")
STREAMED = "data.reader: sequential, whose order of examples depends on ranks and starts"


def tolerance(bench: Bench, factor: float) -> float:
    """Of a number that went through the whole model in the recipe's precision."""
    rounding = ROUNDING[bench.recipe.training.dtype]
    # In half precision, each number of a row is rounded so, and sums over rows and ranks are fp32:
    # what adds up are as many random steps.
    return (factor if rounding <= ROUNDING[torch.float32] else math.sqrt(factor)) * rounding


def rank_free(bench: Bench) -> Finding:
    """Train on one rank, and on several at other stages."""
    if bench.prepared.streamed_sources:
        return Finding(left_out=STREAMED)
    own, most = bench.recipe.training.deepspeed, most_ranks(bench)
    alone = Way(1, own, FEW)
    if (reason := refused(bench, alone)) is not None:
        return Finding(left_out=reason)
    notes = changes_of(bench)
    tried = {
        Way(min(ranks, most), file, FEW)
        for ranks, file in (
            (2, "ds_configs/zero2.json"),
            (4, "ds_configs/zero3_small.json"),
            (2, "ds_configs/zero3_offload.json"),
        )
    }
    compared: list[Comparison] = []
    for way in sorted(tried, key=lambda way: (way.ranks, way.file)):
        if way.ranks == 1 and find(way.file).resolve() == find(own).resolve():
            continue
        if way.ranks > 1 and bench.ranks.device.type != "cpu" and bench.drops:
            notes.append(f"{way.text}: left out, for on a GPU each rank draws its own dropout")
        elif (reason := refused(bench, way)) is not None:
            notes.append(f"left out: {reason}")
        else:
            compared += same_start(bench, trained(bench, way), trained(bench, alone))
    if not compared:
        return Finding(left_out=notes[-1] if notes else "the recipe has a single way to be trained")
    return Finding(compared=tuple(compared), notes=tuple(notes))


def same_start(bench: Bench, ours: Trained, theirs: Trained) -> list[Comparison]:
    """Compare the first steps of two runs."""
    way = f"on {ours.way.text}, and {theirs.way.text}"
    of_losses, of_gradients = (tolerance(bench, factor) for factor in (OF_LOSSES, OF_GRADIENTS))
    # The rate of the first step is 0, so its state holds the weights from before; and its first
    # moment is a share of its gradient.
    return [
        compare_numbers(
            f"initial weights {way}", ours.tensors(1, "fp32"), theirs.tensors(1, "fp32"), 0
        ),
        compare_numbers(f"loss of each step {way}", ours.losses(), theirs.losses(), of_losses),
        compare_numbers(
            f"gradient of each trained weight in step 1 {way}", ours.tensors(1, MOMENTS[0]),
            theirs.tensors(1, MOMENTS[0]), of_gradients,
        ),
        compare_numbers(
            f"first moments after step {FEW} {way}", ours.tensors(FEW, MOMENTS[0]),
            theirs.tensors(FEW, MOMENTS[0]), of_gradients,
        ),
    ]  # fmt: skip


def whole_way(bench: Bench) -> Way:
    """The recipe's own stage, on two ranks where there are as many."""
    return Way(min(2, most_ranks(bench)), bench.recipe.training.deepspeed, STEPS)


def resume_free(bench: Bench) -> Finding:
    """Kill a run, and resume it in the same way and in another."""
    if bench.prepared.streamed_sources:
        return Finding(left_out=STREAMED)
    way = whole_way(bench)
    if (reason := refused(bench, way)) is not None:
        return Finding(left_out=reason)
    notes = changes_of(bench)
    whole, broken = trained(bench, way), killed(bench, way)
    # A GPU may sum in another order each time. Then two equal runs tell by how much.
    again = [
        compare_numbers(
            f"losses of {HALF} steps, twice on {way.text}", broken.losses(last=HALF),
            whole.losses(last=HALF), 0,
        ),
        *same_state(f"after {HALF} steps, twice on {way.text}", broken, whole, HALF, 0),
    ]  # fmt: skip
    exact = bench.ranks.device.type == "cpu" or all(each.holds for each in again)
    limit = 0.0 if exact else tolerance(bench, OF_GRADIENTS)
    if not exact:
        notes.append("this device computes other bits each time, so resuming cannot give the same")
    same = resumed(bench, broken, way, "resumed")
    what = f"killed and resumed on {way.text}"
    compared = [
        *(again if exact else []),
        compare_numbers(
            f"losses of steps 1 to {STEPS}, {what}", same.losses(), whole.losses(), limit
        ),
        *same_state(f"after step {STEPS}, {what}", same, whole, STEPS, limit),
    ]
    faults = repeated(same)
    shipped = [f"ds_configs/{name}.json" for name in ("zero3_small", "zero2")]
    others = [f for f in shipped if find(f).resolve() != find(way.file).resolve()]
    other = Way(1 if way.ranks > 1 else most_ranks(bench), others[0], STEPS)
    if refused(bench, other) is not None:
        other = Way(other.ranks, way.file, STEPS)
    if (reason := refused(bench, other)) is not None:
        notes.append(f"left out: {reason}")
    elif way.ranks != other.ranks and bench.ranks.device.type != "cpu" and bench.drops:
        notes.append(f"{other.text}: left out, for on a GPU each rank draws its own dropout")
    else:
        moved = resumed(bench, broken, other, "moved")
        what = f"resumed on {other.text}"
        faults += repeated(moved)
        compared.append(
            compare_numbers(
                f"losses of steps 1 to {STEPS}, {what}", moved.losses(), whole.losses(),
                tolerance(bench, OF_LOSSES),
            )
        )  # fmt: skip
    return Finding(compared=tuple(compared), faults=tuple(faults), notes=tuple(notes))


def same_state(
    what: str, ours: Trained, theirs: Trained, step: int, limit: float
) -> list[Comparison]:
    """Compare masters and moments after a step."""
    names = {"fp32": "weights", "exp_avg": "first moments", "exp_avg_sq": "second moments"}
    return [
        compare_numbers(f"{name} {what}", ours.tensors(step, key), theirs.tensors(step, key), limit)
        for key, name in names.items()
    ]


def repeated(run: Trained) -> list[str]:
    """What is wrong with the steps that a resumed run has logged."""
    steps = [line["step"] for line in run.lines if "gradient_norm" in line or "loss" in line]
    if steps == list(range(1, STEPS + 1)):
        return []
    return [f"resumed on {run.way.text}: its metrics have the steps {steps}, not 1 to {STEPS}"]


def fits(bench: Bench) -> Finding:
    """Compare a run with its plan."""
    way = whole_way(bench)
    if (reason := refused(bench, way)) is not None:
        return Finding(left_out=reason)
    run, machine = trained(bench, way), Machine()
    on_gpu = not machine.is_here
    plans = plan_recipe(run.recipe, [way.ranks], on_gpu=on_gpu)
    ((plan, forecast),) = forecasts_of(run.recipe, plans, on_gpu=on_gpu)
    planned = tree(plan, run.recipe, forecast, machine)
    of_file = planned["files"][way.file]
    sizes = next(line["bytes_per_rank"] for line in run.lines if "bytes_per_rank" in line)
    compared = tuple(
        # The plan counts what DeepSpeed pads and keeps whole.
        Comparison(
            f"bytes of a rank: {part}, measured {size:,}, and {of_file[part]:,} in the plan",
            abs(size - of_file[part]) / max(1, of_file[part]), 0,
        )
        for part, size in sizes.items()
    )  # fmt: skip
    steps = [line for line in run.lines if "seconds" in line]
    memory = max(line["most_memory"] for line in steps) / 1e6
    seconds = median(line["seconds"] for line in steps[1:])
    notes = changes_of(bench)
    if "unknown" in planned:
        notes.append(f"the plan knows no peak and no time: {planned['unknown']}")
        return Finding(compared=compared, notes=tuple(notes))
    others = "" if on_gpu else ", all libraries included"
    notes += [
        f"a rank used at most {memory:,.1f} MB{others}; the plan has {of_file['peak'] / 1e6:,.1f} "
        "MB of tensors at the peak",
        f"a step took {seconds:.3g} s, and {planned['seconds']['step']:.3g} s in the plan"
        + (", which is the least at this GPU's rates" if on_gpu else ""),
    ]
    return Finding(compared=compared, notes=tuple(notes))

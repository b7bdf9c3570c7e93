"""Rank free, resume free, and fits: runs of real processes, compared with each other and with the
plan.

A sum over ranks has other terms than a sum on one rank, and so other roundings. All else is the
same: weights, examples, dropout (on a CPU), and what a step does with them.
"""

from __future__ import annotations

import shutil
from statistics import median

from vlds.plan import Machine, forecasts_of, plan_recipe, tree
from vlds.prove.bench import Bench
from vlds.prove.finding import (
    EXACT,
    OF_GRADIENTS,
    OF_LOSSES,
    Comparison,
    Finding,
    Tolerance,
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
    refusal,
    resumed,
    trained,
)
from vlds.runtime.process import find

NORM = "gradient_norm"
OTHERS = {
    f"ds_configs/{name}.json": ranks
    for name, ranks in (("zero2", 2), ("zero3_offload", 2), ("zero3_small", 4))
}
"""DeepSpeed's settings that are tried besides the recipe's, and on how many ranks."""
PART = "later steps are not compared: the model makes so much of roundings that they part"


def whole_way(bench: Bench) -> Way:
    """The recipe's own stage, on two ranks where there are as many."""
    return Way(min(2, most_ranks(bench)), bench.recipe.training.deepspeed)


def rank_free(bench: Bench) -> Finding:
    """Train on one rank, and on several at other stages."""
    most, alone = most_ranks(bench), Way(1, bench.recipe.training.deepspeed, FEW)
    if (reason := refusal(bench, alone, alone)) is not None:
        return Finding(left_out=reason)
    compared: list[Comparison] = []
    left_out: list[str] = []
    for file, ranks in OTHERS.items():
        way = Way(min(ranks, most), file, FEW)
        if way.ranks == 1 and find(file).resolve() == find(alone.file).resolve():
            continue
        if (reason := refusal(bench, way, alone)) is not None:
            left_out.append(f"left out: {reason}")
            continue
        run = trained(bench, way)
        compared += same_start(bench, run, trained(bench, alone))
        shutil.rmtree(run.folder)  # states of large models fill disks
    if not compared:
        return Finding(left_out="; ".join(left_out) or "the recipe trains in one way alone")
    notes = [*changes_of(bench), *left_out, *[PART] * bench.makes_much_of_roundings]
    return Finding(compared=tuple(compared), notes=tuple(notes))


def same_start(bench: Bench, ours: Trained, theirs: Trained) -> list[Comparison]:
    """Compare the first steps of two runs."""

    def compare(what: str, step: int, key: str, limit: Tolerance) -> Comparison:
        mine, others = (
            {name: values for name, values in run.tensors(step).items() if name.endswith(key)}
            for run in (ours, theirs)
        )
        return compare_numbers(f"{what} on {ours.way}, and {theirs.way}", mine, others, limit)

    dtype = bench.recipe.training.dtype
    limit = bench.tolerance(OF_GRADIENTS, dtype)
    # The rate of the first step is 0: its state holds the weights from before, and a share of its
    # gradient as the first moment. Later weights say little: where a gradient is nearly zero,
    # AdamW makes a whole step of its rounding. The second step is the last with the same weights.
    last = 2 if bench.makes_much_of_roundings else FEW
    return [
        compare("initial weights", 1, "fp32", EXACT),
        compare_numbers(
            f"loss of each step on {ours.way}, and {theirs.way}",
            ours.losses(last), theirs.losses(last), bench.tolerance(OF_LOSSES, dtype),
        ),
        # Moments are of clipped gradients, which do not tell how large the gradient was.
        compare_numbers(
            f"norm of each step's gradient on {ours.way}, and {theirs.way}",
            ours.losses(last, NORM), theirs.losses(last, NORM), limit,
        ),
        compare("gradient of each trained weight in step 1", 1, "exp_avg", limit),
        compare(f"first moments after step {last}", last, "exp_avg", limit),
    ]  # fmt: skip


def resume_free(bench: Bench) -> Finding:
    """Kill a run, and resume it in the same way and in another."""
    way = whole_way(bench)
    if (reason := refusal(bench, way, way)) is not None:
        return Finding(left_out=reason)
    notes, dtype = changes_of(bench), bench.recipe.training.dtype
    whole, broken = trained(bench, way), killed(bench, way)
    compared = same_bits(f"twice on {way}", broken, whole, HALF, EXACT)
    same = resumed(bench, broken, way, "resumed")
    what = f"killed and resumed on {way}"
    if bench.ranks.device.type == "cpu" or all(each.holds for each in compared):
        compared += same_bits(what, same, whole, STEPS, EXACT)
    else:
        # Some kernels of GPUs sum in another order each time.
        notes.append("this device computes other bits each time, so a resumed run does so too")
        compared = same_bits(what, same, whole, STEPS, bench.tolerance(OF_LOSSES, dtype))[:1]
    ranks = 1 if way.ranks > 1 else most_ranks(bench)
    files = [f for f in reversed(OTHERS) if find(f).resolve() != find(way.file).resolve()]
    ways = [Way(ranks, file) for file in [*files, way.file]]
    reasons = [refusal(bench, other, way) for other in ways]
    if None in reasons:
        other = ways[reasons.index(None)]
        moved = resumed(bench, broken, other, "moved")
        what = f"loss of each step on {way}, and resumed on {other}"
        # Rounded gradients have moved the weights of these losses several times.
        limit = bench.tolerance(OF_GRADIENTS, dtype)
        last = HALF + 1 if bench.makes_much_of_roundings else STEPS
        compared.append(compare_numbers(what, moved.losses(last), whole.losses(last), limit))
        notes += [PART] * (last < STEPS)
    else:
        notes.append(f"on other ranks and another stage: left out: {reasons[0]}")
    return Finding(compared=tuple(compared), notes=tuple(notes))


def same_bits(
    what: str, ours: Trained, theirs: Trained, step: int, limit: Tolerance
) -> list[Comparison]:
    """Compare two runs up to a step. Losses of all steps tell too whether examples are repeated or
    lost."""
    return [
        compare_numbers(
            f"loss of each step, {what}", ours.losses(step), theirs.losses(step), limit
        ),
        compare_numbers(
            f"weights and moments after step {step}, {what}", ours.tensors(step),
            theirs.tensors(step), limit,
        ),
    ]  # fmt: skip


def fits(bench: Bench) -> Finding:
    """Compare a run with its plan."""
    way = whole_way(bench)
    if (reason := refusal(bench, way)) is not None:
        return Finding(left_out=reason)
    run, machine = trained(bench, way), Machine()
    on_gpu = not machine.is_here
    plans = plan_recipe(run.recipe, [way.ranks], on_gpu=on_gpu)
    ((plan, forecast),) = forecasts_of(run.recipe, plans, on_gpu=on_gpu)
    planned = tree(plan, run.recipe, forecast, machine)
    of_file = planned["files"][way.file]
    sizes = next(line["bytes_per_rank"] for line in run.lines if "bytes_per_rank" in line)
    compared = tuple(
        # To the byte: the plan counts what DeepSpeed pads and keeps whole.
        Comparison(
            f"{part} bytes of a rank, {size:,}, and {of_file[part]:,} in the plan",
            abs(size - of_file[part]) / max(1, of_file[part]), EXACT,
        )
        for part, size in sizes.items()
    )  # fmt: skip
    notes = changes_of(bench)
    if "unknown" in planned:
        notes.append(f"the plan knows neither peak nor time: {planned['unknown']}")
        return Finding(compared=compared, notes=tuple(notes))
    steps = [line for line in run.lines if "seconds" in line]
    memory = max(line["most_memory"] for line in steps) / 1e6
    seconds = median(line["seconds"] for line in steps[1:])
    # Neither is a promise: libraries take memory too, and other programs time.
    notes += [
        f"a rank used at most {memory:,.1f} MB{'' if on_gpu else ' with all libraries'}; the plan "
        f"has {of_file['peak'] / 1e6:,.1f} MB of tensors",
        f"a step took {seconds:.3g} s, and {'at least ' * on_gpu}{planned['seconds']['step']:.3g} "
        "s in the plan",
    ]
    return Finding(compared=compared, notes=tuple(notes))

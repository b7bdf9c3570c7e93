"""Combines runs of one model into one: averages, sums of differences (Ilharco et al. 2023,
https://arxiv.org/abs/2212.04089), and one task of a run, or another run's task put into it, whose
slices of weights are stacked over tasks.

Frozen weights must be the same in all runs: randomly initialised rows of the vocabulary differ
between runs that started independently, and their mean is meaningless.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vlds.artifact import LoadedRun, load_run
from vlds.config import Recipe
from vlds.convert.alike import (
    check_base,
    check_names,
    check_settings,
    essence,
    stacked,
    task_of_head,
)
from vlds.convert.output import first_names
from vlds.convert.verify import all_tasks
from vlds.models.build import build_model
from vlds.runtime.progress import follow

Combined = tuple[LoadedRun, Mapping[str, LoadedRun]]
"""A run, and of each of its tasks the run whose outputs it must give."""


def average(runs: Sequence[Path], weights: Sequence[float] | None) -> Combined:
    """The weighted mean of runs; `weights` need not sum to 1.

    Errors: ValueError if the runs are not of one model.
    """
    factors = factors_of(runs, weights)
    if sum(factors) == 0:
        raise ValueError(f"--weights: {factors} sum to 0, and a mean divides by that")
    loaded = open_alike(runs)
    return weighted(loaded, [factor / sum(factors) for factor in factors])


def arithmetic(base: Path, runs: Sequence[Path], weights: Sequence[float] | None) -> Combined:
    """base + sum of weight x (run - base). A negative weight takes away what a run learnt.

    Errors: ValueError if the runs are not of one model, or the base lacks what they trained.
    """
    factors = factors_of(runs, weights)
    loaded = [*open_alike(runs), load_run(base, torch.float32)]
    check_base((runs[0], loaded[0]), (base, loaded[-1]))
    return weighted(loaded, [*factors, 1.0 - sum(factors)])


def factors_of(runs: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    """A factor for each run; 1 where none are given.

    Errors: ValueError if there are more or fewer, or they are not finite.
    """
    if weights is not None and len(weights) != len(runs):
        raise ValueError(f"--weights: {len(weights)} for {len(runs)} runs; give each run one")
    factors = list(weights or [1.0] * len(runs))
    if not math.isfinite(sum(map(abs, factors))):
        raise ValueError(f"--weights: {factors} are not finite, nor is their sum; give other ones")
    return factors


def take(run: Path, task: str) -> Combined:
    """A run of one task alone: its slices of what is stacked over tasks, and what tasks share.

    Errors: ValueError if the run has no such task.
    """
    (loaded,) = open_alike([run])
    check_task(task, loaded.recipe, run)
    slices = stacked(loaded.recipe)
    single = rebuilt(loaded, replace(loaded.recipe, tasks={task: loaded.recipe.tasks[task]}))
    state, number = dict(loaded.model.unique_state()), list(loaded.recipe.tasks).index(task)
    with torch.no_grad():
        for name, tensor in single.model.unique_state():
            tensor.copy_(state[name][number, None] if name in slices else state[name])
    return single, {task: loaded}


def put(run: Path, giver: Path, task: str) -> Combined:
    """A run with another run's slices for a task, which it has already or gets.

    Errors: ValueError if there are no slices, or weights that tasks share differ between the runs.
    """
    receiver, other = open_alike([run, giver], same_tasks=False)
    check_task(task, other.recipe, giver)
    slices = stacked(receiver.recipe)
    if not slices:
        raise ValueError(
            "--run: the runs' tasks share all weights, so no task has a slice to put (sharing: "
            "multiple gives each task its own)"
        )
    tasks = {**receiver.recipe.tasks, task: other.recipe.tasks[task]}
    known = {**receiver.trained_on, **{t: k for t, k in other.trained_on.items() if t == task}}
    whole = rebuilt(replace(receiver, trained_on=known), replace(receiver.recipe, tasks=tasks))
    sources = {each: other if each == task else receiver for each in tasks}
    states = {id(source): dict(source.model.unique_state()) for source in (receiver, other)}
    shared = {name for name in states[id(other)] if task_of_head(name) is None} - slices
    check_equal(states.values(), shared, "shared by the tasks")
    with torch.no_grad():
        for name, tensor in whole.model.unique_state():
            if name not in slices:
                owner = sources.get(task_of_head(name) or "", receiver)
                tensor.copy_(states[id(owner)][name])
                continue
            for place, (each, source) in enumerate(sources.items()):
                row = list(source.recipe.tasks).index(each)
                tensor[place].copy_(states[id(source)][name][row])
    return whole, sources


def open_alike(runs: Sequence[Path], same_tasks: bool = True) -> list[LoadedRun]:
    """Open runs in float32, and check that their models compute the same from equal weights.

    Errors: ValueError that names what differs.
    """
    loaded = []
    for run in follow(runs, "opening runs", len(runs)):
        loaded.append(load_run(run, torch.float32))
    first = runs[0], loaded[0]
    for other in zip(runs[1:], loaded[1:], strict=True):
        check_settings(first, other, essence(loaded[0], same_tasks), essence(other[1], same_tasks))
        check_names(first, other, same_tasks)
    return loaded


def weighted(runs: Sequence[LoadedRun], factors: Sequence[float]) -> Combined:
    """The first run with sum of factor x weight for all that trains."""
    target = runs[0]
    states = [dict(run.model.unique_state()) for run in runs]
    moving = target.model.moving_names()
    check_equal(states, states[0].keys() - moving, "frozen")
    with torch.no_grad():
        for name, tensor in target.model.unique_state():
            if name in moving and tensor.is_floating_point():
                terms = [f * state[name].double() for f, state in zip(factors, states, strict=True)]
                tensor.copy_(torch.stack(terms).sum(0))
                check_float32(tensor, name, factors)
    return target, all_tasks(target)


def check_float32(tensor: Tensor, name: str, factors: Sequence[float]) -> None:
    """Errors: ValueError if a sum is not finite."""
    if not tensor.isfinite().all():
        raise ValueError(
            f"--weights: {name} is beyond float32 in the sum (factors {factors}); give smaller "
            "ones, and runs whose own weights are finite"
        )


def check_equal(states: Iterable[Mapping[str, Tensor]], names: Iterable[str], what: str) -> None:
    """Errors: ValueError if tensors that cannot be combined differ between runs."""
    first, *others = states
    odd = sorted(n for n in names if any(not torch.equal(first[n], o[n]) for o in others))
    if odd:
        raise ValueError(
            f"{first_names(odd, 3)}: {what}, but not the same in all runs; "
            "combine runs that started from one model (one backbone that `vlds convert hf` wrote, "
            "or one seed)"
        )


def check_task(task: str, recipe: Recipe, run: Path) -> None:
    """Errors: ValueError if a run has no such task."""
    if task not in recipe.tasks:
        raise ValueError(f"--task: {run} has no task {task}; its tasks: {', '.join(recipe.tasks)}")


def rebuilt(run: LoadedRun, recipe: Recipe) -> LoadedRun:
    """A run with a changed recipe, whose weights are still to be filled."""
    model = build_model(recipe.model_setup, list(recipe.tasks), torch.float32, run.processor)
    return replace(run, recipe=recipe, model=model.eval())

"""Combines runs of one model into one: averages, sums of differences (Ilharco et al. 2023,
https://arxiv.org/abs/2212.04089), sums after peft's functions have pruned them, and one task of a
run, or another run's task put into it, whose slices of weights are stacked over tasks.

Frozen weights must be the same in all runs: randomly initialised rows of the vocabulary differ
between runs that started independently, and their mean is meaningless.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlds.artifact import LoadedRun, TrainedOn, load_run
from vlds.convert.output import first_names
from vlds.convert.peft import merge_function
from vlds.convert.verify import all_tasks
from vlds.models.build import build_model
from vlds.models.methods.host import added_tensors, multipliers
from vlds.recipe.build import to_tree
from vlds.recipe.config import Recipe
from vlds.recipe.paths import renamed
from vlds.runtime.terminal import follow
from vlds.tasks.base import Task

Opened = tuple[Path, LoadedRun]
ONE_MODEL = "only runs of one model can be combined"
NOT_THE_MODEL = {
    # Whether weights come from a library: they themselves are compared.
    "pretrained",
    # How weights were drawn, trained and saved.
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "embedding_std",
    "initializer_factor", "initializer_range", "init_std", "learning_rate", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Settings that do not change what given weights compute; nor does dropout, by any name."""
Combined = tuple[LoadedRun, Mapping[str, LoadedRun]]
"""A run, and of each of its tasks the run whose outputs it must give."""


def essence(run: LoadedRun, with_tasks: bool) -> dict[str, Any]:
    """What combined runs must have in common, besides their tensors."""
    recipe = run.recipe
    essentials = {
        **method_settings(recipe, recipe.methods),
        **chosen_settings("model", without_files(recipe)["model"]),
    }
    if with_tasks:
        heads = {name: to_tree(task.head) for name, task in recipe.tasks.items() if task.head}
        essentials |= {"tasks": list(recipe.tasks), "heads": heads}
    for name, part in run.model.parts.items():
        modules = run.model.get_submodule(part.path).modules()
        configs = (getattr(each, "config", None) for each in modules)
        # Parents come first, so the first is the configuration of the whole part.
        hf_config = next((config for config in configs if hasattr(config, "to_dict")), None)
        settings = {} if hf_config is None else shaping(hf_config.to_dict())
        essentials |= {f"{name}.{key}": value for key, value in settings.items()}
    return essentials


def method_settings(recipe: Recipe, names: Iterable[str]) -> dict[str, Any]:
    """The settings of methods, as `chosen_settings` has them."""
    trees = without_files(recipe)["methods"]
    settings = (chosen_settings(f"methods.{name}", trees[name]) for name in names)
    return {key: value for each in settings for key, value in each.items()}


def without_files(recipe: Recipe) -> dict[str, Any]:
    """The tree of a recipe in which no field names a file: what weights and tokenizers hold is
    compared, not where they lie."""
    tree: dict[str, Any] = renamed(to_tree(recipe), Recipe, lambda *file: None)
    return tree


def chosen_settings(key: str, tree: Any) -> dict[str, Any]:
    """Dotted key -> the classes that a recipe chooses inside a value, and their settings."""
    # methods.lora, a LoRA of rank 4 -> {"methods.lora": "LoRA", "methods.lora.rank": 4}
    if not isinstance(tree, Mapping):
        return {key: tree}
    chosen = {key: tree["class_path"]} if "class_path" in tree else {}
    for name, value in shaping(tree.get("init_args", tree)).items():
        chosen |= chosen_settings(f"{key}.{name}", value)
    return chosen


def shaping(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what given weights compute."""
    return {
        key: value
        for key, value in settings.items()
        if key not in NOT_THE_MODEL and "drop" not in key and not key.startswith("train_")
    }


def check_settings(
    first: Opened,
    other: Opened,
    expected: Mapping[str, Any],
    given: Mapping[str, Any],
    option: str = "",
) -> None:
    """Errors: ValueError that names what differs, settings or the vocabulary."""
    for key in [*expected, *(given.keys() - expected.keys())]:
        if expected.get(key) != given.get(key):
            raise ValueError(
                f"{option}{key}: {expected.get(key)} in {first[0]}, {given.get(key)} in "
                f"{other[0]}; {ONE_MODEL}"
            )
    if first[1].model.tokenizer.get_vocab() != other[1].model.tokenizer.get_vocab():
        raise ValueError(f"{option}tokenizer: {other[0]} has another vocabulary than {first[0]}")


def check_names(first: Opened, other: Opened, same_tasks: bool) -> None:
    """Errors: ValueError if a tensor has no counterpart, or (of the same tasks) none of its shape,
    whatever the settings say; runs of other tasks may have other heads."""
    shapes = [{n: tuple(t.shape) for n, t in r.model.unique_state()} for _, r in (first, other)]
    if first[1].recipe.tasks.keys() != other[1].recipe.tasks.keys():
        shapes = [
            {name: shape for name, shape in each.items() if task_of_head(name) is None}
            for each in shapes
        ]
    if odd := sorted(shapes[0].keys() ^ shapes[1].keys()):
        owner = first[0] if odd[0] in shapes[0] else other[0]
        raise ValueError(f"{odd[0]}: only {owner} has it; {ONE_MODEL}")
    for name in sorted(shapes[0]) if same_tasks else ():
        if (one := shapes[0][name]) != (another := shapes[1][name]):
            raise ValueError(f"{name}: {one} in {first[0]}, {another} in {other[0]}; {ONE_MODEL}")


def task_of_head(tensor: str) -> str | None:
    """The task whose head a tensor belongs to, by its name; None if it belongs to no head."""
    part, _, rest = tensor.partition(".")
    return rest.partition(".")[0] if part == "heads" else None


def check_base(first: Opened, base: Opened) -> None:
    """Errors: ValueError if the base of a sum is not what the run began with."""
    expected, given = (
        {key: value for key, value in essence(run, False).items() if key.split(".")[0] != "methods"}
        for _, run in (first, base)
    )
    check_settings(first, base, expected, given, "--base: ")
    shapes = [{n: tuple(t.shape) for n, t in run.model.unique_state()} for _, run in (first, base)]
    for name in [*shapes[0], *sorted(shapes[1].keys() - shapes[0].keys())]:
        if shapes[0].get(name) != shapes[1].get(name):
            raise ValueError(
                f"--base: {base[0]} has {'no' if name in shapes[0] else 'a'} {name} "
                f"{shapes[0].get(name) or shapes[1][name]}; the base is what the runs began with, "
                "the weights of their methods included"
            )
    # `convert hf` drops methods that are part of the weights by then.
    common = sorted(first[1].recipe.methods.keys() & base[1].recipe.methods.keys())
    expected, given = (method_settings(run.recipe, common) for _, run in (first, base))
    check_settings(first, base, expected, given, "--base: ")
    # A slice of a stack belongs to the task with its number: order matters.
    tasks = list(first[1].recipe.tasks), list(base[1].recipe.tasks)
    if tasks[0] != tasks[1] and stacked(first[1].recipe):
        raise ValueError(
            f"--base: the tasks of {base[0]} are {tasks[1]}, those of {first[0]} {tasks[0]}, and "
            "tasks have their own weights; the base is what the runs began with"
        )


def stacked(recipe: Recipe) -> set[str]:
    """Tensors with a slice for each task: those whose shape follows the number of tasks."""
    shapes = []
    # Two models without memory, for one task and for two.
    for tasks in (["one"], ["one", "two"]):
        with torch.device("meta"):
            model = build_model(recipe.model_setup, tasks, torch.float32, None)
        shapes.append({name: tensor.shape for name, tensor in model.unique_state()})
    return {name for name, shape in shapes[0].items() if shapes[1][name] != shape}


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
    # base + sum f (run - base) = sum f run + (1 - sum f) base
    return weighted(loaded, [*factors, 1.0 - sum(factors)])


def pruned(
    runs: Sequence[Path], how: str, weights: Sequence[float] | None, density: float
) -> Combined:
    """The sum of what methods have added to runs, after peft's function `how` has taken small or
    random entries away; the mean of whatever else trains, and of what multiplies (IA3's factors).

    Errors: ValueError if peft is missing, methods add nothing, or nothing or too much is left.
    """
    function = merge_function(how)
    factors = factors_of(runs, weights)
    if sum(factors) == 0:
        raise ValueError(f"--weights: {factors} sum to 0, and a mean divides by that")
    loaded = open_alike(runs)
    states = [dict(run.model.unique_state()) for run in loaded]
    model, methods = loaded[0].model, loaded[0].recipe.methods
    names = {tensor.name for name in methods for tensor in added_tensors(model, name)}
    names &= model.moving_names()  # others are the same in all runs: what SimAdapter fuses
    names -= multipliers(model)
    if not names:
        kinds = ", ".join(type(method).__name__ for method in methods.values()) or "none"
        raise ValueError(
            f"--how {how}: {runs[0]}: its methods ({kinds}) add no weights to the model, or such "
            "as multiply alone; take average or arithmetic"
        )
    # Before `weighted`, which writes into the first run's tensors, of which `states` holds views.
    merged = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # DARE draws what it takes away
        for name in sorted(names):
            tensors = [state[name].detach() for state in states]
            merged[name] = function(tensors, torch.tensor(factors), density)
            check_float32(merged[name], name, factors)
    if not any(tensor.any() for tensor in merged.values()):
        raise ValueError(f"--density: got {density}, which leaves no weight; give a larger share")
    weighted(loaded, [factor / sum(factors) for factor in factors])
    with torch.no_grad():
        for name, tensor in merged.items():
            states[0][name].copy_(tensor)
    return loaded[0], all_tasks(loaded[0])


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
    (loaded,) = opened([run])
    check_task(task, loaded.recipe, run)
    slices = stacked(loaded.recipe)
    single = rebuilt(loaded, replace(loaded.recipe, tasks={task: loaded.recipe.tasks[task]}))
    state, number = dict(loaded.model.unique_state()), list(loaded.recipe.tasks).index(task)
    # [number, None] keeps the axis of tasks: (tasks, r, d) -> (1, r, d).
    with torch.no_grad():
        for name, tensor in single.model.unique_state():
            tensor.copy_(state[name][number, None] if name in slices else state[name])
    return single, {task: loaded}


def put(run: Path, giver: Path, task: str) -> Combined:
    """A run with another run's slices for a task, which it has already or gets.

    Errors: ValueError if there are no slices, or weights that tasks share differ between the runs.
    """
    receiver, other = opened([run, giver])
    check_alike([run, giver], [receiver, other], same_tasks=False)
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
    # Slices were trained beside the shared weights, and would compute otherwise beside others.
    shared = {name for name in states[id(other)] if task_of_head(name) is None} - slices
    check_equal(states.values(), shared, "shared by the tasks")
    with torch.no_grad():
        for name, tensor in whole.model.unique_state():
            if name not in slices:
                owner = sources.get(task_of_head(name) or "", receiver)
                tensor.copy_(states[id(owner)][name])  # a head is one task's, all else is shared
                continue
            # By name, because a task may have other places in the two runs and in the whole.
            for place, (each, source) in enumerate(sources.items()):
                row = list(source.recipe.tasks).index(each)
                tensor[place].copy_(states[id(source)][name][row])
    return whole, sources


def open_alike(runs: Sequence[Path]) -> list[LoadedRun]:
    """Open runs whose weights can be summed; the first one gets the tasks of all. Runs may have
    other tasks than each other if no weight is a single task's.

    Errors: ValueError that names what differs.
    """
    loaded = opened(runs)
    tasks: dict[str, Task] = {}
    known: dict[str, TrainedOn] = {}
    for run in loaded:
        # Of a task that several runs have, the first one's settings stay.
        tasks |= {name: task for name, task in run.recipe.tasks.items() if name not in tasks}
        known = dict(run.trained_on) | known
    unlike = any(run.recipe.tasks.keys() != tasks.keys() for run in loaded)
    has_own = any(task.head is not None for task in tasks.values())
    if unlike and (has_own or any(stacked(run.recipe) for run in loaded)):
        names = ", ".join(
            f"{path} has {list(run.recipe.tasks)}" for path, run in zip(runs, loaded, strict=True)
        )
        raise ValueError(
            f"--run: {names}, and tasks have weights of their own; take runs of the same tasks, or "
            "`--how put`"
        )
    check_alike(runs, loaded, same_tasks=not unlike)
    if unlike:
        whole = rebuilt(
            replace(loaded[0], trained_on=known), replace(loaded[0].recipe, tasks=tasks)
        )
        state = dict(loaded[0].model.unique_state())
        with torch.no_grad():
            for name, tensor in whole.model.unique_state():
                tensor.copy_(state[name])
        loaded[0] = whole
    return loaded


def opened(runs: Sequence[Path]) -> list[LoadedRun]:
    """Open runs in float32."""
    return [load_run(run, torch.float32) for run in follow(runs, "opening runs", len(runs))]


def check_alike(runs: Sequence[Path], loaded: Sequence[LoadedRun], same_tasks: bool) -> None:
    """Errors: ValueError that names what differs, unless the runs' models compute the same from
    equal weights."""
    first = runs[0], loaded[0]
    for other in zip(runs[1:], loaded[1:], strict=True):
        check_settings(first, other, essence(loaded[0], same_tasks), essence(other[1], same_tasks))
        check_names(first, other, same_tasks)


def weighted(runs: Sequence[LoadedRun], factors: Sequence[float]) -> Combined:
    """The first run with sum of factor x weight for all that trains."""
    target = runs[0]
    states = [dict(run.model.unique_state()) for run in runs]
    moving = target.model.moving_names()
    check_equal(states, states[0].keys() - moving, "frozen")
    # Into the tensors of the first run, of which `states` holds views: read before written.
    with torch.no_grad():
        for name, tensor in target.model.unique_state():
            if name in moving and tensor.is_floating_point():
                # In float64: only the sum is rounded, not each of its terms.
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

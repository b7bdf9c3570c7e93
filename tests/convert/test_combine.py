"""Runs made into one: means and sums of differences as the formula says, slices of tasks out of
stacked weights and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys.recipes import with_model
from tests.toys.trained_runs import (
    CASES,
    assert_same,
    convert,
    recipe_with,
    save_run,
    state_of,
    trained_run,
    write_run,
)
from vlds.artifact import load_run
from vlds.convert.combine import stacked
from vlds.models.methods import Full
from vlds.recipe.config import Recipe


def runs_of(recipe: Recipe, folder: Path, num: int) -> list[Path]:
    """Runs that began with one model and trained to different weights."""
    recipes = [replace(recipe, output=str(folder / f"run{n}")) for n in range(num)]
    return [write_run(each, seed=n) for n, each in enumerate(recipes)]


def assert_formula(out: Path, runs: list[Path], formula: Callable[[list[Tensor]], Tensor]) -> None:
    """What trains follows the formula, to the last place of float32; the rest is as it was."""
    states = [state_of(run) for run in runs]
    expected = dict(states[0])
    moving = set(load_run(runs[0]).model.trained_by)
    for name in moving:
        expected[name] = formula([state[name].double() for state in states]).float()
    merged = state_of(out)
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(merged[name], tensor, rtol=1.2e-7, atol=1e-9), name
    assert any(not torch.equal(merged[name], states[0][name]) for name in moving)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [("Bart", "Full"), ("T5", "Adapter shared up, norms")],
)
def test_average(family: str, name: str, world: Path, tmp_path: Path) -> None:
    runs = runs_of(recipe_with(family, name, world, tmp_path), tmp_path, 3)
    words = ["merge", "--how", "average", "--run", *runs]
    convert(*words, "--out", tmp_path / "mean", "--verify", "--tolerance", "0")
    assert_formula(tmp_path / "mean", runs, lambda tensors: sum(tensors) / 3)
    convert(*words, "--weights", 1, 2, 1, "--out", tmp_path / "weighted")
    assert_formula(tmp_path / "weighted", runs, lambda ts: (ts[0] + 2 * ts[1] + ts[2]) / 4)


@pytest.mark.parametrize("how", ["average", "transport"])
def test_runs_of_unlike_tasks(how: str, world: Path, tmp_path: Path) -> None:
    """One adapter of several, each of which has learnt a task, as MerA is used."""
    both = recipe_with("T5", "LoRA", world, tmp_path)
    runs = [
        write_run(replace(both, tasks={name: task}, output=str(tmp_path / name)), seed=n)
        for n, (name, task) in enumerate(both.tasks.items())
    ]
    out = tmp_path / "out"
    convert("merge", "--how", how, "--run", *runs, "--out", out, "--verify")
    assert list(load_run(out).recipe.tasks) == list(both.tasks) == ["vqa", "caption"]
    if how == "average":
        assert_formula(out, runs, lambda tensors: sum(tensors) / 2)


@pytest.mark.slow
def test_arithmetic(world: Path, tmp_path: Path) -> None:
    base, *runs = runs_of(recipe_with("T5", "LoRA", world, tmp_path), tmp_path, 3)
    words = ["merge", "--how", "arithmetic", "--base", base, "--run", *runs]
    convert(*words, "--weights", "5e-1", "-2e0", "--out", tmp_path / "out", "--verify")
    assert_formula(
        tmp_path / "out",
        [runs[0], runs[1], base],
        lambda ts: ts[2] + 0.5 * (ts[0] - ts[2]) - 2 * (ts[1] - ts[2]),
    )
    convert(*words, "--weights", 1, 0, "--out", tmp_path / "first")
    first = state_of(runs[0])
    for name, tensor in state_of(tmp_path / "first").items():
        assert torch.allclose(tensor, first[name], rtol=0, atol=1e-7), name


@pytest.mark.slow
def test_a_converted_folder_is_the_base_of_full_fine_tuning(world: Path, tmp_path: Path) -> None:
    start = write_run(recipe_with("T5", "Full", world, tmp_path))
    convert("hf", "--run", start, "--out", tmp_path / "base")
    recipe = with_model(
        replace(load_run(tmp_path / "base").recipe, methods={"full": Full()}),
        train_visual_embedding=False,
    )
    runs = runs_of(recipe, tmp_path, 2)
    words = ["--base", tmp_path / "base", "--run", *runs, "--out", tmp_path / "out"]
    convert("merge", "--how", "arithmetic", *words)
    assert_formula(tmp_path / "out", [*runs, tmp_path / "base"], lambda ts: ts[0] + ts[1] - ts[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("T5", "Adapter shared up, norms"),
        ("Bart", "LoRA half"),
        ("T5", "Hyperformer"),
        ("Bart", "Compacter per task"),
    ],
)
def test_a_task_moves_to_another_run(family: str, name: str, world: Path, tmp_path: Path) -> None:
    """Its outputs go with it; put into a run that has other slices, these become its own."""
    recipe = recipe_with(family, name, world, tmp_path)
    run = write_run(recipe, seed=1)
    words = ["merge", "--how", "take", "--run", run, "--task", "caption"]
    convert(*words, "--out", tmp_path / "one", "--verify", "--tolerance", "1e-6")
    # The slices of another run with the same shared weights.
    other = trained_run(replace(recipe, output=str(tmp_path / "other")), seed=1)
    one = state_of(tmp_path / "one")
    stacked = [t for n, t in other.model.unique_state() if one[n].shape != t.shape]
    with torch.no_grad():
        for tensor in stacked:
            tensor.add_(1)
    save_run(other)
    words = ["merge", "--how", "put", "--run", tmp_path / "other", tmp_path / "one"]
    convert(*words, "--task", "caption", "--out", tmp_path / "mixed", "--verify")
    mixed, theirs, ours = (state_of(tmp_path / f) for f in ("mixed", "other", "run"))
    for n, tensor in mixed.items():
        if tensor.shape == one[n].shape:
            assert torch.equal(tensor, ours[n]), n
        else:
            assert torch.equal(tensor[0], theirs[n][0]), n
            assert torch.equal(tensor[1], ours[n][1]), n
    assert stacked


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_method(family: str, name: str, world: Path, tmp_path: Path) -> None:
    """A mean, a sum of differences, and where tasks have weights of their own, a task out and
    in."""
    recipe = recipe_with(family, name, world, tmp_path)
    runs = runs_of(recipe, tmp_path, 2)
    words = ["merge", "--how", "average", "--run", *runs, "--out", tmp_path / "mean", "--verify"]
    convert(*words)
    assert_formula(tmp_path / "mean", runs, lambda tensors: sum(tensors) / 2)
    words = ["merge", "--how", "arithmetic", "--base", runs[0], "--run", runs[1], "--verify"]
    convert(*words, "--weights", -0.5, "--out", tmp_path / "sum")
    assert_formula(
        tmp_path / "sum", runs, lambda tensors: tensors[0] - 0.5 * (tensors[1] - tensors[0])
    )
    words = ["--run", runs[0], "--task", "caption", "--out", tmp_path / "one", "--verify"]
    convert("merge", "--how", "take", *words)
    words = ["--run", runs[0], tmp_path / "one", "--task", "caption", "--out", tmp_path / "back"]
    if not stacked(recipe):
        with pytest.raises(ValueError, match="share all weights"):
            convert("merge", "--how", "put", *words)
        return
    convert("merge", "--how", "put", *words, "--verify")
    assert_same(state_of(tmp_path / "back"), state_of(runs[0]))

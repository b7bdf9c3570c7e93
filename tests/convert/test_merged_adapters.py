"""Runs merged by transport of neurons, and by peft's prunings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import merge_utils
from torch import Tensor

from tests.toys.trained_runs import (
    assert_same,
    built_run,
    convert,
    recipe_with,
    save_run,
    state_of,
    trained_run,
    write_run,
)
from vlds.artifact import load_run
from vlds.convert.hf import fold_methods
from vlds.convert.transport import (
    COSTS,
    Neurons,
    inputs_of,
    places_of,
    read_neurons,
    slices,
    transport_plan,
    write_neurons,
)
from vlds.models.methods import IA3, Adapter, Method, Peft, SimAdapter

pytest.importorskip("ot", reason="needs the extra `transport`")


def merge(how: str, runs: Sequence[Path], out: Path, *words: Any) -> dict[str, Tensor]:
    """The state of runs merged in a way."""
    convert("merge", "--how", how, "--run", *runs, "--out", out, *words)
    return state_of(out)


def permuted(run: Path, folder: Path) -> Path:
    """A run that computes the same, with the neurons of each adapter in another order."""
    loaded, draw = load_run(run, torch.float32), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, module in places_of(loaded):
            for parts in slices(module):
                neurons = read_neurons(parts)
                order = torch.randperm(len(neurons.down), generator=draw)
                down, bias, up = neurons.down[order], neurons.bias[order], neurons.up[:, order]
                write_neurons(parts, Neurons(down, bias, up))
    return save_run(replace(loaded, recipe=replace(loaded.recipe, output=str(folder))))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["Adapter", "Adapter per task", "LoRA bare"])
@pytest.mark.parametrize("cost", COSTS)
def test_a_permuted_copy_merges_back_exactly(
    name: str, cost: str, world: Path, tmp_path: Path
) -> None:
    run = write_run(recipe_with("T5", name, world, tmp_path), seed=1)
    other = permuted(run, tmp_path / "permuted")
    own = state_of(run)
    assert any(not torch.equal(own[key], tensor) for key, tensor in state_of(other).items())
    found = merge("transport", [run, other], tmp_path / "merged", "--cost", cost, "--verify")
    assert_same(found, own)


def test_adapters_beside_layers_are_compared_by_what_these_read(
    world: Path, tmp_path: Path
) -> None:
    run = trained_run(recipe_with("T5", "Adapter beside", world, tmp_path))
    read: dict[str, list[Tensor]] = {}
    for path, module in run.model.named_modules():
        if path.endswith("DenseReluDense.wi"):
            place = path.removesuffix("wi") + "wo.extensions.method"
            states = read.setdefault(place, [])
            module.register_forward_pre_hook(lambda _, args, s=states: s.append(args[0]))
    found = inputs_of(run, ())
    assert found.keys() == read.keys()
    for place, tensors in read.items():
        assert torch.equal(found[place], torch.cat([t.flatten(0, -2) for t in tensors]).double())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_prunings_are_pefts(how: str, world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "LoRA bare", world, tmp_path)
    runs = [write_run(replace(recipe, output=str(tmp_path / f"run{n}")), seed=n) for n in range(2)]
    found = merge(how, runs, tmp_path / "out", "--weights", 1, 0.5, "--density", 0.4)
    states, compared = [state_of(run) for run in runs], 0
    torch.manual_seed(0)
    for name in sorted(states[0]):
        tensors = [state[name] for state in states]
        if "extensions" not in name:
            continue
        expected = getattr(merge_utils, how)(tensors, torch.tensor([1, 0.5]), 0.4)
        assert torch.equal(found[name], expected), name
        compared += 1
    assert compared


@torch.no_grad()
def test_large_biases_take_no_digits_of_bf16(world: Path, tmp_path: Path) -> None:
    """A column is what a layer gives for a unit vector less its bias."""
    recipe = recipe_with("T5", "Compacter", world, tmp_path / "run")
    run = built_run(replace(recipe, training=replace(recipe.training, precision="bf16")))
    for name, parameter in run.model.named_parameters():
        if name.endswith("_bias") and ".method." in name:
            parameter.normal_(std=3.0)
        elif name.endswith("_rule"):
            parameter.normal_(std=0.1)  # it begins so small that nothing is left to compare
    folder = save_run(run)
    convert("merge", "--run", folder, "--out", tmp_path / "merged")
    exact = dict(fold_methods(load_run(folder, torch.float32)).model.unique_state())
    weights = [name for name in exact if ".method." in name and name.endswith("_weight")]
    assert weights
    found = dict(load_run(tmp_path / "merged", torch.float32).model.unique_state())
    for name in weights:
        assert (found[name] - exact[name]).norm() < 2**-7 * exact[name].norm(), name


@pytest.mark.parametrize("how", ["ties", "dare_linear"])
def test_what_multiplies_is_averaged(how: str, world: Path, tmp_path: Path) -> None:
    """As zeros, factors and norms would take away what passes."""
    recipe = recipe_with("T5", "Adapter", world, tmp_path)
    methods: dict[str, Method] = {
        "ia3": IA3(), "adapter": Adapter(reduction=4, layer_norm_before=True),
        "dora": Peft(type="LORA", roles=["attn_q"], settings={"r": 2, "use_dora": True}),
    }  # fmt: skip
    recipe = replace(recipe, methods=methods)
    runs = [write_run(replace(recipe, output=str(tmp_path / f"run{n}")), seed=n) for n in range(2)]
    found = merge(how, runs, tmp_path / "out", "--density", 0.5)
    first, other = (state_of(run) for run in runs)
    ends = ("ia3.factors", "adapter.pre_norm.weight", "lora_magnitude_vector.default.weight")
    for end in ends:
        names = [name for name in first if name.endswith(end)]
        assert names, end
        assert all(torch.allclose(found[n], (first[n] + other[n]) / 2) for n in names), end
    assert any(not found[name].all() for name in found if name.endswith("down_weight"))


@pytest.mark.slow
def test_what_methods_keep_frozen_stays(world: Path, tmp_path: Path) -> None:
    """The adapters that SimAdapter fuses are the same in all runs, and no sum of them."""
    fused = SimAdapter(adapters={"a": Adapter(reduction=4), "b": Adapter(reduction=4)})
    recipe = replace(recipe_with("T5", "LoRA bare", world, tmp_path), methods={"fused": fused})
    runs = [write_run(replace(recipe, output=str(tmp_path / f"run{n}")), seed=n) for n in range(2)]
    found = merge("dare_linear", runs, tmp_path / "out", "--density", 1.0)
    first, other = (state_of(run) for run in runs)
    frozen = [name for name in first if ".candidates." in name]
    assert frozen
    for name in frozen:
        assert torch.equal(found[name], first[name]), name
    for name in (name for name in first if ".fusion." in name):
        assert torch.allclose(found[name], first[name] + other[name]), name


def test_a_plan_that_does_not_converge_is_an_error() -> None:
    cost = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)).double()
    assert (transport_plan(cost, 0.5).sum(0) - 1).abs().max() < 1e-9
    with pytest.raises(ValueError, match="--entropic: got 1e-06; the plan has not converged"):
        transport_plan(cost, 1e-6)

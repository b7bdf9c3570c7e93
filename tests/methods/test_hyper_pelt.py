"""Networks that make prefixes and adapters from task, layer, block and picture."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.models import TASKS, backbone, batch, build, shake
from tests.toys.recipes import with_model
from tests.toys.trained_runs import (
    built_run,
    convert,
    picture_batch,
    recipe_with,
    save_run,
    state_of,
    trained_run,
    write_run,
)
from vlds.artifact import load_run
from vlds.convert.hf import fold_methods
from vlds.convert.verify import logits
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, Hyperformer, PrefixTuning
from vlds.models.methods.hyper_pelt import HyperPELT, PELTNetworks
from vlds.models.vision import ConvNet
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.recipe.build import build as built
from vlds.recipe.config import Recipe
from vlds.schema import Decoding

FAMILIES = pytest.mark.parametrize("family", [T5, Bart])
SMALL: dict[str, Any] = {"reduction": 4, "task_dim": 6, "hidden_dim": 5, "projected_dim": 4}
PELT = HyperPELT(**SMALL, prefix_length=3)
PLAIN = HyperPELT(
    **SMALL, prefix_length=0, visual=False, parallel=False, attention=True, cross_attention=True,
    kind_embeddings=False,
)  # fmt: skip


def networks_of(model: JointModel) -> PELTNetworks:
    """The networks beside a model's backbone."""
    networks = model.backbone.extensions["method"]
    assert isinstance(networks, PELTNetworks)
    return networks


def made_of(networks: PELTNetworks) -> dict[tuple[Any, ...], torch.Tensor]:
    """What the first set's networks have made: its place, the task and what it is -> tensor."""
    made: dict[tuple[Any, ...], torch.Tensor] = {}
    for key, pair in networks.prefixes.value.items():
        for what, tensor in zip(("keys", "values"), pair, strict=True):
            made |= {(*key, task, what): own for task, own in enumerate(tensor)}
    for key, halves in networks.generated.value.items():
        for half, weights in zip(("down", "up"), halves, strict=True):
            for name, of_tasks in zip(("weight", "bias"), weights, strict=True):
                made |= {(*key, task, half, name): own for task, own in enumerate(of_tasks)}
    return made


@FAMILIES
@torch.no_grad()
def test_without_pictures_prefixes_and_the_place_beside_it_is_hyperformer(
    family: type[Backbone], tmp_path: Path
) -> None:
    source = backbone(family, tmp_path)
    ours, theirs = (
        build(source, {"method": method}).eval() for method in (PLAIN, Hyperformer(**SMALL))
    )
    names = [dict(model.named_parameters()).keys() for model in (ours, theirs)]
    assert names[0] == names[1]
    losses = [model(batch(), torch.ones(4)).loss for model in (ours, theirs)]
    assert torch.equal(*losses)


@FAMILIES
@torch.no_grad()
def test_what_is_made_differs_for_each_task_layer_and_block(
    family: type[Backbone], tmp_path: Path
) -> None:
    model = build(backbone(family, tmp_path), {"method": replace(PELT, hidden_dim=64)}).eval()
    model(batch(), torch.ones(4))
    made = made_of(networks_of(model))
    # Keys and values of six attentions, and four tensors of four feed-forward layers' adapters.
    assert len(made) == len(TASKS) * (2 * (2 + 2 * 2) + 4 * 2 * 2)
    tensors = list(made.values())
    for first, one in enumerate(tensors):
        assert not any(torch.equal(one, other) for other in tensors[first + 1 :])
    model(batch(), torch.ones(4))
    again = made_of(networks_of(model))
    assert again.keys() == made.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in made.items())


@FAMILIES
@torch.no_grad()
def test_rows_of_one_batch_are_what_they_are_alone(family: type[Backbone], tmp_path: Path) -> None:
    """With other pictures an example gets other adapters, and its neighbours do not matter."""
    model = build(backbone(family, tmp_path), {"method": PELT}).eval()
    shake(model)
    examples = batch()
    together = model.token_nll(examples).sum(1)
    for row in range(len(examples)):
        alone = model.token_nll(examples.select(torch.tensor([row]))).sum(1)
        assert alone.item() == pytest.approx(together[row].item(), rel=1e-5)
    model(examples, torch.ones(4))
    weights = networks_of(model).of_pictures.value
    assert weights.keys() == {(stack, "ffn_out", layer) for stack, _, layer in weights}
    for tensors in weights.values():
        for first, second, third, last in tensors:
            assert torch.equal(first, second)  # they share a picture
            assert not torch.equal(first, third)
            assert not torch.equal(third, last)
    assert examples.features is not None
    other = replace(examples, features=examples.features.flip(0))
    assert not torch.allclose(model.token_nll(other).sum(1), together)


@FAMILIES
@pytest.mark.parametrize("prefix_length", [0, 3])
@torch.no_grad()
def test_merged_it_is_adapters_beside_layers_and_prefixes(
    prefix_length: int, family: type[Backbone], tmp_path: Path
) -> None:
    source = backbone(family, tmp_path)
    pelt = replace(PELT, prefix_length=prefix_length, visual=False, learning_rate=0.1)
    model = build(source, {"pelt": pelt}).eval()
    shake(model)
    before, decoding = model.logits(batch()), Decoding(num_beams=3, max_new_tokens=6)
    answers = model.generate(batch(), decoding)[0]
    left = pelt.merge("pelt", model.backbone, TASKS)
    adapter = Adapter(
        reduction=4, sharing="multiple", attention=False, cross_attention=False, parallel=True,
        learning_rate=0.1,
    )  # fmt: skip
    prefixes = PrefixTuning(sharing="multiple", length=3, hidden_dim=None, learning_rate=0.1)
    expected = {"pelt": adapter} | ({"pelt_prefix": prefixes} if prefix_length else {})
    assert left == expected
    assert (model.logits(batch()) - before).abs().max() < 1e-6 * before.abs().max()
    plain = build(source, dict(left), seed=2).eval()
    plain.load_state_dict(model.state_dict())
    assert (plain.logits(batch()) - before).abs().max() < 1e-6 * before.abs().max()
    assert plain.generate(batch(), decoding)[0] == answers
    other = batch((1, 0, 2, 1))
    assert not torch.allclose(plain.logits(other), before)


def test_a_name_that_merging_needs_is_kept_free(world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "HyperPELT tasks alone", world, tmp_path)
    taken = {**recipe.methods, "method_prefix": PrefixTuning(length=2, hidden_dim=None)}
    with pytest.raises(ValueError, match="merging makes a method method_prefix of it, and the rec"):
        fold_methods(trained_run(replace(recipe, methods=taken)))


def new_task(recipe: Recipe, many: Path, folder: Path) -> Recipe:
    """A recipe that learns the task `again` on the frozen model and networks of a run."""
    model = folder / "model"
    convert("hf", "--run", many, "--out", model)
    shutil.copytree(model, folder / "networks")
    whole = with_model(
        recipe,
        backbone=replace(recipe.model.backbone, path=str(model)),
        vision=ConvNet(
            image_size=16, grid=2, widths=[4, 8, 8], weights=str(model / "vision.safetensors")
        ),
        visual_embedding=VisualEmbeddingConfig(weights=str(model / "visual_embedding.safetensors")),
        train_norms=False,
        train_visual_embedding=False,
    )
    pelt = recipe.methods["method"]
    assert isinstance(pelt, HyperPELT)
    pelt = replace(pelt, weights=str(folder / "networks"), train_networks=False)
    tasks = {"again": recipe.tasks["vqa"]}
    return replace(whole, output=str(folder / "new"), tasks=tasks, methods={"method": pelt})


@pytest.mark.slow
def test_a_new_tasks_embedding_learns_alone(world: Path, tmp_path: Path) -> None:
    """With frozen networks, the loss of a new task falls; then it joins the run's tasks."""
    recipe = recipe_with("T5", "HyperPELT", world, tmp_path)
    many = write_run(recipe, spread=0.3)
    run = built_run(new_task(recipe, many, tmp_path))
    embeddings = "backbone.extensions.method.task_embeddings.weight"
    assert list(run.model.trained_by) == [embeddings]
    examples = replace(picture_batch(), task_index=torch.zeros(3, dtype=torch.long))
    optimizer = torch.optim.Adam([run.model.get_parameter(embeddings)], lr=0.1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = run.model(examples, torch.ones(3)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    alone, both = save_run(run), tmp_path / "both"
    state, first = state_of(alone), state_of(many)
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, first[name])}
    assert changed == {embeddings}
    shutil.rmtree(tmp_path / "networks")  # the artifact holds them
    convert("merge", "--how", "put", "--task", "again", "--run", many, alone, "--out", both)
    joined = load_run(both, torch.float32)
    assert list(joined.recipe.tasks) == ["vqa", "caption", "again"]
    assert (logits(joined, "again", ()) - logits(run, "again", ())).abs().max() < 1e-5
    assert (logits(joined, "vqa", ()) - logits(load_run(many), "vqa", ())).abs().max() < 1e-5


def test_known_tasks_begin_with_the_runs_embeddings(world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "HyperPELT tasks alone", world, tmp_path)
    many = write_run(recipe, seed=1)
    pelt = recipe.methods["method"]
    assert isinstance(pelt, HyperPELT)
    tasks = {"new": recipe.tasks["vqa"], **dict(reversed(recipe.tasks.items()))}
    run = built_run(
        replace(recipe, tasks=tasks, methods={"method": replace(pelt, weights=str(many))})
    )
    name = "backbone.extensions.method.task_embeddings.weight"
    first, embeddings = state_of(many)[name], run.model.get_parameter(name)
    assert torch.equal(embeddings[1:], first.flip(0))
    assert not any(torch.equal(embeddings[0], known) for known in first)
    assert set(run.model.trained_by) > {name}


def test_what_no_networks_can_be_taken_from(world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "HyperPELT tasks alone", world, tmp_path)
    many = write_run(recipe)
    other = write_run(replace(recipe, output=str(tmp_path / "adapters"), methods={"a": Adapter()}))
    pelt = recipe.methods["method"]
    assert isinstance(pelt, HyperPELT)
    source = backbone(Bart, tmp_path)
    for fields, message in (
        ({"weights": str(other)}, "its methods are Adapter; name a run with HyperPELT"),
        ({"weights": str(many), "activation": "relu"}, "weights: activation is gelu_tanh in .*, a"),
        (
            {"weights": str(many)},
            "weights: stacks.* is missing or has another shape; name a run of",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build(source, {"method": replace(pelt, **fields)})
    with pytest.raises(ValueError, match="train_networks: got false, and the networks would stay"):
        replace(pelt, train_networks=False).check_steps(10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_length": -1}, "prefix_length: got -1"),
        (
            {"layer_norm_after": True},
            "layer_norm_after: got true; HyperPELT's adapters have no norm",
        ),
        ({"attention": True}, "parallel: got true, and adapters stand beside feed-forward layers"),
        ({"part": "vision"}, "sharing: got one set of weights per task for the vision encoder"),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(HyperPELT, vars(PELT) | fields)

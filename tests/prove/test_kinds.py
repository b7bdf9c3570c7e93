"""Recipes of all kinds of models and tasks that are right: no property blames them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys.cross_modal import pretraining_recipe
from tests.toys.dual import text_recipe
from tests.toys.kinds import ALL_KINDS, kind_recipe
from tests.toys.method_cases import METHOD_CASES
from tests.toys.models import backbone, build
from tests.toys.recipes import with_task
from tests.toys.world import world_recipe
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5
from vlds.prove.arithmetic import batch_free
from vlds.prove.bench import Bench
from vlds.prove.command import chosen, prove
from vlds.prove.finding import OF_GRADIENTS, roundings
from vlds.prove.properties import PROPERTIES
from vlds.recipe.config import Recipe
from vlds.schema import NO_IMAGE


def sequential(world: Path, output: Path) -> Recipe:
    recipe = world_recipe(world, output)
    return replace(recipe, data=replace(recipe.data, reader="sequential"))


def bare(world: Path, output: Path) -> Recipe:
    """Nothing to evaluate, in bf16, under stage 3."""
    return with_task(world_recipe(world, output, stage=3, precision="bf16"), "vqa", evaluate=[])


RECIPES: dict[str, Callable[[Path, Path], Recipe]] = {
    "bare": bare,
    "sequential reader": sequential,
    "causal": lambda world, output: kind_recipe("causal", world, output),
    "image_text": lambda world, output: kind_recipe("image_text", world, output),
    "words in places, words that the tokenizer lacks": pretraining_recipe,
    "pairs of CLIP": text_recipe,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", RECIPES)
def test_no_property_blames_a_right_recipe(name: str, world: Path, tmp_path: Path) -> None:
    recipe = RECIPES[name](world, tmp_path / "run")
    bench = Bench(recipe, scratch=tmp_path / "scratch", rows=4, steps=2)
    tried = prove(bench, chosen([], ["learns"], short=True), print)
    found = {each.property.name: each.finding for each in tried}
    assert {each: found[each].verdict for each in found if found[each].verdict == "fails"} == {}
    assert found["batch-free"].verdict == found["what-trains"].verdict == "holds"


def test_a_batch_without_any_picture(tmp_path: Path) -> None:
    """A limit may cut all pictures from the conversations of a batch."""
    embedding = build(backbone(T5, tmp_path)).visual_embedding
    dim, width = embedding.feature_projection.in_features, embedding.feature_projection.out_features
    index = torch.full((2, 1), NO_IMAGE)
    table = torch.nn.Embedding(60, width)
    tokens, mask = embedding(torch.zeros(0, embedding.num_tokens, dim), None, index, table)
    assert tokens.shape == (2, embedding.num_tokens, width)
    assert not mask.any()


def test_a_model_that_makes_much_of_roundings(world: Path, tmp_path: Path) -> None:
    """Attention to one token among others that score nearly as high depends on the last bits."""
    bench = Bench(kind_recipe("causal", world, tmp_path / "run"), scratch=tmp_path, rows=8)
    weights = {name: p for name, p in bench.model.named_parameters() if "q_proj.weight" in name}
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(1e6)
    before = {name: weight.clone() for name, weight in weights.items()}
    found, usual = batch_free(bench), roundings(OF_GRADIENTS, torch.float32)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert found.verdict == "holds", found
    assert max(each.difference for each in found.compared) > usual.share
    (note,) = found.notes
    assert "its tolerances are wider" in note
    assert bench.makes_much_of_roundings


# Each method, on each kind of model, has the properties that `vlds prove` shows: what it trains
# gets gradients, those of a plain loop, and neither losses nor answers depend on other rows.

TRIED = ("batch-free", "gradient-parity", "what-trains", "answers")
"""Those that depend on the method."""


@pytest.mark.sampled(14)
@pytest.mark.parametrize("name", METHOD_CASES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_method_has_the_properties_or_is_refused(
    kind: str, name: str, world: Path, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "run")
    tasks = {n: replace(t, max_prompt_tokens=40, evaluate=[]) for n, t in recipe.tasks.items()}
    model = recipe.model
    if isinstance(model, JointSeq2Seq):
        model = replace(model, train_norms=False)  # no ladder stands beside what trains
    methods = {"method": METHOD_CASES[name].method}
    recipe = replace(recipe, model=model, tasks=tasks)
    try:
        bench = Bench(replace(recipe, methods=methods), scratch=tmp_path, rows=8)
        trained = bench.model.trained_by
    except ValueError as refusal:
        if not str(refusal).startswith("methods.method"):
            raise
        return
    assert "method" in trained.values()
    for each in PROPERTIES:
        if each.name in TRIED:
            finding = each.check(bench)
            assert finding.verdict != "fails", (each.name, finding)
            # Terms of a method's own have no plain counterpart.
            assert not finding.left_out or bench.model.batch_losses

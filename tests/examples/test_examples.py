"""The task, head and method that docs/ quotes do what the docs say, from outside of vlds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.examples.cosine_head import CosineHead
from tests.examples.counting import Counting
from tests.examples.output_scale import OutputScale
from tests.toys.method_cases import concrete_methods, method_cases
from tests.toys.models import backbone, batch, build
from tests.toys.trained_runs import logits_of, recipe_from, trained_run
from tests.toys.trained_runs import picture_batch as pictures
from tests.toys.world import world_recipe
from vlds.convert.adapters import AdaptersFolders
from vlds.convert.hf import fold_methods
from vlds.convert.peft import PeftFolders
from vlds.convert.reference import check_expressible
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.methods.base import PEFT_MODEL, Layout, Library, Method, Stored
from vlds.models.methods.host import (
    Host,
    LinearExtension,
    added_tensors,
    extended_linears,
    foldable_weight,
    take_first,
)
from vlds.models.roles import optimizer_rules
from vlds.recipe.config import load_recipe, save_recipe
from vlds.schema import UNDECAYED, OptimizerRules, Sample


def sample(**answers: Any) -> Sample:
    annotation = {"id": "q", "question": "How many dogs?", **answers}
    return Sample("000000", "toy-val", "image-7", "vqa", (b"",), (), (annotation,))


def test_the_task_makes_examples() -> None:
    task = Counting()
    for rng in (None, np.random.default_rng(0)):
        example = task.example("count", sample(answers=["3"]), 0, rng)
        assert (example.prompt, example.target, example.reference) == (
            "count: How many dogs?", "3", "3",
        )  # fmt: skip
    assert task.example("count", sample(), 0, None).reference is None
    with pytest.raises(ValueError, match="cannot be trained on"):
        task.example("count", sample(), 0, np.random.default_rng(0))


def test_the_task_scores() -> None:
    references = {"a": "3", "b": "3", "c": "3", "d": "0", "e": None}
    predictions = {"a": "3", "b": "4", "c": "many", "d": "5", "e": "1"}
    assert Counting().score(predictions, references) == {"exact": 0.25, "within_one": 0.5}
    assert Counting().score({"e": "1"}, {"e": None}) == {}
    assert Counting().answer_of("3") == "3"


def test_the_head_learns_and_is_saved(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    vqa = replace(recipe.tasks["vqa"], head=CosineHead(classes=("red", "blue"), scale=3.0))
    recipe = replace(recipe, tasks={"vqa": vqa})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    run = trained_run(recipe)
    vectors = run.model.get_parameter("heads.vqa.vectors")
    assert vectors.requires_grad
    assert not optimizer_rules(run.model)["heads.vqa.vectors"].per_task
    states = torch.randn(4, 16)
    found = run.model.heads["vqa"](states)
    expected = 3 * torch.cosine_similarity(states[:, None], vectors, dim=-1)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("family", [T5, Bart])
def test_the_method_changes_nothing_at_first_and_trains(
    family: type[Backbone], tmp_path: Path
) -> None:
    source = backbone(family, tmp_path)
    frozen = build(source).eval()
    scaled = build(source, {"scale": OutputScale()}).eval()
    before = frozen(batch(), torch.ones(4)).token_nll_sum
    output = scaled(batch(), torch.ones(4))
    assert torch.equal(output.token_nll_sum, before)
    counts = scaled.count_parameters()
    assert counts.by_part["scale"].trainable == 4 * 16  # 2 + 2 layers, 16 wide
    output.loss.backward()
    factors = [p for n, p in scaled.named_parameters() if n.endswith(".factor")]
    assert len(factors) == 4
    assert all(p.grad is not None and p.grad.any() for p in factors)


def test_a_method_in_one_place_trains_merges_and_converts(world: Path, tmp_path: Path) -> None:
    """A class that nothing else names: the contract tests would find it, and every hook works."""

    class ShiftModule(LinearExtension):
        optimizer_rules: ClassVar[OptimizerRules] = {"shift": UNDECAYED}

        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(1, *linear.weight.shape))

        def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
            return outputs + nn.functional.linear(inputs, self.shift[0])

    @dataclass(frozen=True, kw_only=True)
    class Shift(Method):
        libraries: ClassVar[frozenset[Library]] = frozenset({"peft"})
        reasons: ClassVar[Mapping[Library, str]] = {"adapters": "adapters shifts nothing"}

        def attach(self, host: Host) -> list[nn.Parameter]:
            for linear in host.linears("attn_q").values():
                host.extend_linear(linear, ShiftModule(linear))
            return [p for n, p in host.model.named_parameters() if f".{host.name}.shift" in n]

        @torch.no_grad()
        def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
            for linear in extended_linears(model, name):
                weight, module = foldable_weight(linear), take_first(linear, name)
                weight += module.get_parameter("shift")[0]
            return {}

        def layout(self, library: Library, name: str, model: Any) -> Layout:
            keys = {t.name: f"{PEFT_MODEL}{t.layer}.shift" for t in added_tensors(model, name)}
            stored = {tensor: Stored((key,)) for tensor, key in keys.items()}
            return Layout(stored, {"peft_type": "SHIFT"})

    assert Shift in concrete_methods()
    assert method_cases()["Shift"].method == Shift()
    recipe = replace(recipe_from("T5", world, tmp_path), methods={"method": Shift()})
    first, second = trained_run(recipe, seed=1), trained_run(recipe, seed=2)
    rules = optimizer_rules(first.model)
    assert {rule for name, rule in rules.items() if name.endswith(".shift")} == {UNDECAYED}

    examples = pictures()
    first.model(examples, torch.ones(len(examples))).loss.backward()
    shifted = [p for n, p in first.model.named_parameters() if n.endswith(".shift")]
    assert len(shifted) == 4  # the queries of two layers in each stack
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in shifted)

    (tmp_path / "peft").mkdir()
    PeftFolders(first).write(tmp_path / "peft")
    read = PeftFolders(second).read(tmp_path / "peft")
    shifts = {n: t for n, t in first.model.unique_state() if n.endswith(".shift")}
    assert read.keys() == shifts.keys()
    assert all(torch.equal(read[name], shifts[name]) for name in shifts)
    with pytest.raises(ValueError, match=r"^methods.method: adapters shifts nothing$"):
        AdaptersFolders(first)
    with pytest.raises(ValueError, match=r"^methods.method: the original code has no Shift; .*$"):
        check_expressible(first)

    expected = logits_of(first.model)
    folded = fold_methods(first)
    assert folded.recipe.methods == {}
    assert (logits_of(folded.model) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_recipes_know_them_by_their_full_names(tmp_path: Path) -> None:
    text = """
output: runs/own
model:
  class_path: JointSeq2Seq
  init_args:
    backbone: {class_path: T5, init_args: {path: t5-base}}
    vision: {class_path: ConvNet}
methods:
  scale: {class_path: tests.examples.output_scale.OutputScale, init_args: {role: attn_out}}
tasks:
  count: {class_path: tests.examples.counting.Counting, init_args: {train: [shards/counts]}}
"""
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "own.yaml")
    assert recipe.tasks == {"count": Counting(train=["shards/counts"])}
    assert recipe.methods == {"scale": OutputScale(role="attn_out")}
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe

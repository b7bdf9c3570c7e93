"""The task and the method that docs/ quotes do what the docs say, from outside of vlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.examples.counting import Counting
from tests.examples.output_scale import OutputScale
from tests.models.toys import backbone, batch, build
from vlds.backbones import T5, Backbone, Bart
from vlds.config import load_recipe, save_recipe
from vlds.schema import Sample


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


def test_recipes_know_them_by_their_full_names(tmp_path: Path) -> None:
    text = """
output: runs/own
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

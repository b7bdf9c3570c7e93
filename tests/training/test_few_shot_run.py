"""Few-shot classification is an ordinary run: it trains on any number of ranks at any stage,
resumes, evaluates, and leaves an artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel

from tests.toys.dual import CLASSES, TASK, class_recipe, text_recipe
from tests.toys.files import read_lines
from tests.toys.rank_jobs import check_complaint, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.resumed_runs import assert_same_run, half_a_run, losses
from tests.toys.world import write_world
from vlds.artifact import load_run
from vlds.cli.main import run_command
from vlds.data.shards.store import few_shots, open_dataset
from vlds.models.collate import View
from vlds.models.kinds.dual_encoder_model import DualEncoderModel
from vlds.models.methods import Adapter, APoLLo, LoRA, Method, SimNL, TipAdapter
from vlds.recipe.config import Recipe

APOLLO = APoLLo(depth=2, heads=3, length=2, views=2, dropout=0.0)
METHODS: dict[str, Method] = {
    "simnl": SimNL(views=3),
    "tip_adapter": TipAdapter(views=0),
    "apollo": APOLLO,
    "lora": LoRA(rank=2, roles=["attn_q"], train_biases=False, part="text", dropout=0.0),
    "adapter": Adapter(reduction=4, init="identity"),
}
POOL = LoRA(rank=2, roles=["attn_v"], train_biases=False, part="vision", dropout=0.0)
"""In the attention pool of a ResNet."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


def trained(pool: RankPool, recipe: Recipe, resume: bool = False) -> Path:
    """The folder of a run that has ended well."""
    assert pool.run(run_recipe, recipe, resume, timeout=120) == [0] * pool.world_size
    return Path(recipe.output)


def scores(run: Path) -> list[float]:
    """The accuracy of each evaluation."""
    lines = read_lines(run / "metrics.jsonl")
    return [line["scores"][TASK]["accuracy"] for line in lines if "scores" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "resnet"])
def test_a_run(name: str, world: Path, tmp_path: Path, ranks1: RankPool, ranks2: RankPool) -> None:
    """Two ranks at stage 3 train as one at stage 2; ten steps are five and five."""
    methods, model = {name: METHODS.get(name, POOL)}, "resnet" if name == "resnet" else "clip"
    one = trained(ranks1, class_recipe(world, tmp_path / "one", methods, stage=2, model=model))
    recipe = class_recipe(world, tmp_path / "whole", methods, stage=3, model=model)
    two = trained(ranks2, recipe)
    assert len(losses(one)) == 10
    for found, expected in zip(losses(two), losses(one), strict=True):
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-5)
    first, last = scores(two)
    assert last >= first
    half_a_run(two, tmp_path / "half")
    resumed = replace(recipe, output=str(tmp_path / "half"))
    trained(ranks2, resumed, resume=True)
    assert_same_run(tmp_path / "half", two, TASK)


def evaluated(ranks: RankPool, run: Path, out: Path, *words: str) -> list[Any]:
    """The lines of predictions that `vlds evaluate` writes."""
    words = ("evaluate", "--run", str(run), "--out", str(out), *words)
    assert ranks.run(run_command, list(words), timeout=60) == [0]
    (file,) = out.rglob(f"{TASK}.jsonl")
    return read_lines(file)


def own_lines(run: Path) -> list[Any]:
    """The lines of predictions that the run has written."""
    return read_lines(run / f"predictions/step-00000010/{TASK}.jsonl")


def assert_same_answers(found: list[Any], expected: list[Any]) -> None:
    assert [line["prediction"] for line in found] == [line["prediction"] for line in expected]


@pytest.mark.slow
def test_base_and_new_classes(world: Path, ranks1: RankPool, tmp_path: Path) -> None:
    """A run sees the base classes alone; evaluated on the new ones, it chooses among these."""
    methods = {"a": METHODS["adapter"]}
    run = trained(ranks1, class_recipe(world, tmp_path / "run", methods, half="base"))
    new = evaluated(ranks1, run, tmp_path / "new", f"--tasks.{TASK}.half", "new")
    assert {line["prediction"] for line in new} <= set(CLASSES[2:])
    assert {line["reference"] for line in new} == set(CLASSES[2:])
    assert {line["reference"] for line in own_lines(run)} == set(CLASSES[:2])


@pytest.mark.slow
def test_the_artifact_holds_the_cached_embeddings(
    world: Path, tmp_path: Path, ranks1: RankPool
) -> None:
    run = trained(ranks1, class_recipe(world, tmp_path / "run", {"simnl": SimNL(views=2)}))
    loaded = load_run(run)
    assert isinstance(loaded.model, DualEncoderModel)
    keys = loaded.model.heads[TASK].get_buffer("extensions.simnl.keys")
    assert torch.allclose(keys.norm(dim=-1), torch.ones(4, 2), atol=1e-4)
    assert_same_answers(evaluated(ranks1, run, tmp_path / "out"), own_lines(run))


@pytest.mark.slow
def test_pairs_train_alike_on_any_number_of_ranks(
    world: Path, tmp_path: Path, ranks1: RankPool, ranks2: RankPool
) -> None:
    """CLIP's loss over the global batch, which two ranks share; the run becomes a CLIP."""
    one = trained(ranks1, text_recipe(world, tmp_path / "one", stage=2))
    two = trained(ranks2, text_recipe(world, tmp_path / "two", stage=3))
    assert len(losses(one)) == 10
    for found, expected in zip(losses(two), losses(one), strict=True):
        assert found == pytest.approx(expected, rel=1e-3)
    assert losses(one)[-1][1] < losses(one)[0][1]
    out = tmp_path / "clip"
    assert run_command(["convert", "hf", "--run", str(one), "--out", str(out)]) == 0
    clip, processor = CLIPModel.from_pretrained(out).eval(), AutoProcessor.from_pretrained(out)
    picture, text = Image.new("RGB", (16, 16), (200, 30, 30)), "it is red"
    inputs = processor(text=[text], images=[picture], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = clip(**inputs).logits_per_image
        loaded = load_run(one).model
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].contiguous()
        assert isinstance(loaded, DualEncoderModel)
        images, texts = loaded.embed_views([View(pixels[0])]), loaded.embed_texts([text], 0)
        found = loaded.scale * images @ texts.T
    assert torch.allclose(found, expected, atol=1e-3)


def test_shots_are_drawn_by_the_seed(world: Path, tmp_path: Path) -> None:
    """As many of each class, more contain the fewer, and another seed draws others."""
    class_recipe(world, tmp_path, {})
    dataset = open_dataset(world / "classes-train")
    two, four, other = (few_shots(dataset, *k) for k in ((2, 0), (4, 0), (4, 1)))
    assert two.num_samples == 8
    for subset, shots in ((two, 2), (four, 4), (other, 4)):
        assert torch.bincount(torch.from_numpy(subset.class_numbers())).tolist() == [shots] * 4
        for number, label in enumerate(subset.class_numbers()):
            assert subset.read(number).annotations[0]["label"] == CLASSES[label]
    assert set(two.chosen) < set(four.chosen) != set(other.chosen)
    assert len({d.fingerprint() for d in (dataset, two, four, other)}) == 4
    with pytest.raises(ValueError, match=r"shots: 9, but data set .* has 8 of class"):
        few_shots(dataset, 9, 0)


def test_what_is_refused(world: Path, tmp_path: Path) -> None:
    recipe = class_recipe(world, tmp_path / "run", {"apollo": APOLLO})
    cut = replace(recipe, data=replace(recipe.data, micro_batch_size=2))
    assert "methods.apollo: its loss compares all examples" in check_complaint(cut)
    text = text_recipe(world, tmp_path / "run")
    cut = replace(text, data=replace(text.data, micro_batch_size=2))
    assert "but CLIP's loss compares all pairs of the global batch" in check_complaint(cut)
    mixed = replace(text, tasks={**text.tasks, **recipe.tasks})
    assert "DualEncoder trains them in separate runs" in check_complaint(mixed)
    (task,) = text.tasks.values()
    long = replace(text, tasks={"caption": replace(task, max_target_tokens=99)})
    assert "tasks.caption.max_target_tokens: 99" in check_complaint(long)
    written = replace(text, tasks={"caption": replace(task, evaluate=task.train)})
    assert "DualEncoder writes no text" in check_complaint(written)

"""What comes before a run's first step: meta-learning, on where no cut of the examples
changes anything, whatever the method; and alignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_prep.cli import main
from tests.toys.engines import (
    Case,
    case_recipe,
    global_batch,
    make_case,
    micro_batches,
    with_classes,
)
from tests.toys.engines import recipe_model as built
from tests.toys.method_cases import METHOD_CASES
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from vlds.data.order.mixed_order import BatchCut
from vlds.data.shards.store import open_dataset
from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5
from vlds.models.build import build_model
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Adapter, Peft
from vlds.models.vision import ConvNet
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.recipe.config import AlignmentConfig, MetaConfig, Recipe
from vlds.runtime.deepspeed_start import start_ranks
from vlds.runtime.ranks import Ranks
from vlds.schema import Batch, Sample
from vlds.tasks import GQA
from vlds.training.alignment import Regions, align, cell_words, read_regions
from vlds.training.meta import Half, MetaLearner, MetaSteps, check_meta, outer_rate

CONFIG = MetaConfig(learning_rate=0.02)
"""Without decay, which makes whole steps of what is rounding alone, such as the gradients of keys'
biases."""
DECAYING = replace(CONFIG, weight_decay=0.1)
EPS = 1e-3
"""Adam's. A task's first step goes by g / (|g| + eps), so a smaller eps makes much of the rounding
of small gradients: with 1e-4, HyperPELT's second loss differs by 2e-5 on some CPUs."""


def batch_of(case: Case, seed: int, size: int) -> Batch:
    """A global batch; tasks with heads have classes."""
    batch = global_batch(seed, size=size)
    return with_classes(batch, case, seed) if case.heads else batch


def learn(case: Case, sizes: list[int], config: MetaConfig) -> dict[str, Any]:
    """Outer steps on global batches of these sizes: losses, and the weights before and after."""
    ranks = start_ranks(60)
    recipe = case_recipe(case)
    recipe = replace(recipe, meta=config, optimizer=replace(recipe.optimizer, eps=EPS))
    model = built(recipe)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    learner = MetaLearner(model, recipe, config, ranks)
    cut = BatchCut(ranks.world_size, case.micro_batch_size)
    losses = [
        learner.step([micro_batches(batch_of(case, seed, size), ranks.global_rank, cut)], 1.0)
        for seed, size in enumerate(sizes)
    ]
    after = {name: weight.detach() for name, weight in model.named_parameters()}
    return {"losses": losses, "before": before, "after": after, "trained": set(model.trained_by)}


REFUSED = "Peft adalora"
CASES = [(name, case.families[0]) for name, case in METHOD_CASES.items() if name != REFUSED]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), CASES)
def test_every_method_learns_the_same_on_any_ranks(
    name: str, family: str, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    method = METHOD_CASES[name].method
    case = make_case(tmp_path, family=family, method=method, dropout=0.1)
    check_any_cut(case, ranks1, ranks2)


HEADS = {
    "vqa": MLPHead(classes=("red", "green", "blue", "dark")),
    "gqa": LinearHead(classes=("yes", "no", "left")),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["T5", pytest.param("Bart", marks=pytest.mark.slow)])
def test_heads_learn_the_same_on_any_ranks(
    family: str, ranks1: RankPool, ranks2: RankPool, tmp_path: Path
) -> None:
    case = make_case(tmp_path, family=family, method=Adapter(reduction=4), heads=HEADS)
    moved = check_any_cut(case, ranks1, ranks2)
    assert {name.split(".")[1] for name in moved if name.startswith("heads.")} == HEADS.keys()


def check_any_cut(case: Case, ranks1: RankPool, ranks2: RankPool) -> set[str]:
    """Compare outer steps on one rank with those on two in micro-batches, also of a batch in which
    one rank has less to do; which weights have moved."""
    sizes = [16, 7, 16]
    (expected,) = ranks1.run(learn, case, sizes, CONFIG)
    moved = moved_names(expected)
    assert moved
    assert moved <= expected["trained"], "frozen weights stay"
    for found in ranks2.run(learn, replace(case, micro_batch_size=3), sizes, CONFIG):
        assert moved_names(found) == moved
        for losses, whole in zip(found["losses"], expected["losses"], strict=True):
            assert losses.keys() == whole.keys()
            for task, pair in whole.items():
                assert losses[task] == pytest.approx(pair, rel=1e-5), task
        for key, tensor in expected["after"].items():
            assert torch.allclose(found["after"][key], tensor, rtol=1e-4, atol=1e-4), key
    return moved


def moved_names(learnt: dict[str, Any]) -> set[str]:
    """Of the weights that differ from before."""
    before, after = learnt["before"], learnt["after"]
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_task_moves_its_own_weights_alone(ranks1: RankPool, tmp_path: Path) -> None:
    """Even where weights decay. The losses' definition is that of the run."""
    method = Adapter(sharing="multiple", reduction=4)
    case = make_case(tmp_path, method=method, heads=HEADS)
    (found,) = ranks1.run(learn_one_task, case)
    heads = {name: p for name, p in found["before"].items() if name.startswith("heads.")}
    assert len(heads) > 4
    assert all(torch.equal(found["after"][name], p) for name, p in heads.items())
    stacks = {name: p for name, p in found["before"].items() if "method" in name}
    assert stacks
    for name, before in stacks.items():
        after = found["after"][name]
        assert torch.equal(after[[0, 2]], before[[0, 2]]), name
    assert any(not torch.equal(found["after"][n][1], p[1]) for n, p in stacks.items())
    assert found["loss"] == pytest.approx(found["expected"], rel=1e-6)


CAPTION = 1


def learn_one_task(case: Case) -> dict[str, Any]:
    """An outer step on captions; its first loss, and what the definition says."""
    ranks = start_ranks(60)
    recipe = replace(case_recipe(case), meta=DECAYING)
    model = built(recipe)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    batch = with_classes(global_batch(0, tasks=[CAPTION] * 16), case)
    half = batch.select(torch.arange(0, 16, 2))
    assert half.labels is not None
    nll: Tensor = model.train().token_nll(half)
    expected = nll.sum() / (half.labels >= 0).sum()
    losses = MetaLearner(model, recipe, DECAYING, ranks).step([[batch]], 1.0)
    after = {name: weight.detach() for name, weight in model.named_parameters()}
    return {
        "before": before,
        "after": after,
        "loss": losses["caption"][0],
        "expected": expected.item(),
    }


def test_a_method_that_follows_the_steps_is_refused(tmp_path: Path) -> None:
    method = METHOD_CASES[REFUSED].method
    assert isinstance(method, Peft)
    with pytest.raises(
        ValueError, match=r"meta: methods\.method follows the run's optimizer steps"
    ):
        check_meta(built(case_recipe(make_case(tmp_path, method=method))))


# Outer steps over tasks; tests/parity/test_related.py has the original code's results.

INPUTS, OUTPUTS, ROWS = 6, 3, 16
Examples = Callable[[], tuple[Tensor, Tensor]]
"""Draws inputs and targets of a task."""


def family(seed: int, num_tasks: int) -> list[Examples]:
    """Linear regressions whose matrices lie near each other, and far from 0."""
    draw = torch.Generator().manual_seed(seed)
    centre = torch.randn(OUTPUTS, INPUTS, generator=draw)

    def task(matrix: Tensor) -> Examples:
        def examples() -> tuple[Tensor, Tensor]:
            inputs = torch.randn(ROWS, INPUTS, generator=draw)
            return inputs, inputs @ matrix.T

        return examples

    return [
        task(centre + 0.1 * torch.randn(centre.shape, generator=draw)) for _ in range(num_tasks)
    ]


def half_of(weight: Tensor, examples: tuple[Tensor, Tensor]) -> Half:
    """The mean squared error of a matrix, as half of a task."""

    def backward() -> float:
        inputs, targets = examples
        loss = (inputs @ weight.T - targets).square().mean()
        loss.backward()
        return loss.item()

    return backward


def random_start(seed: int) -> nn.Parameter:
    draw = torch.Generator().manual_seed(100 + seed)
    return nn.Parameter(0.3 * torch.randn(OUTPUTS, INPUTS, generator=draw))


def meta_steps(weight: nn.Parameter) -> MetaSteps:
    return MetaSteps([weight], torch.optim.Adam([weight], lr=0.05, betas=(0.0, 0.999)), 5.0)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weight = random_start(0)
    (task,) = family(0, num_tasks=1)
    inputs, targets = task()
    bad = half_of(weight, (inputs / 0, targets))
    made, before = meta_steps(weight), weight.detach().clone()
    made.step([(half_of(weight, task()), bad)], 1.0)
    assert torch.equal(weight, before), "the change of the second step counts, and there was none"
    assert made.num_skipped == 1
    made.step([(bad, half_of(weight, task()))], 1.0)
    assert made.num_skipped == 2
    assert weight.isfinite().all()
    assert not torch.equal(weight, before)


def test_the_rate_falls_to_nothing() -> None:
    assert [outer_rate(0.8, step, 4) for step in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])


# Region-word alignment: cells learn their objects' words, and nothing else changes.

ALONE = Ranks(0, 1, 0, 1, device=torch.device("cpu"))
EMPTY = 1
WORDS = {"red": 5, "small": 6, "circle": 7, "cross": 8}


def spell(text: str) -> list[int]:
    return [WORDS[word] for word in text.split()]


def sample(**extra: object) -> Sample:
    return Sample("000", "gqa", "n1", "gqa", (), (), (), extra)


def test_words_go_to_the_cells_of_their_objects() -> None:
    objects = [
        {"name": "circle", "attributes": ["red", "small"], "x": 30, "y": 4, "w": 10, "h": 8},
        {"name": "cross", "attributes": [], "x": 0, "y": 40, "w": 8, "h": 8},
    ]
    found = cell_words(sample(size=[(48, 48)], source={"objects": objects}), 3, 10, spell, EMPTY)
    assert found.shape == (9, 10)
    assert found[2].tolist() == pytest.approx([0, 0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert found[6, WORDS["cross"]] == 1
    assert [n for n in range(9) if found[n, EMPTY] == 1] == [0, 1, 3, 4, 5, 7, 8]
    assert torch.allclose(found.sum(1), torch.ones(9))


def test_a_sample_without_objects_is_named() -> None:
    with pytest.raises(ValueError, match=r"alignment.data: sample n1 of data set gqa has no obj"):
        cell_words(sample(size=[(48, 48)], source={}), 3, 10, spell, EMPTY)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("alignment")
    assert main(["demo", "--out", str(folder), "--scenes", "200"]) == 0
    data = str(folder / "shards/home/gqa-train")
    return Recipe(
        output=str(folder / "run"),
        methods={"adapter": Adapter()},
        tasks={"gqa": GQA(train=[data])},
        alignment=AlignmentConfig(data=data, steps=80, batch_size=32),
        model=JointSeq2Seq(
            backbone=T5(
                config="recipes/backbones/t5_demo.json",
                tokenizer=str(folder / "spiece.model"),
                extra_tokens=0,
                visual_tokens=9,
            ),
            vision=ConvNet(image_size=48, grid=3, widths=[16, 32, 64, 128]),
            visual_embedding=VisualEmbeddingConfig(boxes="grid"),
        ),
    )


@pytest.mark.slow
def test_cells_come_near_their_words_and_the_rest_stays(recipe: Recipe) -> None:
    tokenizer = recipe.model.backbone.load_tokenizer()
    model = build_model(recipe.model_setup, ["gqa"], torch.float32, tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    regions = read_regions(recipe, model)
    assert len(regions.pixels) == open_dataset(recipe.alignment.data).num_samples  # type: ignore[union-attr]
    assert share_of_right_words(model, regions) < 0.2
    align(model, recipe, ALONE)
    assert share_of_right_words(model, regions) > 0.8
    assert model.vision.frozen
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    tied = {name for name in before if name.endswith(("shared.weight", "embed_tokens.weight"))}
    visual = tuple(n for n in before if n.startswith(("vision.", "visual_embedding.")))
    assert changed <= {*visual, *tied, "backbone.lm_head.weight"}


def share_of_right_words(model: JointModel, regions: Regions) -> float:
    """Of the cells with an object: those whose nearest word is one of the object's."""
    model.eval()
    with torch.no_grad():
        tokens = model.visual_embedding.embed(model.vision(regions.pixels), None)
        nearest = (tokens @ model.backbone.get_input_embeddings().weight.T).argmax(-1)
    right = regions.words.gather(-1, nearest[..., None])[..., 0] > 0
    filled = regions.words[..., EMPTY] == 0
    return float(right[filled].float().mean())


@pytest.mark.parametrize("part", ["backbone", "vision"])
def test_pretrained_weights_are_refused(recipe: Recipe, part: str) -> None:
    tokenizer = recipe.model.backbone.load_tokenizer()
    model = build_model(recipe.model_setup, ["gqa"], torch.float32, tokenizer)
    changed = (
        with_model(recipe, backbone=T5(path="google-t5/t5-base"))
        if part == "backbone"
        else with_model(recipe, vision=replace(recipe.model.vision, weights="eyes.safetensors"))  # type: ignore[type-var]
    )
    with pytest.raises(ValueError, match="alignment is for models with random weights"):
        align(model, changed, ALONE)

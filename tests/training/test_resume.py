"""A run that is interrupted and resumed is the run that was not interrupted, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys.files import read_lines
from tests.toys.kinds import KINDS, kind_recipe
from tests.toys.rank_jobs import run_recipe
from tests.toys.rank_pool import RankError, RankPool
from tests.toys.recipes import short_recipe, with_model
from tests.toys.resumed_runs import check_resume
from tests.toys.world import world_recipe, write_tokenizer
from vlds.data.config import DataConfig
from vlds.data.streams.assemble import StreamSetup
from vlds.data.streams.stream import TrainStream
from vlds.evaluation.sources import training_sources
from vlds.models.methods import LST, Full
from vlds.recipe.config import Recipe
from vlds.runtime.deepspeed_start import start_ranks
from vlds.training import checkpoint
from vlds.training.importance import write_importance
from vlds.training.loop import train
from vlds.training.prepare import prepare
from vlds.training.run import build_run
from vlds.training.states import newest, read_progress


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        (3, "fp32"),
        pytest.param(2, "bf16", marks=pytest.mark.slow),
        pytest.param(2, "fp32", marks=pytest.mark.slow),
        pytest.param(3, "bf16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_are_five_and_five(
    kind: str, stage: int, precision: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    check_resume(ranks2, kind_recipe(kind, world, tmp_path / "whole", stage, precision), tmp_path)


@pytest.mark.slow
def test_statistics_of_a_training_encoder_are_resumed(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = world_recipe(world, tmp_path / "whole")
    encoder = {"encoder": Full(part="vision", learning_rate=1e-3)}
    check_resume(ranks2, replace(recipe, methods=recipe.methods | encoder), tmp_path)


@pytest.mark.slow
def test_another_tokenizer_under_the_same_name_is_refused(
    world: Path, ranks1: RankPool, tmp_path: Path
) -> None:
    recipe = short_recipe(world, tmp_path / "run", 2)
    words = tmp_path / "words.model"
    write_tokenizer(words)
    backbone = replace(recipe.model.backbone, tokenizer=str(words))
    recipe = with_model(recipe, backbone=backbone)
    recipe = replace(recipe, training=replace(recipe.training, steps=2))
    assert ranks1.run(run_recipe, recipe, timeout=120) == [0]
    before = words.read_bytes()
    write_tokenizer(words, capitals=True)
    longer = replace(recipe, training=replace(recipe.training, steps=4))
    with pytest.raises(RankError, match=rf"was trained on another tokenizer than {words} is now"):
        ranks1.run(run_recipe, longer, True, timeout=120)
    words.write_bytes(before)
    assert ranks1.run(run_recipe, longer, True, timeout=120) == [0]


@pytest.mark.slow
def test_what_only_the_start_reads_may_be_gone(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = with_model(world_recipe(world, tmp_path / "whole"), train_norms=False)
    file = tmp_path / "importance.safetensors"
    write_importance(recipe, file, 3)
    side = LST(reduction=2, start="fisher_sorted", importance=str(file))
    recipe = replace(recipe, methods={"side": side})
    check_resume(ranks2, recipe, tmp_path, file.unlink)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_of_each_task_are_resumed(
    kind: str, stage: int, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """With global batches of one task."""
    recipe = kind_recipe(kind, world, tmp_path / "whole", stage)
    recipe = replace(recipe, data=replace(recipe.data, unit="global_batch"))
    check_resume(ranks2, recipe, tmp_path)
    half, whole = (
        read_progress(tmp_path / "half" / "state" / f"step-{step:08d}").task_updates
        for step in (5, 10)
    )
    assert list(whole) == ["vqa", "caption"]
    assert sum(half.values()) == 5
    assert sum(whole.values()) == 10
    assert all(0 < half[task] < whole[task] for task in whole)


def resume_and_export(recipe: Recipe) -> tuple[Any, list[list[str]]]:
    """The state that an engine gives back after restoring, and this rank's ids of two steps."""
    ranks = start_ranks(60)
    run = build_run(recipe, ranks, prepare(recipe, ranks, True), True)
    state = run.engine.export()
    steps = islice(run.stream.steps(), 2)
    ids = [[id for batch in batches for id in batch.ids] for batches in steps]
    run.engine.close()
    return state, ids


@pytest.fixture(scope="module")
def states(
    world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], Path]:
    """A kind's run of two ranks at a stage."""
    folder = tmp_path_factory.mktemp("states")

    def run(kind: str, stage: int) -> Path:
        output = folder / f"{kind}-{stage}"
        if not output.exists():
            recipe = kind_recipe(kind, world, output, stage)
            short = replace(recipe, training=replace(recipe.training, steps=5))
            ranks2.run(run_recipe, short, False, timeout=120)
        return output

    return run


def next_ids(recipe: Recipe, num: int) -> list[str]:
    """What one process reads next, where the newest state left the stream."""
    collator = recipe.model.collator(recipe.model.load_processor())
    setup = StreamSetup(collator=collator, image=recipe.image, seed=recipe.seed)
    config = DataConfig(global_batch_size=recipe.data.global_batch_size)
    stream = TrainStream(training_sources(recipe), config, setup)
    found, _ = newest(Path(recipe.output) / "state")
    assert found is not None
    stream.load_state(checkpoint.load(found)[1].data)
    return [id for batch in islice(stream, num) for id in batch.ids]


def check_move(pool: RankPool, saved: Path, recipe: Recipe) -> None:
    """Resume at a recipe's stage and on a pool's ranks what two ranks have saved."""
    output = Path(recipe.output)
    shutil.copytree(saved, output)
    (state, _), *others = results = pool.run(resume_and_export, recipe, timeout=120)
    assert all(other is None for other, _ in others)
    expected, progress = checkpoint.load(output / "state" / "step-00000005")
    assert progress.step == 5
    assert state.keys() == expected.keys()
    for name, tensors in expected.items():
        assert state[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(state[name][key], tensor), (name, key)
    steps = zip(*(ids for _, ids in results), strict=True)
    found = [id for shares in steps for share in shares for id in share]
    assert found == next_ids(recipe, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "stage"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_moves_to_another_stage(
    kind: str,
    saved: int,
    stage: int,
    states: Callable[[str, int], Path],
    world: Path,
    ranks2: RankPool,
    tmp_path: Path,
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "run", stage)
    check_move(ranks2, states(kind, saved), recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "stage"),
    [(2, 3), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((2, 2), (3, 2), (3, 3)))],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_moves_to_another_number_of_ranks(
    kind: str,
    saved: int,
    stage: int,
    states: Callable[[str, int], Path],
    world: Path,
    ranks4: RankPool,
    tmp_path: Path,
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "run", stage)
    check_move(ranks4, states(kind, saved), recipe)


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "stage"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_two_ranks_moves_to_one(
    kind: str,
    saved: int,
    stage: int,
    states: Callable[[str, int], Path],
    world: Path,
    ranks1: RankPool,
    tmp_path: Path,
) -> None:
    recipe = kind_recipe(kind, world, tmp_path / "run", stage)
    check_move(ranks1, states(kind, saved), recipe)


def refused_resume(recipe: Recipe) -> str:
    """What a resumed run says that does not begin."""
    with pytest.raises(ValueError, match="this run's data differ") as refused:
        train(recipe, resume=True)
    return str(refused.value)


def test_tasks_with_weights_of_their_own_keep_their_order(
    states: Callable[[str, int], Path], world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    shutil.copytree(states("joint", 2), tmp_path / "run")
    recipe = world_recipe(world, tmp_path / "run", 2)
    swapped = replace(recipe, tasks=dict(reversed(recipe.tasks.items())))
    said, _ = ranks2.run(refused_new_phase, swapped, timeout=120)
    assert "has weights per task, of vqa, caption; the recipe's tasks are caption, vqa; " in said


def refused_new_phase(recipe: Recipe) -> str:
    """What is said of another mixture of tasks."""
    with pytest.raises(ValueError, match="resume with the same tasks") as refused:
        train(recipe, resume=True, new_phase=True)
    return str(refused.value)


@pytest.mark.slow
def test_other_weights_are_a_new_phase(
    states: Callable[[str, int], Path], world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    shutil.copytree(states("joint", 2), tmp_path / "run")
    recipe = world_recipe(world, tmp_path / "run", 2)
    tasks = recipe.tasks | {"vqa": replace(recipe.tasks["vqa"], weight=1 / 7)}
    changed = replace(recipe, tasks=tasks)
    said, _ = ranks2.run(refused_resume, changed, timeout=120)
    assert "order.shares.vqa: 2/3 -> " in said
    assert "with --new-phase each task continues from where it was" in said
    assert ranks2.run(run_recipe, changed, True, True, timeout=120) == [0, 0]
    before, after = (
        checkpoint.load(tmp_path / "run" / "state" / f"step-{step:08d}")[1].data for step in (5, 10)
    )
    assert after["phase"]["at"] == before["consumed"]
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    (begun, ended) = (
        {name: line[f"epoch/{name}"] for name in recipe.tasks}
        for step in (5, 10)
        for line in lines
        if line["step"] == step and "loss" in line
    )
    sizes = {source.name: source.datasets[0].num_annotations for source in training_sources(recipe)}
    new = {name: (ended[name] - begun[name]) * size for name, size in sizes.items()}
    assert after["phase"]["given"] == {
        name: [round(epochs * sizes[name])] for name, epochs in begun.items()
    }
    assert new["caption"] > 3 * new["vqa"]
    assert sum(new.values()) == pytest.approx(5 * recipe.data.global_batch_size)

"""Checkpoints that DeepSpeed wrote, on real ranks: the artifact has the run's masters."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.toys.method_cases import METHOD_CASES as METHODS
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_model
from tests.toys.trained_runs import CASES as METHOD_CASES
from tests.toys.trained_runs import (
    assert_same,
    convert,
    convert_code,
    picture_batch,
    recipe_with,
    state_of,
    trained_run,
    write_run,
)
from vlds.artifact import load_run
from vlds.recipe.config import Recipe, TrainingConfig, load_recipe, save_recipe
from vlds.runtime.deepspeed_start import start_ranks
from vlds.training.deepspeed_config import complete_deepspeed_config, cut_batches
from vlds.training.engine import Engine
from vlds.training.optimizer import parameter_groups, set_learning_rate


@dataclass(frozen=True)
class Case:
    """One checkpoint."""

    stage: int
    frozen: bool
    """True if it contains the frozen weights."""
    family: str = "T5"
    method: str = "Adapter shared up, norms"
    precision: str = "fp32"


CASES = [
    Case(2, frozen=True, family="FLAN"),
    Case(2, frozen=False, family="Bart", method="LoRA"),
    Case(3, frozen=True, family="Bart", method="Hyperformer", precision="bf16"),
    Case(3, frozen=False, method="PromptTuning per task"),
]


def recipe_of(case: Case, world: Path, folder: Path) -> Recipe:
    """The recipe of a case, and its file."""
    recipe = recipe_with(case.family, case.method, world, folder)
    training = TrainingConfig(
        precision=case.precision,  # type: ignore[arg-type]
        deepspeed=str(world / f"zero{case.stage}.json"),
    )
    # No gradient reaches the backbone's norms past a ladder.
    train_norms = "LST" not in case.method
    recipe = with_model(replace(recipe, training=training), train_norms=train_norms)
    save_recipe(recipe, folder / "recipe.yaml")
    return recipe


def train_and_save(recipe_file: Path, checkpoint: Path, frozen: bool) -> dict[str, Tensor] | None:
    """A step, then DeepSpeed's own checkpoint; the first rank's masters."""
    recipe, ranks = load_recipe(recipe_file), start_ranks(60)
    model = trained_run(recipe).model
    if recipe.training.precision == "bf16":
        model = model.to(torch.bfloat16)
    cut = cut_batches(recipe, ranks.world_size)
    config = complete_deepspeed_config(Path(recipe.training.deepspeed), recipe, cut)
    tasks = list(recipe.tasks.values())
    groups = parameter_groups(model, recipe)
    engine = Engine(model, groups, config, ranks=ranks, tasks=tasks, num_steps=1)
    set_learning_rate(engine.parameter_groups, 1.0)
    engine.step([picture_batch()])
    exported = engine.export()
    engine._deepspeed.save_checkpoint(
        str(checkpoint), tag="step", exclude_frozen_parameters=not frozen
    )
    engine.close()
    return exported and {name: t["fp32"] for name, t in exported.items() if "fp32" in t}


def checkpoint_of(case: Case, world: Path, folder: Path, pool: RankPool) -> dict[str, Tensor]:
    """Write folder/recipe.yaml and folder/checkpoint; the masters."""
    recipe_of(case, world, folder)
    masters = pool.run(train_and_save, folder / "recipe.yaml", folder / "checkpoint", case.frozen)
    assert masters[0] is not None
    return dict(masters[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stage}-{case.frozen}")
def test_the_artifact_has_the_masters(
    case: Case, world: Path, ranks2: RankPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masters = checkpoint_of(case, world, tmp_path, ranks2)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    before = trained_run(recipe)
    out, words = tmp_path / "out", ["--from", tmp_path / "checkpoint", "--out", tmp_path / "out"]
    if case.frozen:
        words += ["--config", tmp_path / "recipe.yaml"]
    else:
        assert convert_code("zero", *words, "--config", tmp_path / "recipe.yaml") == 2
        assert "nothing holds backbone." in capsys.readouterr().err
        words += ["--run", write_run(recipe, seed=9)]
    convert("zero", *words, "--verify", "--tolerance", "0")
    assert "largest difference of logits" in capsys.readouterr().out
    frozen = dict(before.model.unique_state())
    kept = load_run(out, torch.float32).model.sources
    precise = torch.bfloat16 if case.frozen and case.precision == "bf16" else torch.float32
    expected = {
        name: masters[name]
        if name in masters
        # A source's own weights are read from there.
        else tensor
        if name in kept.names
        else tensor.to(precise).float()
        for name, tensor in frozen.items()
    }
    found = state_of(out)
    for name, rows in kept.rows.items():
        expected[name][:rows] = found[name][:rows] = 0
    assert_same(found, expected)
    assert any(not torch.equal(frozen[name], tensor) for name, tensor in masters.items())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), METHOD_CASES)
def test_every_method(
    family: str, method: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    """Stage 3 where the method goes with it, and stage 2 for BART."""
    stage = 3 if family != "Bart" and METHODS[method].method.partitionable else 2
    case = Case(stage, frozen=True, family=family, method=method)
    masters = checkpoint_of(case, world, tmp_path, ranks2)
    words = ["--from", tmp_path / "checkpoint", "--config", tmp_path / "recipe.yaml"]
    convert("zero", *words, "--out", tmp_path / "out", "--verify", "--tolerance", "0")
    found = state_of(tmp_path / "out")
    assert_same({name: found[name] for name in masters}, masters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "stage"), [("ranks1", 2), ("ranks1", 3), ("ranks4", 2), ("ranks4", 3)]
)
def test_any_number_of_ranks(
    pool: str, stage: int, world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One rank cuts nothing; four cut tensors into parts that must be padded."""
    ranks = request.getfixturevalue(pool)
    masters = checkpoint_of(Case(stage, frozen=True), world, tmp_path, ranks)
    words = ["--from", tmp_path / "checkpoint", "--tag", "step", "--out", tmp_path / "out"]
    convert("zero", *words, "--config", tmp_path / "recipe.yaml")
    found = state_of(tmp_path / "out")
    assert_same({name: found[name] for name in masters}, masters)


@pytest.fixture(scope="module")
def checkpoint(world: Path, ranks2: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a stage-2 checkpoint."""
    folder = tmp_path_factory.mktemp("zero")
    checkpoint_of(Case(2, frozen=True), world, folder, ranks2)
    return folder


def lose_a_rank(folder: Path) -> None:
    (folder / "step" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()


def lose_the_weights(folder: Path) -> None:
    (folder / "step" / "mp_rank_00_model_states.pt").unlink()


def cut(folder: Path) -> None:
    file = folder / "step" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-200])


def point_outside(folder: Path) -> None:
    (folder / "latest").write_text("../step")


def lose_latest(folder: Path) -> None:
    (folder / "latest").unlink()


def swap(folder: Path) -> None:
    file = folder / "step" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes((folder / "step" / "mp_rank_00_model_states.pt").read_bytes())


def change_shapes(folder: Path) -> None:
    file = folder / "step" / "mp_rank_00_model_states.pt"
    content = torch.load(file, weights_only=True)
    first = next(iter(content["param_shapes"][0]))
    content["param_shapes"][0][first] = torch.Size([9999, 9999])
    torch.save(content, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_rank, "the files of 1 ranks, but 2 wrote it; copy the missing ones"),
        (lose_the_weights, r"has no \*_model_states.pt files"),
        (cut, "zero_pp_rank_1_mp_rank_00_optim_states.pt is not a complete file of torch.save"),
        (point_outside, "has no folder '../step'; its folders: step"),
        (lose_latest, "holds neither `latest` nor .* name the folder that engine.save_checkpoint"),
        (swap, r"not a ZeRO checkpoint that DeepSpeed 0.19 can put together \(KeyError"),
        (change_shapes, "not a ZeRO checkpoint that DeepSpeed 0.19 can put together"),
    ],
)
def test_what_is_not_whole_is_refused(
    damage: object, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint / "checkpoint", tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint")  # type: ignore[operator]
    words = ["--from", tmp_path / "checkpoint", "--config", checkpoint / "recipe.yaml"]
    with pytest.raises(ValueError, match=message):
        convert("zero", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_recipes_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """Overrides of the recipe on the command line count."""
    words = ["--from", checkpoint / "checkpoint", "--config", checkpoint / "recipe.yaml"]
    words += ["--methods.method.reduction", "8", "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"down_.*: \(2, 4.*\) in .*, \(2, 2.*\) by the recipe"):
        convert("zero", *words)

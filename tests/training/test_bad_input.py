"""What is wrong with a run's input is said with its name and the cure, before long work starts."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.files import read_lines
from tests.toys.rank_jobs import check_complaint, ranks_of, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_task
from tests.toys.world import picture, records, world_recipe
from vlds.cli.check_recipe import check_start
from vlds.data.order.mixed_order import check_lanes
from vlds.plan import plan_recipe
from vlds.recipe.config import Recipe
from vlds.training.faults import library_faults
from vlds.training.prepare import prepare


def with_data(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, data=replace(recipe.data, **changes))


def recomputed(recipe: Recipe, **changes: Any) -> Recipe:
    training = replace(recipe.training, activation_checkpointing=True)
    return with_data(replace(recipe, training=training), **changes)


@pytest.mark.parametrize(
    ("change", "ranks", "message"),
    [
        (lambda r, w: r, 9, "data.global_batch_size: 8 examples for 9 ranks; give at least one"),
        (
            lambda r, w: with_task(with_data(r, unit="global_batch"), "vqa", batch_size=2), 3,
            "tasks.vqa.batch_size: 2 examples for 3 ranks; .*or start 2 ranks or fewer",
        ),
        (
            lambda r, w: with_data(r, micro_batch_size=None, parts=5), 2,
            "data.parts: 5, but the smallest micro-batch of a rank has 4 examples; give at",
        ),
        (
            lambda r, w: recomputed(r, micro_batch_size=None, parts=2), 2,
            "data.parts: 2 with training.activation_checkpointing.*data.micro_batch_size",
        ),
        *(
            (
                lambda r, w, use=use: with_task(r, "vqa", **{use: [f"{w}/caption"]}), 2,
                "tasks.vqa: WORLD/caption holds samples of kind 'caption', VQA understands vqa.*"
                "name another folder or another task class",
            )
            for use in ("train", "evaluate")
        ),
        (lambda r, w: with_task(r, "caption", train=[]), 2, "tasks.caption.train: names no data"),
        (
            lambda r, w: with_task(r, "vqa", train=[f"{w}/empty"]), 2,
            "tasks.vqa: data set WORLD/empty: no dataset.json in this folder; name one.*vlds data",
        ),
        (
            lambda r, w: with_task(r, "vqa", train=[f"{w}/absent"]), 2,
            "tasks.vqa: data set WORLD/absent: no s.*vlds data",
        ),
        (
            lambda r, w: with_task(r, "vqa", train=[str(w)]), 2,
            "data sets inside it: WORLD/caption, WORLD/vqa",
        ),
    ],
)  # fmt: skip
def test_what_a_run_cannot_begin_with(
    change: Any, ranks: int, message: str, world: Path, tmp_path: Path
) -> None:
    own = tmp_path / "world"
    own.symlink_to(world)
    if "empty" in message:
        own = Path(shutil.copytree(world, tmp_path / "copy"))
        (own / "empty").mkdir()
    recipe = change(world_recipe(own, tmp_path / "run"), own)
    said = check_complaint(recipe, ranks, planned="absent" not in message)
    assert re.search(message.replace("WORLD", re.escape(str(own))), said), said


def test_a_folder_that_holds_a_run_or_none(world: Path, tmp_path: Path) -> None:
    (tmp_path / "state" / "step-00000005").mkdir(parents=True)
    message = check_complaint(world_recipe(world, tmp_path), planned=False)
    assert f"output: {tmp_path} holds a run already" in message
    assert "add --resume to continue it, or name another folder" in message
    shutil.rmtree(tmp_path / "state")
    message = check_complaint(world_recipe(world, tmp_path), resume=True, planned=False)
    assert f"--resume: {tmp_path} holds no run state" in message
    assert "leave --resume out" in message


def test_a_run_does_not_mix_with_other_files(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    data = next(iter(recipe.tasks.values())).train[0]
    for output in (data, f"{data}/run"):
        message = check_complaint(replace(recipe, output=output), planned=False)
        assert (
            message == f"output: {output} lies in {data}, which the run reads; name another folder"
        )
    artifact = tmp_path / "run" / "artifact"
    artifact.mkdir(parents=True)
    message = check_complaint(replace(recipe, start=str(artifact)), planned=False)
    again = f"output: the run reads {artifact}, and would write it again; name another folder"
    assert message == again
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    for name in ("recipe.yaml", "artifact.json", "model.safetensors"):  # as of `convert hf`
        (backbone / name).touch()
    message = check_complaint(replace(recipe, output=str(backbone)), planned=False)
    assert f"output: {backbone} holds other files (artifact.json, model.safetensors)" in message
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.png").touch()
    message = check_complaint(replace(recipe, output=str(photos)), planned=False)
    assert f"output: {photos} holds other files (0.png, 1.png and 1 more), and a run" in message


def test_a_missing_file_is_named_with_its_key(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    training = replace(recipe.training, deepspeed="zero2")
    message = r"^training\.deepspeed: no such file: zero2; did you mean"
    with pytest.raises(ValueError, match=message) as refused:
        check_start(replace(recipe, training=training), False, 1)
    with pytest.raises(ValueError, match=f"^{re.escape(str(refused.value))}$"):
        plan_recipe(replace(recipe, training=training), [1])


def test_sizes_that_make_a_run_seem_to_hang_are_told(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    cores = len(os.sched_getaffinity(0))
    large = with_data(
        recipe, num_workers=8 * cores, global_batch_size=100_000, micro_batch_size=None
    )
    said = prepare(large, ranks_of(1), False).notices
    assert f"data.num_workers: {8 * cores} loader processes start on this machine" in said[0]
    assert "data.global_batch_size: 100,000 examples a step, and the training data have" in said[1]
    assert said[1].endswith("set data.micro_batch_size to bound memory")
    with pytest.raises(ValueError, match=rf"^data.num_workers: {9 * cores} processes on this mach"):
        prepare(with_data(large, num_workers=9 * cores), ranks_of(1), False)


def zero(**settings: Any) -> dict[str, Any]:
    return {"zero_optimization": settings}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "is not JSON"),
        ({}, "has zero_optimization.stage = None; set 1, 2 or 3"),
        (zero(stage="2"), "has zero_optimization.stage = '2'; set 1, 2"),
        (
            zero(stage=2, offload_optimizer="cpu"),
            "has zero_optimization.offload_optimizer = 'cpu'; give settings, such as",
        ),
        (
            zero(stage=3, stage3_max_live_parameters=-5),
            "has zero_optimization.stage3_max_live_parameters = -5; give a number of elements",
        ),
        (zero(stage=2) | {"train_batch_size": 64}, "the recipe says 8; write "),
        (zero(stage=2) | {"optimizer": {}}, "`optimizer` section decides it"),
    ],
)
def test_deepspeeds_own_file(content: Any, message: str, world: Path, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    recipe = world_recipe(world, tmp_path / "run")
    recipe = replace(recipe, training=replace(recipe.training, deepspeed=str(file)))
    said = check_complaint(recipe, planned=content is not None)
    assert message in said
    assert str(file) in said


@pytest.mark.slow
def test_a_truncated_picture_is_replaced_and_counted(
    world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    whole = list(records("vqa", 24))
    assert whole[6].members[0][0] == "jpg"
    cut = SampleRecord(id="cut", members=[("jpg", picture("red", 6)[:300])], json=whole[6].json)
    data = tmp_path / "data"
    write_dataset(
        data, name="vqa", kind="vqa", split="train", records=[*whole[:6], cut, *whole[7:]]
    )
    recipe = with_task(world_recipe(world, tmp_path / "run"), "vqa", train=[str(data)])
    recipe = replace(recipe, tasks={"vqa": replace(recipe.tasks["vqa"], evaluate=[])})
    assert ranks2.run(run_recipe, recipe, timeout=120) == [0, 0]
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["bad_samples"] for line in lines if "loss" in line][-1] >= 1
    ledgers = (tmp_path / "run").glob("data_errors-*.jsonl")
    lines = [line for ledger in ledgers for line in read_lines(ledger)]
    assert {line["id"] for line in lines} == {"cut"}
    assert all("truncated" in line["reason"] for line in lines)


def test_errors_of_libraries_are_no_mistakes_of_the_user() -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: empty range"), library_faults():
        random.randrange(3, 3)
    with pytest.raises(ValueError, match="lanes"), library_faults():
        check_lanes(7, 64, "batch_size")

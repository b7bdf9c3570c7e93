"""A real run of two ranks that streams its shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.toys.files import read_lines
from tests.toys.rank_jobs import run_and_print
from tests.toys.rank_pool import RankPool
from tests.toys.world import world_recipe
from vlds.data.config import DataConfig
from vlds.data.errors import ErrorPolicy
from vlds.evaluation.sources import evaluation_sources, streamed_sources, training_sources
from vlds.recipe.config import Recipe, load_recipe, parse_recipe


def streamed(recipe: Recipe, world: Path) -> Recipe:
    """The same tasks from one shard of captions and three of questions, one of them at a URL;
    two processes for each rank."""
    caption, vqa = recipe.tasks["caption"], recipe.tasks["vqa"]
    shards = [f"{world}/vqa/vqa-train-0000{{0,1}}.tar", f"file://{world}/vqa/vqa-train-00002.tar"]
    tasks = {
        "vqa": replace(vqa, train=shards),
        "caption": replace(caption, train=[f"{world}/caption/caption-train-00000.tar"]),
    }
    data = DataConfig(
        global_batch_size=8, micro_batch_size=2, num_workers=2, reader="sequential",
        shuffle_buffer=8, errors=ErrorPolicy(max_bad_fraction=1.0),
    )  # fmt: skip
    return replace(recipe, tasks=tasks, data=data)


@pytest.mark.slow
def test_two_ranks_train_and_resume(world: Path, ranks2: RankPool, tmp_path: Path) -> None:
    recipe = streamed(world_recipe(world, tmp_path / "run"), world)
    short = replace(recipe, training=replace(recipe.training, steps=5))
    (code, said), (other, _) = ranks2.run(run_and_print, short, False, timeout=120)
    assert (code, other) == (0, 0)
    assert "the order of examples depends on their number; --resume begins new shards" in " ".join(
        said.split()
    )
    assert [code for code, _ in ranks2.run(run_and_print, recipe, True, timeout=120)] == [0, 0]
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert sum("loss/vqa" in line for line in steps) == 10
    assert not any("epoch/vqa" in line for line in steps)  # nobody knows
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    predictions = (tmp_path / "run/predictions/step-00000010/vqa.jsonl").read_text().splitlines()
    assert len(predictions) == 48  # evaluation reads the indexed data set, each example once


def test_what_needs_an_index_says_so(world: Path, tmp_path: Path) -> None:
    recipe = world_recipe(world, tmp_path / "run")
    shards = f"{world}/vqa/vqa-train-0000{{0..2}}.tar"
    vqa = recipe.tasks["vqa"]
    train_on = replace(recipe, tasks={"vqa": replace(vqa, train=[shards])})
    with pytest.raises(ValueError, match=r"^tasks\.vqa: .* set data\.reader to sequential; "):
        training_sources(train_on)
    score_on = replace(recipe, tasks={"vqa": replace(vqa, evaluate=[shards])})
    with pytest.raises(ValueError, match=r"^tasks\.vqa: .* put them into a folder and index it"):
        evaluation_sources(score_on)
    named = replace(train_on, data=DataConfig(reader="sequential", fields={"vqo": {"a": "b"}}))
    with pytest.raises(ValueError, match=r"^data\.fields: no task is called vqo; the tasks are"):
        streamed_sources(named)
    with pytest.raises(ValueError, match=r"^tasks\.caption: .* holds samples of kind 'vqa'"):
        streamed_sources(
            replace(named, tasks={"caption": replace(recipe.tasks["caption"], train=[shards])},
                    data=DataConfig(reader="sequential"))
        )  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "option", "message"),
    [
        ("sequential", ("--data.window", "3"), r"data\.window: got 3, which data\."),
        (
            "indexed",
            ("--data.shuffle_buffer", "5"),
            r"data\.shuffle_buffer: got 5, which data\.reader indexed",
        ),
        ("streamed", (), r"give one of indexed, sequential"),
        ("sequential", ("--data.shuffle_buffer", "0"), r"shuffle_buffer: got 0"),
    ],
)
def test_options_of_the_other_reader(reader: str, option: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", "recipes/demo.yaml", "--data.reader", reader, *option])


def test_fields_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    words = ["--data.reader", "sequential", "--data.fields", "{vqa: {question: 'json:q'}}"]
    recipe = parse_recipe(["--config", "recipes/vqa_rad.yaml", "--data.group", "1", *words])
    assert recipe.data.fields == {"vqa": {"question": "json:q"}}

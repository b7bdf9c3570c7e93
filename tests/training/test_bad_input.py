"""What is wrong with a run's input is said with its name and the cure, before long work starts."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from data_prep.cli import main
from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.class_folders import write_classes
from tests.toys.files import read_lines, write
from tests.toys.kinds import kind_recipe
from tests.toys.own_rows import pack_rows, photos, questions
from tests.toys.rank_jobs import check_complaint, ranks_of, run_recipe
from tests.toys.rank_pool import RankPool
from tests.toys.recipes import with_task
from tests.toys.world import picture, records, world_recipe
from vlds.cli.check_recipe import check_start
from vlds.data.order.mixed_order import check_lanes
from vlds.data.shards.store import open_dataset
from vlds.data.streams.sequential import StreamedSource, open_streamed
from vlds.data.streams.source import Source
from vlds.evaluation.evaluator import cut_texts, turns_left_out, unknown_words
from vlds.evaluation.sources import training_sources
from vlds.plan import plan_recipe
from vlds.recipe.config import Recipe
from vlds.schema import Turn
from vlds.tasks import VQA, ImageClass
from vlds.training import overlap
from vlds.training import prepare as preparing
from vlds.training.faults import library_faults
from vlds.training.overlap import absent_classes, compared, seen_in_training
from vlds.training.prepare import prepare
from vlds.training.run import too_often


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
            "data sets inside it: WORLD/caption, .*WORLD/vqa",
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


# What a run says about its data, length, limits and precision before the first step.


def test_classes_that_one_split_lacks(tmp_path: Path) -> None:
    def source(name: str, labels: Sequence[str | None]) -> Source:
        folder = write_classes(tmp_path / name, labels)
        return Source("classes", ImageClass(), [open_dataset(str(folder))])

    whole = source("whole", ["ant", "cat", "zebra"])
    part = source("part", ["ant", None, "cat"])
    assert list(absent_classes([whole], [whole])) == []
    assert list(absent_classes([part], [whole])) == [
        "tasks.classes.train: no picture of 1 of 3 classes ('zebra'); they cannot be learned, and "
        "count as wrong"
    ]
    assert list(absent_classes([whole], [part])) == [
        "tasks.classes.evaluate: no picture of 1 of 3 classes ('zebra'); its scores say nothing "
        "about them"
    ]


def test_more_than_a_hundred_epochs() -> None:
    assert list(too_often({"vqa": 100.0, "caption": 3.5})) == []
    (line,) = too_often({"vqa": 10_168.2, "caption": 3.5})
    assert line.startswith("more than 100 epochs of vqa (10,168): a model learns so few")


@pytest.mark.parametrize(("kind", "knows_bytes"), [("joint", False), ("image_text", True)])
def test_words_that_the_tokenizer_does_not_know(
    kind: str, knows_bytes: bool, world: Path, tmp_path: Path
) -> None:
    recipe = kind_recipe(kind, world, tmp_path)
    processor = recipe.model.load_processor()
    tokenizer = getattr(processor, "tokenizer", processor)
    sources = training_sources(recipe)
    assert unknown_words(sources, tokenizer) == []
    photos(tmp_path / "photos", "a.jpg", "b.jpg")
    rows = write(
        tmp_path / "rows.csv", "image,question,answer\na.jpg,what?,\u0436\nb.jpg,what?,red\n"
    )
    assert pack_rows(rows, tmp_path / "photos", tmp_path / "shards") == 0
    own = Source("vqa", VQA(), [open_dataset(str(tmp_path / "shards"))])
    told = [
        "tasks.vqa: the model's tokenizer does not know words or signs of 1 of the first 2 "
        "answers, such as '\u0436'; the model can never write them: name another model or tokenizer"
    ]
    assert unknown_words([own], tokenizer) == ([] if knows_bytes else told)


def told(recipe: Recipe, split: Literal["test"] | None = None) -> list[str]:
    """What is said of the texts that a recipe's limits cut."""
    collator = recipe.model.collator(recipe.model.load_processor())
    return cut_texts(training_sources(recipe), collator, split)


def test_answers_that_cannot_be_written(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)
    decoding = recipe.tasks["vqa"].decoding
    enough, few = (
        with_task(recipe, "vqa", max_prompt_tokens=100, max_target_tokens=100,
                  decoding=replace(decoding, max_new_tokens=most))
        for most in (100, 1)
    )  # fmt: skip
    few, enough = (replace(each, tasks={"vqa": each.tasks["vqa"]}) for each in (few, enough))
    assert told(enough) == []
    (line,) = told(few)
    assert line.startswith("tasks.vqa.decoding.max_new_tokens: 1 is too few to write ")
    assert told(few, "test") == [f"{line} of tasks.vqa.test"]


class Words:
    """Counts words."""

    def turns_length(self, turns: Sequence[Turn]) -> int:
        return sum(len(text.split()) for turn in turns for text in turn.texts)


def test_turns_that_are_left_out_of_conversations(world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)
    (source, *_) = training_sources(recipe)
    talks = [
        [Turn("user", ("a b c",)), Turn("assistant", ("d",)), Turn("user", ("e f",))],
        [Turn("user", ("a b c d e f g",))],
        [Turn("user", ("a",))],
    ]
    short = replace(source, task=replace(source.task, max_prompt_tokens=4))
    assert list(turns_left_out(short, talks, Words())) == [  # type: ignore[arg-type]
        "tasks.vqa.max_prompt_tokens: 4 leaves out 2 turns, the oldest, of 1 of the first 3 "
        "conversations",
        "tasks.vqa.max_prompt_tokens: 4 cuts the last question of 1 of the first 3 conversations",
    ]


@pytest.mark.parametrize(
    ("precision", "slowdown", "message"),
    [
        ("bf16", 39.6, "bf16 products take 40 times as long .*--training.precision fp32"),
        ("bf16", 0.6, None),
        ("fp32", None, None),  # never measured
    ],
)
def test_what_a_cpu_emulates_is_told(
    precision: str, slowdown: float | None, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = pytest.fail if slowdown is None else lambda dtype: slowdown
    monkeypatch.setattr(preparing, "slowdown", measured)
    said = preparing.check_precision(precision, torch.device("cpu"))
    assert re.search(message, said or "") if message else said is None


def test_what_a_gpu_emulates_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "emulates_bf16", lambda device: True)
    monkeypatch.setattr(preparing, "device_name", lambda device: "Tesla T4")
    said = preparing.check_precision("bf16", torch.device("cuda"))
    assert said is not None
    assert said.startswith("training.precision: Tesla T4 has no instructions for bf16")
    assert "--training.precision fp16" in said
    monkeypatch.setattr(preparing, "slowdown", lambda dtype: pytest.fail("measured"))
    monkeypatch.setattr(preparing, "emulates_bf16", lambda device: False)
    assert preparing.check_precision("bf16", torch.device("cuda")) is None


@pytest.fixture
def packed(tmp_path: Path) -> dict[str, Path]:
    """Four pictures; three of them, of which one has another name; another one."""
    folder = photos(tmp_path / "photos", *(f"{name}.jpg" for name in "abcd"), "other.jpg")
    (folder / "copy.jpg").write_bytes((folder / "a.jpg").read_bytes())
    sets = {"whole": "abcd", "part": ("b", "copy", "c"), "new": ("other",)}
    for name, pictures in sets.items():
        rows = write(tmp_path / f"{name}.csv", questions(*pictures))
        assert pack_rows(rows, folder, tmp_path / name) == 0
    return {name: tmp_path / name for name in sets}


def source(*folders: Path) -> Source:
    return Source("vqa", VQA(), [open_dataset(str(folder)) for folder in folders])


def seen(train: Sequence[Path], evaluate: Sequence[Path]) -> list[str]:
    return list(seen_in_training([source(*train)], [source(*evaluate)]))


def test_rows_word_for_word(packed: dict[str, Path], tmp_path: Path) -> None:
    """Of a picture in both, questions may differ; rows without pictures are told by their words."""
    (line,) = seen([packed["whole"]], [packed["part"]])
    assert ", and 1 of its rows word for word; scores" in line  # of c, the third in both
    again = pack_rows(
        write(tmp_path / "again.csv", questions("a", "other", "c")), tmp_path / "photos",
        tmp_path / "again",
    )  # fmt: skip
    assert again == 0
    (line,) = seen([packed["whole"]], [tmp_path / "again"])
    assert "2 of its pictures are in training data too, such as that of " in line
    assert ", and 2 of its rows word for word; scores" in line
    for name, rows in (("talk", ["What is up?", "Is it late?"]), ("more", ["Is it late?"])):
        turns = [{"question": text, "answer": "yes"} for text in rows]
        file = write(tmp_path / f"{name}.json", turns)
        words = ["--annotations", str(file), "--out", str(tmp_path / name)]
        assert main(["chat", *words]) == 0
    (line,) = seen([tmp_path / "talk"], [tmp_path / "more"])
    assert line.startswith(
        "tasks.vqa.evaluate: 1 of its rows are in training data too, word for word, such as one of "
    )


def test_rows_of_one_file_whose_pictures_were_stored_otherwise(
    packed: dict[str, Path], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    more = ("--image-size", "10")
    assert pack_rows(tmp_path / "whole.csv", tmp_path / "photos", small, *more) == 0
    (line,) = seen([packed["whole"]], [small])
    assert line.startswith("tasks.vqa.evaluate: 4 of its samples are made from the same rows as ")
    # Another file's pictures may have the same names.
    other = write(tmp_path / "other" / "rows.csv", questions("a", "b", "c", "d", "e")[:-1])
    names = [f"{name}.jpg" for name in "eabcd"]
    assert pack_rows(other, photos(tmp_path / "others", *names), tmp_path / "new2") == 0
    assert seen([small], [tmp_path / "new2"]) == []


def test_data_for_the_test_at_the_end(packed: dict[str, Path], world: Path, tmp_path: Path) -> None:
    recipe = kind_recipe("joint", world, tmp_path)

    def lines(*folders: str) -> list[str]:
        task = replace(recipe.tasks["vqa"], train=[str(packed["whole"])], test=list(folders))
        own = replace(recipe, tasks={"vqa": task})
        tested, notices = overlap.test_sources(own)
        return [*notices, *compared(training_sources(own), tested)]

    (line,) = lines(str(packed["part"]), "s3://bucket/is-not-fetched")
    assert line.startswith("tasks.vqa.test: 3 of its pictures are in training data too, such as")
    assert lines(str(packed["new"])) == []
    (line,) = lines(str(tmp_path / "missing"))
    assert line.startswith("tasks.vqa.test: data set ")
    assert line.endswith("the run goes on: it does not read them")


def test_groups(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", *(f"{name}.jpg" for name in "abcd"))
    for name, cells in (("learned", ("a,p1", "b,p2")), ("scored", ("c,p2", "d,p3"))):
        lines = [f"{cell[0]}.jpg,what?,it,{cell[2:]}" for cell in cells]
        table = "\n".join(["image,question,answer,patient", *lines])
        file = write(tmp_path / f"{name}.csv", table)
        assert pack_rows(file, folder, tmp_path / name, "--group-field", "patient") == 0
    (line,) = seen([tmp_path / "learned"], [tmp_path / "scored"])
    assert line.startswith(
        "tasks.vqa.evaluate: 1 of its groups are in training data too, such as 'p2' of 'patient' "
        "(in tasks.vqa.train); "
    )


def test_of_streamed_shards_the_folder_is_compared(packed: dict[str, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(packed["whole"])
    (shard,) = packed["whole"].glob("*.tar")
    for location in (link, shard):
        streamed = StreamedSource("vqa", VQA(), [open_streamed(str(location), ("vqa",), None)])
        (line,) = seen_in_training([streamed], [source(packed["whole"], packed["part"])])
        assert line.startswith(f"tasks.vqa.evaluate: {packed['whole']} is in tasks.vqa.train too")

"""`vlds init`: the recipe that it writes for packed data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from jsonschema import Draft7Validator

from data_prep.cli import main
from tests.toys.class_folders import write_classes
from tests.toys.files import write
from tests.toys.hub import Hub, running_hub
from tests.toys.image_text import save_tiny
from tests.toys.own_rows import pack_rows, photos
from vlds.cli import init
from vlds.cli.init import look_at, next_commands, recipe_of, run_init
from vlds.data.shards.store import open_dataset
from vlds.models.kinds.joint import JointSeq2Seq
from vlds.models.loading import model_files
from vlds.recipe.build import to_yaml
from vlds.recipe.config import Recipe, parse_recipe
from vlds.tasks import VQA, Caption, Chat, ImageClass

NAMES = tuple(f"p{number}.jpg" for number in range(20))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "has_gpu_driver", lambda: False)
    photos(tmp_path / "photos", *NAMES)
    return tmp_path


def pack(desk: Path, *lines: str, task: str = "vqa") -> Path:
    rows = write(desk / ("rows.jsonl" if lines[0][0] == "{" else "rows.csv"), "\n".join(lines))
    # Splits are found in any case.
    sizes = ("--split-sizes", "Val=0.3", "TEST=0.3")
    assert pack_rows(rows, desk / "photos", desk / "shards" / "mine", *sizes, task=task) == 0
    return desk / "shards" / "mine"


def pack_questions(desk: Path) -> Path:
    lines = (f"{name},what is {number}?,{number}" for number, name in enumerate(NAMES))
    return pack(desk, "image,question,answer", *lines)


def recipe_for(folder: Path, model: str | None = None) -> Recipe:
    tree = recipe_of(look_at("mine", folder), model)
    write(folder.parents[1] / "mine.yaml", to_yaml(tree))
    return parse_recipe([str(folder.parents[1] / "mine.yaml")])


CHINESE = "这是一只在海滩上奔跑的棕色小狗" * 3
CODE = "LOT-" + "0123456789" * 9


@pytest.mark.parametrize(
    ("question", "answer", "limits"),
    [("what is it?", " ".join(["word"] * 40), (20, 80)), (CODE, CHINESE, (31, len(CHINESE)))],
)
def test_questions(desk: Path, question: str, answer: str, limits: tuple[int, int]) -> None:
    folder = pack(desk, "image,question,answer", *(f"{n},{question},{answer}" for n in NAMES))
    recipe = recipe_for(folder)
    hostile = replace(look_at("mine", folder), name="$(date)")
    assert next_commands(hostile)[0] == ("train", "vlds train '$(date).yaml'")
    task = recipe.tasks["vqa"]
    assert isinstance(task, VQA)
    assert (task.train, task.evaluate, task.test) == tuple(
        [f"{folder}/{split}"] for split in ("train", "Val", "TEST")
    )
    # Nothing is cut: two tokens a word, and some room; words may have no blanks.
    assert task.max_target_tokens >= task.decoding.max_new_tokens >= limits[1]
    assert limits[0] <= task.max_prompt_tokens <= 5 * limits[0]
    training = recipe.training
    assert (training.steps, training.epochs) == (None, 30)
    assert training.best == "vqa/exact_match"
    assert training.evaluate_every >= 1
    assert recipe.output == "runs/mine"


def test_the_task_and_its_score_are_those_of_the_data(desk: Path) -> None:
    ten = json.dumps(["red"] * 9 + ["blue"])
    rows = [f'{{"image": "{name}", "question": "what?", "answer": {ten}}}' for name in NAMES]
    assert recipe_for(pack(desk, *rows)).training.best == "vqa/vqa_accuracy"
    shutil.rmtree(desk / "shards")
    lines = [f"{name},a thing of {number}" for number, name in enumerate(NAMES)]
    recipe = recipe_for(pack(desk, "image,caption", *lines, task="caption"))
    assert isinstance(recipe.tasks["caption"], Caption)
    assert recipe.training.best == "caption/word_f1"
    folder = write_classes(desk / "shards" / "kinds" / "train").parent
    recipe = recipe_for(folder)
    task = recipe.tasks["classes"]
    assert isinstance(task, ImageClass)
    assert task.decoding.answers == f"{folder}/train/dataset.json"
    # Without a split to evaluate on there is nothing to choose from.
    assert (task.evaluate, recipe.training.best) == ([], None)


def test_a_named_model_is_tuned_with_lora(desk: Path) -> None:
    write(desk / "model" / "config.json", json.dumps({"model_type": "llava", "vision_config": {}}))
    for name in ("model.safetensors", "preprocessor_config.json"):
        write(desk / "model" / name, "")
    assert init.model_for("model")[0] == "model"
    recipe = recipe_for(pack_questions(desk), "model")
    assert recipe.methods.keys() == {"lora"}
    assert recipe.training.epochs == 3
    assert type(recipe.model).__name__ == "ImageTextToText"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "model is not in Hugging Face's cache, and HF_HUB_OFFLINE forbids a download; name"),
        ("", "holds no config.json"),
        ('{"vision_config": {}}', r"holds no weights \(\*\.safetensors or \*\.bin\); copy"),
        ('{"model_type": "t5"}', "is a model of the type t5, which reads no pictures by itself"),
    ],
)
def test_models_that_do_not_do(
    config: str | None, message: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model_files._check_name.cache_clear()
    if config is not None:
        (desk / "model").mkdir()
    if config:
        write(desk / "model" / "config.json", config)
    with pytest.raises(ValueError, match=message):
        run_init(desk / "photos", None, "model", [])
    assert not (desk / "shards").exists()


@pytest.fixture
def hub(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the model for a GPU, which this machine says it has."""
    save_tiny("llava", desk / "published")
    monkeypatch.setattr(init, "has_gpu_driver", lambda: True)
    with running_hub() as hub:
        hub.published[init.HUB_MODEL] = desk / "published"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(desk / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        forget()
        yield hub
        forget()


def forget() -> None:
    """As in a new process: what is known of the hub."""
    model_files._check_name.cache_clear()
    model_files._snapshot.cache_clear()


def test_with_a_gpu_and_a_hub_that_answers(hub: Hub, desk: Path) -> None:
    model, why = init.model_for(None)
    assert (model, why) == (
        init.HUB_MODEL,
        f"{init.HUB_MODEL} with LoRA, as this machine has a GPU (--model: another)",
    )
    # No weights yet, which the run downloads.
    assert not list((desk / "cache").rglob("*.safetensors"))
    recipe = recipe_for(pack_questions(desk), model)
    training = recipe.training
    assert (training.precision, training.activation_checkpointing) == ("bf16", True)
    assert recipe.methods.keys() == {"lora"}
    recipe.model.check_sources()
    with pytest.raises(ValueError, match="no such model on the Hugging Face hub: some/other"):
        init.model_for("some/other")


def test_with_a_gpu_and_no_hub_the_cache_decides(
    hub: Hub, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = model_files.fetch(init.HUB_MODEL, "model.path", "")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, why = init.model_for(None)
    assert model is None
    assert why == (
        f"a small model from random weights, as {init.HUB_MODEL} cannot be had here (--model: "
        "another)"
    )
    assert "holds no weights" in capsys.readouterr().out
    write(configs / "model.safetensors", "")
    assert init.model_for(None)[0] == init.HUB_MODEL


def test_conversations_without_weights(desk: Path) -> None:
    """The small model learns them too, from each answer with the turns before it."""
    said = zip(("user", "assistant") * 2, ("<image>Who?", "Ann.", "<image>?", "Bo."), strict=True)
    turns = [{"role": role, "content": text} for role, text in said]
    pairs = zip(NAMES[::2], NAMES[1::2], strict=True)
    rows = [json.dumps({"images": pair, "messages": turns}) for pair in pairs]
    write(desk / "talks.jsonl", "\n".join(rows))
    words = ["own", "--data", "talks.jsonl", "--images", "photos", "--out", "shards/mine"]
    assert main([*words, "--each-turn"]) == 0
    recipe = recipe_for(desk / "shards" / "mine")
    assert isinstance(recipe.tasks["chat"], Chat)
    assert isinstance(recipe.model, JointSeq2Seq)
    assert recipe.model.visual_embedding.num_images == 2
    folders = [Path(f"shards/mine/{split}") for split in ("train", "val", "test")]
    # Two answers of each conversation.
    assert sum(open_dataset(folder).num_annotations for folder in folders) == 2 * len(rows)


def test_the_recipe_names_the_schema_that_it_fits(desk: Path) -> None:
    pack_questions(desk)
    assert run_init(desk / "rows.csv", "mine", None, []) == 0
    text = (desk / "mine.yaml").read_text("utf-8")
    name = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    schema = Draft7Validator(json.loads((desk / name).read_text("utf-8")))
    assert schema.is_valid(yaml.safe_load(text))
    assert not schema.is_valid({"outptu": "runs/mine"})


def test_what_an_ended_command_has_packed_is_packed_again(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its data and recipe, which are as if it had not been ended."""
    lines = [f"{name},what is it?,{number % 2}" for number, name in enumerate(NAMES)]
    rows = write(desk / "rows.csv", "\n".join(["image,question,answer", *lines]))
    words = ["--images", "photos"]
    assert run_init(rows, "mine", None, words) == 0
    recipe, train = desk / "mine.yaml", desk / "shards" / "mine" / "train"
    with pytest.raises(ValueError, match=r"mine\.yaml exists; remove it \(and shards"):
        run_init(rows, "mine", None, words)
    whole = recipe.read_text(), open_dataset(train).info.samples
    recipe.unlink()
    # What is learned is written last.
    shutil.rmtree(train)
    assert run_init(rows, "mine", None, words) == 0
    assert (recipe.read_text(), open_dataset(train).info.samples) == whole
    assert "is there and stays" not in capsys.readouterr().out
    # A mistake in its words ends it, and writes nothing.
    assert run_init(rows, "other", None, ["--answer-feld", "x"]) == 2
    assert not (desk / "other.yaml").exists()

"""Model cards: what the hub reads of them, what they say, and that their code runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from tests.toys.causal import causal_recipe, save_model
from tests.toys.files import ROOT
from tests.toys.image_text import TYPES
from tests.toys.image_text.rows import tiny
from tests.toys.models import shake
from tests.toys.trained_runs import convert, recipe_with, save_run, trained_run, write_run
from tests.toys.world import world_recipe
from vlds.artifact import LoadedRun, TrainedOn, load_run, read_trained_on
from vlds.convert.bases import base_of, license_fields
from vlds.convert.card import (
    fenced,
    table,
    without_places,
)
from vlds.evaluation.inference import predict
from vlds.evaluation.result import Evaluation, Scored, write_scores
from vlds.models.build import build_model
from vlds.models.methods import LoRA, Method
from vlds.recipe.config import Recipe
from vlds.runtime.artifact_files import WEIGHTS
from vlds.runtime.json_files import recorded_hash

LORA = LoRA(rank=2, alpha=2.0, train_biases=False, roles=["attn_q", "attn_out"])


def run_of(recipe: Recipe) -> Path:
    """The folder of a run whose method has trained."""
    kind = recipe.model
    processor = kind.load_processor()
    setup, tasks = recipe.model_setup, list(recipe.tasks)
    model = build_model(setup, tasks, recipe.training.dtype, processor).eval()
    shake(model)
    return save_run(LoadedRun(recipe, processor, model))


def image_text_run(
    world: Path, folder: Path, method: Method = LORA, model_type: str = "qwen2_vl", **fields: Any
) -> tuple[Path, Path]:
    """The folder of a run, and that of its base."""
    kind = replace(tiny(model_type).kind, **fields)
    recipe = replace(world_recipe(world, folder / "run"), model=kind, methods={"mine": method})
    return run_of(recipe), Path(str(kind.path))


def snippets(folder: Path) -> list[str]:
    """The code on a folder's card."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def output_of(code: str, folder: Path) -> str:
    """Run code beside a converted folder; what it prints."""
    picture = Image.new("RGB", (40, 30), (220, 30, 30))
    picture.save(folder.parent / "photo.jpg")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
        },
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def card_of(folder: Path) -> tuple[Mapping[str, Any], str]:
    """What the hub reads of a card, and its text."""
    card = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def answer_of(run: Path, folder: Path) -> str:
    """What the run itself says to the card's question."""
    picture = (folder.parent / "photo.jpg").read_bytes()
    return predict(load_run(run), "vqa", [picture], "What is in the picture?").text


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_the_code_of_each_type(
    model_type: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = image_text_run(world, tmp_path, model_type=model_type)
    convert("merge", "--run", run, "--out", tmp_path / "out")
    Image.new("RGB", (40, 30), (220, 30, 30)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = snippets(tmp_path / "out")
    said = StringIO()
    with redirect_stdout(said):
        exec(code, {})
    has_template = load_run(run).processor.chat_template is not None
    expected = answer_of(run, tmp_path / "out") if has_template else ""
    # The task writes answers in small letters, the card's code what the model says.
    assert said.getvalue().strip().lower() == expected


@pytest.mark.slow
def test_a_causal_model(world: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "words")
    recipe = causal_recipe(tmp_path, world, tmp_path / "run", path=str(tmp_path / "words"))
    run = run_of(replace(recipe, methods={"mine": LORA}))
    out = tmp_path / "hf"
    convert("merge", "--run", run, "--out", out)
    assert card_of(out)[0]["library_name"] == "vlds"
    whole, alone = snippets(out)
    assert output_of(whole, out) == answer_of(run, out)
    output_of(alone, out)


@pytest.mark.slow
def test_an_encoder_decoder(world: Path, tmp_path: Path) -> None:
    run = write_run(recipe_with("T5", "LoRA half", world, tmp_path))
    convert("hf", "--run", run, "--out", tmp_path / "backbone")
    convert("peft", "--run", run, "--out", tmp_path / "lora")
    whole, alone = snippets(tmp_path / "backbone")
    assert output_of(whole, tmp_path / "backbone") == answer_of(run, tmp_path / "backbone")
    output_of(alone, tmp_path / "backbone")
    data, text = card_of(tmp_path / "lora")
    assert "pipeline_tag" not in data
    assert "Each task has a folder: `vqa`, `caption`." in text
    (code,) = snippets(tmp_path / "lora")
    output_of(code, tmp_path / "lora")


@pytest.fixture(scope="module")
def described(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with scores and a base whose card names a licence, converted; the folder's parent."""
    folder = tmp_path_factory.mktemp("described")
    recipe = recipe_with("T5", "LoRA", world, folder)
    data = ["hf://datasets/owner/colours/train", str(world / "vqa")]
    vqa = replace(recipe.tasks["vqa"], train=data, prompt="für vqa: ")
    trained = trained_run(replace(recipe, tasks={**recipe.tasks, "vqa": vqa}))
    run = save_run(replace(trained, trained_on={"vqa": TrainedOn(1234, 1)}))
    source = Path(str(recipe.model.backbone.path))
    card = "---\nlicense: other\nlicense_name: tiny-1\nlicense_link: LICENSE\n---\n# Source\n"
    (source / "README.md").write_text(card)
    name_source(source)
    write_changed(run)
    write_evaluation(run, {"accuracy": 0.75, "accuracy/type/yes": 0.5})
    convert("peft", "--run", run, "--out", folder / "out")
    return folder


def write_evaluation(run: Path, scores: Mapping[str, float]) -> None:
    """Scores of the run's weights, as `vlds evaluate` leaves them."""
    weights = recorded_hash(run / "artifact", WEIGHTS)
    (run / "predictions").mkdir()
    scored = Scored("vqa-test@12ab", 1200, scores, weights=weights)
    write_scores(run / "predictions", {"vqa": scored})


def base_in(folder: Path) -> str | None:
    config = json.loads((folder / "adapter_config.json").read_text())
    name: str | None = config["base_model_name_or_path"]
    return name


def name_source(folder: Path) -> None:
    """Let a folder's config say that it is a model on the hub."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "owner/source"}))


def lora_run(words: Path, world: Path, folder: Path) -> Path:
    """A run of a causal model whose weights lie in a folder and whose config names a hub model."""
    words.parent.mkdir(parents=True, exist_ok=True)
    save_model(words)
    name_source(words)
    recipe = causal_recipe(folder, world, folder / "run", path=str(words), train_projector=False)
    return run_of(replace(recipe, methods={"mine": LORA}))


@pytest.mark.slow
def test_the_base_is_the_hub_model_that_the_weights_are_from(world: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--owner--source" / "snapshots" / "1234"
    run = lora_run(cached, world, tmp_path)
    convert("peft", "--run", run, "--out", tmp_path / "default")
    assert base_in(tmp_path / "default") == "owner/source"
    convert("peft", "--run", run, "--out", tmp_path / "named", "--base", "NAME")
    assert base_in(tmp_path / "named") == "NAME"
    assert "They are for `NAME`." in card_of(tmp_path / "named")[1]


@pytest.mark.slow
def test_a_folder_may_differ_from_the_hub_model_that_its_config_names(
    world: Path, tmp_path: Path
) -> None:
    run = lora_run(tmp_path / "tuned", world, tmp_path)
    convert("peft", "--run", run, "--out", tmp_path / "out")
    assert base_in(tmp_path / "out") is None


def write_changed(run: Path) -> None:
    """Save a run anew after a file of its base has changed."""
    from vlds.artifact import own_tensors, read_recipe, save_artifact
    from vlds.runtime.artifact_files import artifact_folder

    recipe = read_recipe(artifact_folder(run))
    processor = recipe.model.load_processor()
    model = build_model(recipe.model_setup, list(recipe.tasks), recipe.training.dtype, processor)
    known = read_trained_on(run / "artifact")
    save_artifact(run / "artifact", own_tensors(model), recipe, processor, trained_on=known)


@pytest.mark.slow
def test_what_the_card_knows(described: Path, world: Path) -> None:
    data, text = card_of(described / "out")
    assert data["base_model"] == "owner/source"
    assert data["datasets"] == ["owner/colours"]
    assert [data[name] for name in ("license", "license_name", "license_link")] == [
        "other",
        "tiny-1",
        "LICENSE",
    ]
    assert "- `source` (backbone): tiny-1, LICENSE." in text
    assert "| vqa | vqa-test | 1,200 | accuracy | 0.7500 |" in text
    assert "accuracy/type" not in text
    assert "| vqa | VQA | hf://datasets/owner/colours/train, vqa | 1,234 | vqa |" in text
    assert "caption |  | " in text  # nobody has counted its examples


def test_the_recipe_without_places(described: Path, world: Path) -> None:
    _, text = card_of(described / "out")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    tree = yaml.safe_load(recipe)
    assert tree["methods"]["method"]["class_path"] == "LoRA"
    assert tree["tasks"]["vqa"]["init_args"]["evaluate"] == ["vqa"]
    assert tree["output"] == "run"
    assert "für vqa: " in recipe
    for place in (described, world, Path.cwd(), Path.home()):
        assert f"{place}/" not in text


@pytest.mark.slow
def test_scores_of_the_training(world: Path, tmp_path: Path) -> None:
    """Of the step that the artifact is of, and of no other."""
    recipe = recipe_with("T5", "LoRA", world, tmp_path)
    run = write_run(recipe)
    lines = [{"step": 5, "scores": {"vqa": {"accuracy": 0.25}}}]
    (run / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    convert("peft", "--run", run, "--out", tmp_path / "early")
    assert "## Scores" not in card_of(tmp_path / "early")[1]
    lines.append({"step": recipe.training.num_steps, "scores": {"vqa": {"accuracy": 0.5}}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    convert("peft", "--run", run, "--out", tmp_path / "last")
    assert "| vqa |  |  | accuracy | 0.5000 |" in card_of(tmp_path / "last")[1]
    predictions = run / "predictions" / f"step-{recipe.training.num_steps:08d}"
    predicted = {"1": "red", "2": "blue"}
    Evaluation("vqa", {}, predicted, predicted, data="mine-test@12ab").write(predictions)
    convert("peft", "--run", run, "--out", tmp_path / "named")
    assert "| vqa | mine-test | 2 | accuracy | 0.5000 |" in card_of(tmp_path / "named")[1]


@pytest.mark.slow
def test_scores_of_other_weights(world: Path, tmp_path: Path) -> None:
    """A run that was evaluated and then trained on keeps the old scores.json."""
    run = write_run(recipe_with("T5", "LoRA", world, tmp_path))
    write_evaluation(run, {"accuracy": 0.75})
    convert("peft", "--run", run, "--out", tmp_path / "before")
    assert "| accuracy | 0.7500 |" in card_of(tmp_path / "before")[1]
    write_changed(run)
    convert("peft", "--run", run, "--out", tmp_path / "after")
    assert "## Scores" not in card_of(tmp_path / "after")[1]


def test_a_card_may_be_edited(world: Path, tmp_path: Path) -> None:
    run = write_run(recipe_with("T5", "LoRA", world, tmp_path))
    convert("merge", "--run", run, "--out", tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("mine")
    assert load_run(tmp_path / "out").recipe.tasks.keys() == {"vqa", "caption"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data/my sets/vqa", "vqa"),
        ("~/vqa", "vqa"),
        ("~somebody/sets/vqa", "vqa"),
        ("$HOME/sets/vqa", "vqa"),
        ("shards/vqa", "shards/vqa"),
        ("../sets/vqa", "vqa"),
        ("runs/../../sets/vqa", "vqa"),
        ("file:///data/vqa", "vqa"),
        ("https://host/data/vqa", "https://host/data/vqa"),
        ("pipe:cat /data/sets/vqa-{0..3}.tar", "pipe:cat vqa-{0..3}.tar"),
        ("yes/no/maybe: ", "yes/no/maybe: "),
        ("true / false", "true / false"),
        ({"a": ["/data/b", 1, None]}, {"a": ["b", 1, None]}),
    ],
)
def test_places_become_names(value: Any, expected: Any) -> None:
    assert without_places(value) == expected


def test_text_that_would_break_out() -> None:
    assert fenced("a\n```\nb", "yaml") == "````yaml\na\n```\nb\n````"
    assert table(["a", "b"], [["x|y", "1\n2"]]).splitlines()[-1] == "| x\\|y | 1 2 |"
    assert table(["a"], []) == ""


@pytest.mark.parametrize(
    "name", ["x\n\n## Use", "[a](javascript:alert(1))", "`x`", "<b>", "x" * 201]
)
def test_licences_with_markup_are_unknown(name: str) -> None:
    """The base's card is anybody's text."""
    given = {"license": "other", "license_link": "https://example.com/LICENSE"}
    assert license_fields(given | {"license_name": name}) == given
    assert license_fields({"license": name}) == {}


def test_names_of_bases(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--tiny-1b" / "snapshots" / "12ab"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"license": "mit"}')
    base = base_of("backbone", str(snapshot))
    assert (base.name, base.hub_name, base.license) == (
        "owner/tiny-1b",
        "owner/tiny-1b",
        {"license": "mit"},
    )
    (snapshot / "README.md").write_text("---\n: [broken\n---\n")
    assert base_of("backbone", str(snapshot)).license == {"license": "mit"}
    weights = tmp_path / "vision.safetensors"
    weights.touch()
    base = base_of("vision", str(weights))
    assert (base.name, base.hub_name, base.license) == ("vision.safetensors", None, {})

"""What a run leaves is small, complete, and gives the same numbers in another process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toys.files import write
from tests.toys.kinds import SLOW_KINDS
from tests.toys.models import hf_config
from tests.toys.rank_pool import RankPool
from tests.toys.trained_runs import OLD_ROWS, recipe_from, recipe_with, save_random_run, write_run
from tests.toys.web import Web
from tests.toys.world import picture
from vlds.artifact import LoadedRun, load_run
from vlds.cli.main import run_command
from vlds.convert.verify import logits
from vlds.models.backbones import T5
from vlds.prove.command import recipe_of_run
from vlds.runtime.artifact_files import BEST, WEIGHTS, tell_model
from vlds.runtime.json_files import write_manifest
from vlds.runtime.process import find


def slow(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


SOURCES = pytest.mark.parametrize("source", ["T5", *SLOW_KINDS])


def load_elsewhere(run: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and tensors of a run that another process has loaded."""
    loaded = load_run(run)
    return logits(loaded, "vqa", ()), dict(loaded.model.unique_state())


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("source", "precision"),
    [
        ("T5", "fp32"),
        ("T5", "bf16"),
        ("FLAN", "bf16"),
        ("Bart", "fp32"),
        ("config", "fp32"),
        ("causal", "fp32"),
        ("causal", "bf16"),
        ("image_text", "fp32"),
        ("image_text", "bf16"),
    ],
)
def test_the_same_logits_in_another_process(
    source: str, precision: str, world: Path, ranks2: RankPool, tmp_path: Path
) -> None:
    recipe = recipe_from(source, world, tmp_path, precision)
    expected, state = save_random_run(recipe)
    for found, loaded in ranks2.run(load_elsewhere, Path(recipe.output)):
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
        assert torch.equal(found, expected)


@pytest.mark.parametrize("source", ["T5", "config", *map(slow, ("Bart", "FLAN"))])
def test_only_what_the_source_lacks_is_stored(source: str, world: Path, tmp_path: Path) -> None:
    """Everything where there is none."""
    recipe = recipe_from(source, world, tmp_path)
    save_random_run(recipe)
    artifact = Path(recipe.output) / "artifact"
    stored = load_file(artifact / "weights.safetensors")
    model = load_run(Path(recipe.output)).model
    state = [name for name, _ in model.unique_state()]
    if source == "config":
        assert stored.keys() == set(state)
        return
    description = json.loads((artifact / "artifact.json").read_text())
    assert (description["format"], {*description["sources"]}) == (1, {"backbone"})
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    visual = {name for name in state if name.startswith(("vision.", "visual_embedding."))}
    tables = ["model.shared.weight" if source == "Bart" else "shared.weight"]
    if source == "FLAN":
        tables.append("lm_head.weight")
    rows = {f"backbone.{table}[{OLD_ROWS}:]" for table in tables}
    others = {"backbone.final_logits_bias"} if source == "Bart" else set()
    assert stored.keys() == trained | visual | rows | others
    new_rows = len(recipe.model.backbone.load_tokenizer()) - OLD_ROWS
    assert all(stored[name].shape == (new_rows, 16) for name in rows)
    assert new_rows >= 4


@SOURCES
def test_a_run_moves_with_its_folder(source: str, world: Path, tmp_path: Path) -> None:
    recipe = recipe_from(source, world, tmp_path)
    expected, _ = save_random_run(recipe)
    moved = tmp_path / "elsewhere"
    shutil.move(Path(recipe.output) / "artifact", moved)
    loaded = load_run(moved)
    assert isinstance(loaded, LoadedRun)
    assert torch.equal(logits(loaded, "vqa", ()), expected)


@pytest.fixture
def source() -> str:
    """The kind of model, where a test names no other."""
    return "T5"


@pytest.fixture
def artifact(source: str, world: Path, tmp_path: Path) -> Path:
    """The artifact of a run with a model of tmp_path / "source"."""
    recipe = recipe_from(source, world, tmp_path)
    save_random_run(recipe)
    return Path(recipe.output) / "artifact"


def message_of(run: Path) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each test looks at the message)
        load_run(run)
    return str(error.value)


def test_no_artifact(tmp_path: Path) -> None:
    message = message_of(tmp_path)
    assert f"{tmp_path} holds no artifact" in message
    assert "name the folder that `vlds train` wrote" in message
    (tmp_path / "state").mkdir()
    assert "is a run that has not ended, and holds no artifact yet" in message_of(tmp_path)


@SOURCES
@pytest.mark.parametrize("change", ["flip", "cut", "missing", "unfinished"])
def test_a_damaged_artifact(artifact: Path, change: str) -> None:
    file = artifact / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    if change == "flip":
        file.write_bytes(content)
    elif change == "cut":
        file.write_bytes(content[:-1])
    else:
        (file if change == "missing" else artifact / "manifest.json").unlink()
    message = message_of(artifact.parent)
    expected = {"missing": "weights.safetensors is missing", "unfinished": "not written to the end"}
    assert expected.get(change, "weights.safetensors is not what was written") in message
    assert str(artifact) in message
    assert "copy it again" in message


@pytest.mark.sampled(2)
@SOURCES
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("recipe.yaml", None, "manifest.json does not list recipe.yaml"),
        ("recipe.yaml", "tasks: [", "recipe.yaml cannot be read (ValueError"),
        ("artifact.json", "{", "artifact.json cannot be read (JSONDecodeError"),
        ("artifact.json", "[]", "artifact.json cannot be read (TypeError"),
        ("artifact.json", '{"format": 1}', "artifact.json cannot be read (KeyError: 'sources'"),
        ("artifact.json", '{"format": 99, "sources": {}}', "artifact.json has format 99, and this"),
        ("weights.safetensors", "xx", "weights.safetensors cannot be read (SafetensorError"),
        ("processor/tokenizer.json", "{", "processor cannot be read ("),
    ],
)
def test_damage_that_the_manifest_does_not_show(
    name: str, text: str | None, message: str, artifact: Path
) -> None:
    """Somebody changed a file and wrote a new manifest."""
    (artifact / name).unlink()
    if text is not None:
        (artifact / name).write_text(text)
    write_manifest(artifact)
    said = message_of(artifact)
    assert f"artifact {artifact}: {message}" in said
    assert ("take the version of vlds" if "99" in message else "copy it again") in said


def test_another_backbone_in_the_same_place(artifact: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    T5.model_class(T5.config_class.from_dict(hf_config(T5, OLD_ROWS))).save_pretrained(
        tmp_path / "source"
    )
    message = message_of(artifact)
    assert f"artifact {artifact} was trained on another backbone" in message
    assert str(tmp_path / "source") in message
    assert "bring the original files back" in message


@SOURCES
def test_a_backbone_that_is_gone(source: str, artifact: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "source")
    message = message_of(artifact)
    name = "language model" if source == "causal" else "backbone"
    assert f"its {name} is missing: no {tmp_path / 'source'}; copy it there from where" in message


PROJECTION = "visual_embedding.feature_projection.weight"


def with_value(value: float, tensor: Tensor) -> Tensor:
    tensor[3, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: None, f"{PROJECTION} (absent in the artifact, 16 x 8 in the model)"),
        *((partial(with_value, value), f"{PROJECTION} holds numbers that are NaN or infinite; copy")
          for value in (torch.nan, torch.inf)),
        *((methodcaller("to", getattr(torch, kind)),
           f"{PROJECTION} is {kind}, and weights are floats of 16 to 64")
          for kind in ("float8_e4m3fn", "int8", "bool", "complex64")),
    ],
)  # fmt: skip
def test_tensors_that_do_not_do(
    artifact: Path, change: Callable[[Tensor], Tensor | None], message: str
) -> None:
    """One too few is not left random, either."""
    tensors = load_file(artifact / "weights.safetensors")
    changed = change(tensors.pop(PROJECTION))
    tensors |= {} if changed is None else {PROJECTION: changed}
    save_file(tensors, artifact / "weights.safetensors")
    write_manifest(artifact)
    assert message in message_of(artifact)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        # It is compared with the artifact before anything has it.
        ("methods", {"class_path": "LoRA", "init_args": {"rank": 10**9}},
         "1000000000 x 16 in the model)"),
        *(("tasks", {"class_path": "VQA", "init_args": {"decoding": {field: 10**9}}},
           f"decoding.{field}: got 1000000000; give a number from 1 to ")
          for field in ("num_beams", "max_new_tokens")),
    ],
)  # fmt: skip
def test_a_size_that_no_machine_has(
    artifact: Path, section: str, fields: dict[str, Any], message: str
) -> None:
    recipe = yaml.safe_load((artifact / "recipe.yaml").read_text())
    recipe[section] = {"huge": fields}
    (artifact / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_manifest(artifact)
    assert message in message_of(artifact)


def test_tensors_of_another_size(artifact: Path) -> None:
    recipe = (artifact / "recipe.yaml").read_text()
    assert recipe.count("reduction: 4") == 1
    (artifact / "recipe.yaml").write_text(recipe.replace("reduction: 4", "reduction: 8"))
    write_manifest(artifact)
    message = message_of(artifact)
    assert "down_weight (2 x 4 x 16 in the artifact, 2 x 2 x 16 in the model)" in message
    assert "more tensors" in message
    assert "does not fit the model that its recipe builds" in message


def test_a_run_that_keeps_its_best_step_stands_for_it(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the card of one that began with another's weights names it."""
    recipe = recipe_with("T5", "Adapter", world, tmp_path)
    run = write_run(recipe, seed=1)
    second = replace(recipe, output=str(tmp_path / "other"), start=str(run / "artifact"))
    other = write_run(second, seed=2)
    best = (other / "artifact").rename(run / "best")
    (best / BEST).write_text('{"step": 4, "score": "vqa/exact_match", "value": 0.5}')
    line = f"{run}: best, of step 4; {run / 'artifact'} has the last step's"
    words: dict[str, list[str | Path]] = {
        "evaluate": [],
        "convert hf": ["--out", tmp_path / "hf"],
        "predict": ["--task", "vqa", "--question", "what?", "--image", tmp_path / "a.jpg"],
    }
    write(tmp_path / "a.jpg", picture("red", 1))
    for place, home, said in ((run, best, True), (run / "artifact", run / "artifact", False)):
        saved = load_file(home / WEIGHTS)
        state = dict(load_run(place).model.unique_state())
        adapters = {name: tensor for name, tensor in saved.items() if name in state}
        assert all(torch.equal(state[name], tensor) for name, tensor in adapters.items())
        assert len(adapters) > 10
        for command, more in words.items():
            tell_model.cache_clear()
            capsys.readouterr()
            named = ["--run", str(place)] if "convert" in command else [str(place)]
            assert run_command([*command.split(), *named, *map(str, more)]) == 0
            assert (line in "".join(capsys.readouterr()).splitlines()) == said, command
        assert (home / "predictions" / "scores.json").exists()
        card = (tmp_path / "hf" / "README.md").read_text()
        assert ("The weights are those of the best step, 4." in card) == said
        assert (f", begun with the weights of the run `{run.name}`, tuned by" in card) == said
        shutil.rmtree(tmp_path / "hf")


def test_a_strangers_recipe_asks_whom_it_says_and_writes_nowhere(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's settings can name files to write; of a run, only vlds' own are taken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = recipe_with("T5", "Adapter", world, tmp_path)
    settings = write(tmp_path / "zero9.json", '{"csv_monitor": {"enabled": true}}')
    training = replace(recipe.training, deepspeed=str(settings))
    with Web(world) as web:
        host = web.url("vqa").removesuffix("/vqa")
        places = {"train": ["s3://bucket/a", "s3://bucket/b"], "evaluate": [web.url("vqa")]}
        tasks = {"vqa": replace(recipe.tasks["vqa"], **places)}
        run = write_run(replace(recipe, training=training, tasks=tasks))
        capsys.readouterr()
        assert recipe_of_run(run, []).training.deepspeed == str(find("ds_configs/zero2.json"))
        assert capsys.readouterr().err.splitlines() == [
            f"{run}: its recipe asks s3://bucket, {host} for data",
            "training.deepspeed: zero2.json in place of zero9.json, which is not of vlds",
        ]
        assert run_command(["evaluate", str(run)]) == 0
        web.shutdown()
    assert capsys.readouterr().err.splitlines()[0] == f"{run}: its recipe asks {host} for data"

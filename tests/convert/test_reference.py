"""Checkpoints of the original code: recorded ones give their logits, ours have their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartTokenizer, T5Tokenizer

from tests.toys.recipes import with_model
from tests.toys.recorded.case import FOLDER, RecordedCase, exact_t5_norm
from tests.toys.recorded.configuration import backbone_of, hf_config, methods_of, parse_flags
from tests.toys.trained_runs import (
    convert,
    convert_code,
    recipe_with,
    write_pair,
    write_run,
)
from vlds.artifact import load_run
from vlds.convert.reference import named_tensors
from vlds.models import JointSeq2Seq
from vlds.models.methods import VLPET, Adapter, Compacter, Full, Hyperformer, Method
from vlds.models.vision import StoredFeatures
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.recipe.config import Recipe, save_recipe
from vlds.tasks import VQA

CASES = sorted(path for path in FOLDER.glob("*.json") if not path.name.endswith(".train6.json"))


@pytest.fixture(scope="module", autouse=True)
def exact_norms() -> Iterator[None]:
    """The recorded cases ran in float64 throughout."""
    with exact_t5_norm():
        yield


def tokenizer_of(size: dict[str, Any], folder: Path) -> str:
    """A tokenizer as long as the recorded vocabulary; only its length is looked at."""
    num = size["vocab"] - size["added_tokens"]
    special = {size["pad"]: "<pad>", size["eos"]: "</s>"}
    words = [special.get(n, f"w{n}") for n in range(num)]
    if size["backbone"] == "t5":
        words[2] = "<unk>"
        made = T5Tokenizer(vocab=[(word, 0.0) for word in words], extra_ids=0)
    else:
        words[0], words[3], words[4] = "<s>", "<unk>", "<mask>"
        made = BartTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])
    made.save_pretrained(folder)
    return str(folder)


def recipe_of(case: RecordedCase, folder: Path) -> Path:
    """The file of a recipe for a recorded case."""
    size = case.record["config"]
    config = folder / "config.json"
    config.write_text(json.dumps(hf_config(size)), encoding="utf-8")
    methods, train_norms = methods_of(parse_flags(case.record["flags"]), size, case.weights)
    tokenizer = tokenizer_of(size, folder / "tokenizer")
    recipe = Recipe(
        output=str(folder / "run"),
        methods=methods,
        tasks={name: VQA() for name in case.tasks},
        model=JointSeq2Seq(
            backbone=replace(backbone_of(size, str(config)), tokenizer=tokenizer),
            vision=StoredFeatures(dim=size["feat_dim"], grid=round(size["grid_in"] ** 0.5)),
            visual_embedding=VisualEmbeddingConfig(
                grid=round(size["n_boxes"] ** 0.5), num_images=size["n_images"]
            ),
            train_norms=train_norms,
        ),
    )
    save_recipe(recipe, folder / "recipe.yaml")
    return folder / "recipe.yaml"


def save_as_original(case: RecordedCase, file: Path) -> dict[str, Tensor]:
    """The recorded weights as the original code saves them; they, with aliases as aliases."""
    state = dict(case.weights)
    for first, alias in case.record["aliases"]:
        state[alias] = state[first]
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, file)
    return state


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_recorded_checkpoint_gives_its_logits(path: Path, tmp_path: Path) -> None:
    case = RecordedCase(path)
    weights = save_as_original(case, tmp_path / "LAST.pth")
    recipe, out = recipe_of(case, tmp_path), tmp_path / "out"
    convert("reference", "--from", tmp_path / "LAST.pth", "--config", recipe, "--out", out)
    model = load_run(out, torch.float64).model
    for task in case.tasks:
        with torch.no_grad():
            logits = model.logits(case.batch(task))
        assert (logits - case.tensor(f"{task}/logits")).abs().max() < 1e-9, task
    convert("reference", "--run", out, "--out", tmp_path / "back.pth", "--verify")
    saved = torch.load(tmp_path / "back.pth", weights_only=True)
    assert saved.keys() == {f"module.{key}" for key in weights}
    for key, tensor in weights.items():
        assert torch.equal(saved[f"module.{key}"], tensor.to(saved[f"module.{key}"].dtype)), key
    for first, alias in case.record["aliases"]:
        assert saved[f"module.{first}"].data_ptr() == saved[f"module.{alias}"].data_ptr()


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of Bart with half-shared adapters."""
    return write_pair("Bart", "Adapter shared up, norms", world, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def exported(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """The first run in the original's layout."""
    convert("reference", "--run", runs[0], "--out", tmp_path / "LAST.pth", "--verify")
    return tmp_path / "LAST.pth"


def test_verifying_notices_a_tensor_that_was_not_written(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = named_tensors

    def without_visual_embedding(*args: Any) -> dict[str, Any]:
        return {n: t for n, t in whole(*args).items() if not n.startswith("visual_embedding.")}

    monkeypatch.setattr("vlds.convert.reference.named_tensors", without_visual_embedding)
    out = tmp_path / "LAST.pth"
    assert convert_code("reference", "--run", runs[0], "--out", out, "--verify") != 0
    assert not out.exists()


def changed(file: Path, change: dict[str, Any]) -> Path:
    """A copy with other entries; None takes one out."""
    state = torch.load(file, weights_only=True) | change
    torch.save({key: t for key, t in state.items() if t is not None}, file.with_name("odd.pth"))
    return file.with_name("odd.pth")


ADAPTER = "module.model.encoder.layers.0.attn_adapter.adapters"
WRONG = {
    "one is missing": ({f"{ADAPTER}.vqa.down_sampler.weight": None}, "down_sampler.weight: not in"),
    "one too many": (
        {f"{ADAPTER}.nlvr.down_sampler.weight": torch.zeros(4, 16)},
        "holds model.* that the recipe's model has no place for",
    ),
    "another size": (
        {f"{ADAPTER}.vqa.down_sampler.weight": torch.zeros(2, 16)},
        r"float32 \(2, 16\) in the checkpoint, floats \(4, 16\) by the recipe",
    ),
    "not finite": (
        {f"{ADAPTER}.vqa.down_sampler.weight": torch.full((4, 16), torch.nan)},
        "odd.pth: .*down_weight holds numbers that are NaN or inf",
    ),
    "not shared": (
        {f"{ADAPTER}.caption.up_sampler.weight": torch.zeros(16, 4)},
        "differ in the checkpoint, and are one tensor by the recipe; give the method the `sharing`",
    ),
    "one norm": (
        {
            "module.model.encoder.visual_embedding.feat_embedding.1.weight": None,
            "module.model.encoder.visual_embedding.layer_norm.weight": torch.ones(16),
        },
        "one norm over the sum of all visual embeddings .* say `model.visual_embedding.norm: sum`",
    ),
    "another backbone": (
        {"module.model.encoder.layers.0.fc1.bias": torch.ones(24)},
        "fc1.bias is frozen, and the checkpoint has other numbers there than .*source; name the "
        "backbone that it was trained on, or .* `config` instead of `path`",
    ),
    "two spellings": (
        {f"{ADAPTER.removeprefix('module.')}.vqa.down_sampler.weight": torch.zeros(4, 16)},
        "stands there with and without `module.`",
    ),
}


@pytest.mark.slow
@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(
    what: str, runs: tuple[Path, Path], exported: Path, tmp_path: Path
) -> None:
    change, message = WRONG[what]
    odd = changed(exported, change)
    with pytest.raises(ValueError, match=message):
        convert("reference", "--from", odd, "--run", runs[1], "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"a": Adapter(reduction=4), "b": Compacter(reduction=4)}, "one bottleneck a place"),
        ({"a": Full(part="vision")}, "never tunes the vision encoder"),
        (
            {"a": Adapter(activation="silu")},
            "activation: gelu_tanh alone, and the method has .*silu",
        ),
        ({"a": Hyperformer(attention=False)}, "attention: true .*, and the method has .*False"),
        (
            {"a": VLPET(of=Adapter(reduction=4), heads=3)},
            "heads: got 3, which does not divide the . units",
        ),
        (
            {"a": VLPET(of=Adapter(reduction=4, sharing="multiple"))},
            r"one encoder for all tasks \(sharing multiple\)",
        ),
    ],
)
def test_combinations_that_the_original_cannot_have(
    methods: dict[str, Method], message: str, world: Path, tmp_path: Path
) -> None:
    recipe = replace(recipe_with("Bart", "Adapter", world, tmp_path), methods=methods)
    run = write_run(recipe)
    with pytest.raises(ValueError, match=message):
        convert("reference", "--run", run, "--out", tmp_path / "LAST.pth")
    assert not (tmp_path / "LAST.pth").exists()


def test_norms_with_a_bias_are_refused(world: Path, tmp_path: Path) -> None:
    recipe = recipe_with("T5", "Adapter", world, tmp_path)
    visual = replace(recipe.model.visual_embedding, norm_biases=True)
    run = write_run(with_model(recipe, visual_embedding=visual))
    with pytest.raises(ValueError, match=r"visual_embedding\.norm_biases: the original code's T5"):
        convert("reference", "--run", run, "--out", tmp_path / "LAST.pth")

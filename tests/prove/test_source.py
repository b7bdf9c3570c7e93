"""Tiny models of every kind compute what the libraries of their weights do; and faults that only
these can tell are named by the right property."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, RobertaConfig, RobertaForMaskedLM

from tests.toys.causal import SIZES, causal_recipe, save_model
from tests.toys.cross_modal import cross_modal_recipe, pretraining_recipe
from tests.toys.dual import class_recipe, text_recipe
from tests.toys.image_text import PARAMETERS
from tests.toys.image_text.rows import NUMBERS, Tiny, images, rows_with, tiny
from tests.toys.joint_encoder import joint_encoder_recipe
from tests.toys.recipes import with_model, with_task
from tests.toys.trained_runs import recipe_from
from vlds.models.generation.decoding import CachedStack
from vlds.models.kinds import dual_encoder_model
from vlds.models.kinds.causal import CausalModel, Sequences
from vlds.models.kinds.library import both_answers
from vlds.models.loading import quantised
from vlds.models.methods import IA3, LoRA
from vlds.models.vision import ClipTokens, ClipVision, Timm, VisionEncoder, clip
from vlds.prove.answers import same_answers
from vlds.prove.arithmetic import beside_libraries, gradient_parity, source_parity
from vlds.prove.bench import Bench
from vlds.prove.command import found
from vlds.prove.finding import OF_LOSSES, Finding, roundings
from vlds.prove.properties import PROPERTIES
from vlds.recipe.config import Recipe
from vlds.schema import Row

ROWS = 6
WHOLE = ["tokens", "logits", "loss"]
LIMIT = roundings(OF_LOSSES, torch.float32)
"""What is compared of a language model."""
ONE_A_ROW = {"perception_lm": (1, 1, 0)}
"""Types whose processors read no two pictures of unlike numbers of tiles in a row."""


def bench_of(recipe: Recipe, scratch: Path) -> Bench:
    return Bench(recipe, scratch=scratch, rows=ROWS)


def compared(finding: Finding) -> list[str]:
    """First words of what was compared."""
    assert finding.verdict == "holds", finding
    return [each.what.split()[0].rstrip(":") for each in finding.compared]


# Sources.


def comparable_rows(model: Tiny) -> list[Row]:
    """Rows with pictures of unlike sizes: none, one and two, where the type takes these."""
    return rows_with(ONE_A_ROW.get(model.model_type, NUMBERS.get(model.model_type, (1, 2, 0))))


@pytest.mark.parametrize("model_type", PARAMETERS)
def test_image_text_models(model_type: str) -> None:
    """Tokens, logits and losses, and greedy answers."""
    model = tiny(model_type)
    rows = comparable_rows(model)
    with model.build().evaluating() as built:
        assert compared(beside_libraries(model.kind, built, rows, images(), LIMIT)) == WHOLE
        library = model.kind.library(built)
        ours, theirs = both_answers(library, model.collator, built, rows, images(), 5)
    found = same_answers("answers", [row.example.id for row in rows], ours, theirs, LIMIT)
    assert found.holds, found


def vision_of(name: str, folder: Path) -> VisionEncoder:
    """A small encoder of a library, whose files are written to a folder."""
    if name == "clip":
        cross_modal_recipe(folder, folder)  # writes clip.json
        return ClipVision(config=str(folder / "clip.json"))
    return Timm(model="vit_tiny_patch16_224", image_size=32)


@pytest.mark.parametrize(
    ("model_type", "vision"),
    [
        ("llama", "clip"),
        pytest.param("qwen2", "timm", marks=pytest.mark.slow),
        *(pytest.param(t, "clip", marks=pytest.mark.slow) for t in ("opt", "phi3", "gemma2")),
    ],
)
def test_causal_models(model_type: str, vision: str, world: Path, tmp_path: Path) -> None:
    assert model_type in SIZES
    save_model(tmp_path / model_type, model_type)
    path, encoder = str(tmp_path / model_type), vision_of(vision, tmp_path)
    recipe = causal_recipe(tmp_path, world, tmp_path, path=path, vision=encoder)
    assert compared(source_parity(bench_of(recipe, tmp_path))) == ["features", *WHOLE]


@pytest.mark.parametrize("source", ["Bart", pytest.param("T5", marks=pytest.mark.slow), "FLAN"])
def test_encoder_decoders(source: str, world: Path, tmp_path: Path) -> None:
    """With more words than their files have."""
    recipe = recipe_from(source, world, tmp_path)
    assert compared(source_parity(bench_of(recipe, tmp_path))) == WHOLE


@pytest.mark.parametrize("model", ["clip", pytest.param("resnet", marks=pytest.mark.slow)])
def test_dual_encoders(model: str, world: Path, tmp_path: Path) -> None:
    recipe = class_recipe(world, tmp_path, {"lora": LoRA(rank=2)}, model=model)
    found = compared(source_parity(bench_of(recipe, tmp_path)))
    assert found == ["pictures'", "texts'", *(["logits"] if model == "clip" else [])]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (cross_modal_recipe, ["features", "states"]),
        pytest.param(pretraining_recipe, ["features", "states"], marks=pytest.mark.slow),
        (joint_encoder_recipe, ["states"]),
        pytest.param(text_recipe, ["pictures'", "texts'", "logits"], marks=pytest.mark.slow),
    ],
)
def test_parts_that_a_library_has(
    make: Callable[[Path, Path], Recipe], words: Sequence[str], world: Path, tmp_path: Path
) -> None:
    recipe = make(world, tmp_path)
    finding = source_parity(bench_of(recipe, tmp_path))
    assert compared(finding) == words


@pytest.mark.parametrize("side", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_it_begins_as_roberta_and_clip(side: int, world: Path, tmp_path: Path) -> None:
    """Folders as on the hub: RoBERTa with its head for masked words, CLIP with its text encoder;
    also for larger pictures."""
    sizes: dict[str, Any] = {
        "hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2
    }  # fmt: skip
    pictures = {"image_size": 16, "patch_size": 8}
    RobertaForMaskedLM(RobertaConfig(**sizes, vocab_size=40)).save_pretrained(tmp_path / "roberta")
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=sizes | pictures)).save_pretrained(
        tmp_path / "clip"
    )
    vision = ClipTokens(path=str(tmp_path / "clip"), image_size=side)
    recipe = with_model(
        cross_modal_recipe(world, tmp_path), path=str(tmp_path / "roberta"), config=None,
        vision=vision,
    )  # fmt: skip
    bench = bench_of(recipe, tmp_path)
    assert compared(source_parity(bench)) == ["features", "states"]
    with bench.without_methods() as model:
        names = {name for name, _ in model.named_parameters()}
        of_files = {n for n in names if n.startswith(("vision.", "backbone.text."))}
        assert model.sources.names >= of_files


# The method as peft has it.


@pytest.mark.parametrize(
    ("source", "method"),
    [
        ("config", LoRA(rank=2, roles=["attn_q", "ffn_out"], train_biases=False)),
        ("causal", LoRA(rank=2, sharing="multiple", roles=["attn_q"], train_biases=False)),
        pytest.param("Bart", IA3(), marks=pytest.mark.slow),
        pytest.param(
            "image_text", LoRA(rank=2, roles=["ffn_in"], train_biases=False), marks=pytest.mark.slow
        ),
    ],
)
def test_gradients_are_pefts(source: str, method: Any, world: Path, tmp_path: Path) -> None:
    recipe = replace(recipe_from(source, world, tmp_path), methods={"method": method})
    finding = gradient_parity(bench_of(recipe, tmp_path))
    assert finding.verdict == "holds", finding
    by_peft = [each for each in finding.compared if "peft" in each.what]
    assert len(by_peft) == (4 if getattr(method, "sharing", "") == "multiple" else 2)
    assert not any("peft" in note for note in finding.notes)


# Faults.

Plant = Callable[[pytest.MonkeyPatch], None]


def loaded_with(change: Callable[[Any], None]) -> Plant:
    """What our gate has loaded, changed."""
    load = quantised.load_weights

    def call(*args: Any, **options: Any) -> tuple[Any, set[str]]:
        model, missing = load(*args, **options)
        change(model)
        return model, missing

    return lambda patch: patch.setattr(quantised, "load_weights", call)


def drawn_layer(model: Any) -> None:
    """A layer's weights are random."""
    with torch.no_grad():
        for weight in model.get_decoder().layers[1].parameters():
            weight.normal_(std=0.02)


def wrong_mean(patch: pytest.MonkeyPatch) -> None:
    for module in (clip, dual_encoder_model):
        patch.setattr(module, "MEAN", (0.485, 0.456, 0.406))


def late_logits(patch: pytest.MonkeyPatch) -> None:
    """Each token of an answer predicts itself."""
    sequences = CausalModel.sequences

    def call(*args: Any, **options: Any) -> Sequences:
        found = sequences(*args, **options)
        return found._replace(before_labels=found.before_labels.roll(1, 1))

    patch.setattr(CausalModel, "sequences", call)


def short_cache(patch: pytest.MonkeyPatch) -> None:
    """The keys of the first token that was written are lost with each further one."""
    run = CachedStack.run

    def call(self: CachedStack, tokens: Tensor) -> Tensor:
        states = run(self, tokens)
        (cache,) = self._cache.values()
        for layer in cache.self_attention_cache.layers:
            if layer.keys.shape[2] > 1:
                layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
        return states

    patch.setattr(CachedStack, "run", call)


def in_vision(world: Path, folder: Path) -> Recipe:
    save_model(folder / "llama", "llama")
    vision = vision_of("clip", folder)
    return causal_recipe(folder, world, folder, path=str(folder / "llama"), vision=vision)


def in_llama(world: Path, folder: Path) -> Recipe:
    save_model(folder / "llama", "llama")
    return causal_recipe(folder, world, folder, path=str(folder / "llama"))


def in_t5(world: Path, folder: Path) -> Recipe:
    return recipe_from("FLAN", world, folder)


FAULTS: dict[str, tuple[Plant, Callable[[Path, Path], Recipe], str]] = {
    "pictures are normalised as others'": (wrong_mean, in_vision, "source-parity"),
    "half a checkpoint is loaded": (loaded_with(drawn_layer), in_llama, "source-parity"),
    "labels are one too late": (late_logits, in_llama, "source-parity"),
    "a cache is one too short": (short_cache, in_t5, "answers"),
}
READ_ONLY = ("reads-right", "batch-free", "source-parity", "gradient-parity", "answers")


@pytest.mark.parametrize("name", FAULTS)
def test_the_right_property_names_it(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, make, place = FAULTS[name]
    recipe = make(world, tmp_path)
    # Long enough for the questions, which are then read whole.
    for task in recipe.tasks:
        recipe = with_task(recipe, task, max_prompt_tokens=40)
    plant(monkeypatch)
    bench, verdicts = bench_of(recipe, tmp_path), dict[str, str]()
    for each in PROPERTIES:
        if each.name in READ_ONLY and not any(verdicts.get(n) == "fails" for n in each.needs):
            verdicts[each.name] = found(each, bench).verdict
    assert [name for name, verdict in verdicts.items() if verdict == "fails"] == [place]

"""Image-text models of every tested type: losses, answers and methods are Hugging Face's and ours
at once."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN_TYPES,
)

from tests.toys.files import ROOT
from tests.toys.image_text import PARAMETERS, TYPES
from tests.toys.image_text.claims import TEXT_ALONE
from tests.toys.image_text.configs import config
from tests.toys.image_text.places import PLACES
from tests.toys.image_text.rows import Tiny, images, tiny
from tests.toys.image_text.theirs import generated
from tests.toys.image_text.words import tokenizer
from tests.toys.models import shake
from tests.toys.pictures import noise
from vlds.data.shards.pictures import decode_image
from vlds.models import ImageTextToText
from vlds.models.kinds import image_text
from vlds.models.kinds.image_text import TESTED, check_inputs, find_parts
from vlds.models.kinds.image_text_rows import ImageTextCollator
from vlds.models.methods import BitFit, Full, LoRA, Method
from vlds.recipe.build import build
from vlds.schema import IGNORED_LABEL, Decoding, NaturalSize


@pytest.fixture(params=PARAMETERS)
def model(request: pytest.FixtureRequest) -> Tiny:
    return tiny(request.param)


@pytest.mark.sampled(2)
@torch.no_grad()
def test_a_row_is_the_same_alone_and_in_any_cut(model: Tiny) -> None:
    built, rows = model.build().eval(), model.rows()
    batch = model.batch(rows)
    whole = built.token_nll(batch).sum(1)
    alone = torch.cat([built.token_nll(model.batch([row])).sum(1) for row in rows])
    assert torch.allclose(whole, alone, atol=1e-5)
    pieces = [torch.tensor([2, 0]), torch.tensor([1])]
    assert torch.allclose(built(batch, torch.ones(3), pieces).token_nll_sum, whole, atol=1e-5)
    assert built.sizes(batch)[:, 0].tolist() == batch.attention_mask.sum(1).tolist()


def test_labels_are_answers_with_their_end(model: Tiny) -> None:
    collator, rows = model.collator, model.rows()
    batch = model.batch(rows)
    assert batch.labels is not None
    for row, labels in zip(rows, batch.labels, strict=True):
        ids = labels[labels != IGNORED_LABEL].tolist()
        assert ids[-1] in {collator.chat.tail_ids[-1], model.processor.tokenizer.eos_token_id}
        text = model.processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert text.strip() == row.example.target
    short = model.batch([rows[0]._replace(max_target_tokens=3)]).labels
    assert short is not None
    assert (short != IGNORED_LABEL).sum() == 3, "cut, but for the end"
    assert short[short != IGNORED_LABEL][-1] == ids[-1]


@pytest.mark.sampled(2)
def test_a_question_cannot_hold_a_placeholder(model: Tiny) -> None:
    row = model.rows()[0]
    word = str(getattr(model.processor, "image_token", "<image>"))
    asked = replace(row.example, prompt=f"what is {word} ?")
    batch = model.batch([row._replace(example=asked)])
    model.build().token_nll(batch)
    long = replace(row.example, prompt="what is red ? " * 50)
    usual = model.batch([row]).input_ids.shape[1]
    assert model.batch([row._replace(example=long)]).input_ids.shape[1] < usual + 20


WORDS, LIST = ("red", "blue", "dog"), ("red sky", "blue", "a dog")


@pytest.mark.sampled(5)
@torch.no_grad()
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=5),
        Decoding(max_new_tokens=5, num_beams=3),
        Decoding(choices=WORDS),
        Decoding(answers=LIST),
    ],
    ids=["greedy", "beams", "choices", "list"],
)
def test_answers_are_the_same_alone(model: Tiny, decoding: Decoding) -> None:
    built, rows = model.build().eval(), model.rows()
    together = built.answer(model.batch(rows, evaluation=True), decoding)
    for row, answer in zip(rows, together, strict=True):
        (alone,) = built.answer(model.batch([row], evaluation=True), decoding)
        assert alone.text == answer.text
        assert alone.confidence == pytest.approx(answer.confidence, rel=1e-4, abs=0)
        if decoding.choices:
            assert 1 / len(WORDS) <= answer.confidence <= 1
        if decoding.answers:
            assert answer.text in LIST
            assert answer.token_confidence is None


@pytest.mark.sampled(2)
@torch.no_grad()
def test_greedy_ids_and_their_probability(model: Tiny) -> None:
    """The ids are `generate`'s own, and the probability that of a forward pass."""
    built, row = model.build().eval(), model.rows()[0]
    asked = model.batch([row], evaluation=True)
    writer = built.writer
    (written,) = writer.write(built.prompts(asked), Decoding(max_new_tokens=5), None)
    ids = generated(built, built.inputs(asked), 5)
    assert written.ids == ids
    labels = torch.tensor([ids])
    if not built.answers_apart:
        kind = model.collator
        types = {n: kind.with_answer(n, v[0], ids)[None] for n, v in asked.types.items()}
        sequence = torch.cat([asked.input_ids, labels], 1)
        labels = torch.cat([torch.full_like(asked.input_ids, IGNORED_LABEL), labels], 1)
        mask = torch.ones_like(sequence, dtype=torch.bool)
        asked = replace(asked, input_ids=sequence, attention_mask=mask, types=types)
    nll = built.token_nll(replace(asked, labels=labels)).sum().item()
    assert written.log_probability == pytest.approx(-nll, abs=1e-4)


def test_attention_is_chosen_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2_5_vl")
    batch, ones = model.batch(model.rows()), torch.ones(3)
    losses = []
    for name in ("sdpa", "eager"):
        built = replace(model, kind=replace(model.kind, attention=name)).build().eval()
        stacks = {m.config._attn_implementation for m in built.modules() if hasattr(m, "config")}
        assert stacks == {name}
        losses.append(built(batch, ones).loss)
    assert torch.allclose(*losses, rtol=1e-4)
    flash = replace(model.kind, attention="flash_attention_2")
    with pytest.raises(ValueError, match=r"^model\.attention: flash_attention_2 needs the package"):
        flash.check_sources()
    # Where it is installed, its own demands are checked before anything trains.
    monkeypatch.setattr(image_text, "is_flash_attn_2_available", lambda: True)
    flash.check_sources()
    with pytest.raises(ValueError, match=r"^model\.attention: .* in 16 bits alone; set training"):
        replace(model, kind=flash).build()


def test_roles_that_a_recipe_names() -> None:
    model = tiny("llava")
    named = replace(model.kind, roles={"backbone": {"attn_q": ["layers.*.self_attn.k_proj"]}})
    built = replace(model, kind=named).build({"m": LoRA(roles=["attn_q"], train_biases=False)})
    names = [name.split(".extensions")[0] for name, by in built.trained_by.items() if by == "m"]
    assert {name.rpartition(".")[2] for name in names} == {"k_proj"}


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"backbon": {}}, "roles: 'backbon' is unknown; did you mean 'backbone'"),
        (
            {"backbone": {"attn_q": ["layers.*.self_attn.q_proj", "layers.*.self_attn.k_prj"]}},
            "model.roles.backbone.attn_q: 'layers.*.self_attn.k_prj' matches no layer of "
            "LlamaModel; did you mean 'layers.*.self_attn.k_proj'? give a layer's path inside that "
            "part, with * for numbers",
        ),
        (
            {"backbone": {"norm": []}},
            "model.roles.backbone.norm: names no layer; give a path, or leave the role out",
        ),
    ],
)
def test_named_layers_that_are_not_there(
    roles: dict[str, dict[str, list[str]]], message: str
) -> None:
    """Also where another path of the role is right, and where no method asks for the role."""
    model = tiny("llava")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        replace(model, kind=replace(model.kind, roles=roles)).build()


INSIDE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Types whose connector lies inside the vision tower."""


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("method", [Full(part="vision"), BitFit(part="vision")], ids=["full", "bf"])
@pytest.mark.parametrize("model_type", INSIDE)
def test_a_method_of_the_tower_leaves_the_connector_alone(
    model_type: str, method: Method, trains: bool
) -> None:
    """It trains, and is counted, as the connector if the model trains it, and not at all else."""
    model = tiny(model_type)
    kind = replace(model.kind, train_connector=trains)
    built = replace(model, kind=kind).build({"eyes": replace(method, learning_rate=1e-5)})
    assert {n for n, by in built.trained_by.items() if by == "eyes"}
    assert built.connector
    for name in built.connector:
        assert built.get_parameter(name).requires_grad == trains, name
        assert built.part_of(name) == "connector"
    count = built.count_parameters().by_part["connector"]
    assert count.trainable == (count.total if trains else 0)


def test_a_frozen_tower_stays_in_evaluation_mode(model: Tiny) -> None:
    """Also where the connector that trains lies inside it."""
    for part, trains in (("backbone", False), ("vision", True)):
        method = LoRA(part=part, rank=2, roles=["attn_out"], train_biases=False)
        built = model.build({"method": method}).train()
        assert built.get_submodule(built.parts["vision"].path).training == trains


@pytest.mark.sampled(2)
def test_a_dummy_row_changes_no_loss(model: Tiny) -> None:
    """Text alone in training gets a row with a picture, so that the tower runs."""
    if model.model_type not in TEXT_ALONE:
        pytest.skip("takes no text without a picture")
    built, text = model.build().train(), model.rows()[2]
    batch = model.batch([text])
    assert len(built.with_dummy(batch)) == 2
    assert len(built.with_dummy(model.batch(model.rows()))) == 3
    loss = built(batch, torch.ones(1)).loss
    loss.backward()
    connector = [p for n, p in built.named_parameters() if built.trained_by.get(n) == "connector"]
    assert all(p.grad is not None and not p.grad.any() for p in connector)
    assert loss.item() == pytest.approx(built.eval()(batch, torch.ones(1)).loss.item(), abs=1e-5)


@pytest.mark.sampled(2)
@torch.no_grad()
def test_an_exported_folder_gives_the_same_logits(model: Tiny, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    built = model.build({"all": Full(), "eyes": Full(part="vision")}).eval()
    shake(built)
    exported = model.kind.export(built, tmp_path)
    assert exported == ImageTextToText(path=str(tmp_path), train_connector=False)
    batch = model.batch(model.rows())
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    expected = built.logits(batch)
    assert torch.allclose(model.run_by(theirs, built), expected, atol=1e-6)
    assert exported.load_processor().tokenizer.get_vocab() == model.processor.tokenizer.get_vocab()
    # All but the tower and the connector, which train by themselves: full fine-tuning of the
    # language model, with the output layer, tied or not.
    tower = built.parts["vision"].path.removeprefix("backbone.")
    others = {n.removeprefix("backbone.") for n in built.connector}
    of_language = {n for n, _ in theirs.named_parameters() if not n.startswith(f"{tower}.")}
    trained = {n for n, by in built.trained_by.items() if by == "all"}
    assert trained == {f"backbone.{name}" for name in of_language - others}
    head = theirs.get_output_embeddings().weight
    is_tied = head is theirs.get_input_embeddings().weight
    outside = {} if is_tied else {"backbone.lm_head.weight": "all"}
    assert built.count_parameters().outside == outside


# Types of image-text models: their parts, processors and pictures. Each tested type sees its
# pictures.


def test_tested_types_are_those_of_the_tests() -> None:
    assert sorted(TESTED) == sorted(TYPES)


@torch.no_grad()
def test_pictures_are_seen(model: Tiny) -> None:
    """Other pictures in their place change each row that has some, and no other."""
    built, rows = model.build().eval(), model.rows()
    before = built.token_nll(model.batch(rows)).sum(1)
    inverse = [255 - picture for picture in images()]
    other = model.collator(rows, inverse, evaluation=False)
    change = (built.token_nll(other).sum(1) - before).abs()
    assert [float(c) > 1e-6 for c in change] == [len(row.images) > 0 for row in rows]


# The parts of each image-text-to-text type are found, and hold all weights but the head's.

SHALLOW = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def shapes(model_type: str, **fields: Any) -> Any:
    """A model of a type on the meta device: the tiny one, or one with fields."""
    if model_type in TYPES:
        built = config(model_type, tokenizer(model_type))
    elif model_type in KNOWN_TYPES:
        built = AutoConfig.for_model(model_type, **fields)
    else:
        pytest.skip(f"this version of transformers does not know {model_type}")
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(built)


@pytest.mark.parametrize("model_type", TYPES)
def test_parts_are_where_the_type_has_them(model_type: str) -> None:
    """Each weight is in one of them, or the head."""
    model, places = shapes(model_type), PLACES[model_type]
    parts = find_parts(model)
    assert (parts.language, parts.vision) == (places.language, places.vision)
    names = [name for name, _ in model.named_parameters()]
    inside = tuple(f"{place}." for place in places.connector)
    expected = [name for name in names if name in places.connector or name.startswith(inside)]
    assert list(parts.connector) == expected
    connector = set(expected)
    language = {name for name in names if name.startswith(f"{parts.language}.")}
    vision = {name for name in names if name.startswith(f"{parts.vision}.")} - connector
    assert all([language, vision, connector])
    rest = set(names) - language - vision - connector
    assert rest == {"lm_head.weight"} & set(names)
    assert len(names) == len(language) + len(vision) + len(connector) + len(rest)


@pytest.mark.parametrize(
    ("model_type", "module"),
    [
        ("granite_docling", ".vision_model.connector."),
        ("hy_v4_vl", ".vision_tower.patch_merger."),
        ("qwen2_5_omni_thinker", ".visual.merger."),
    ],
)
def test_the_connector_is_found_beside_other_modules(model_type: str, module: str) -> None:
    """Inside the vision encoder; an encoder of sound is no connector."""
    model = shapes(model_type)
    expected = [name for name, _ in model.named_parameters() if module in f".{name}"]
    assert expected
    assert list(find_parts(model).connector) == expected


def test_types_without_separate_parts_are_refused() -> None:
    fuyu = {"text_config": {"model_type": "persimmon", **SHALLOW, "vocab_size": 40}}
    small = {"embed_dim": 32, "num_hidden_layers": 1}
    idefics = {**SHALLOW, "vocab_size": 40, "vision_config": small}
    with pytest.raises(ValueError, match=r"fuyu: .* no separate vision encoder; choose a type"):
        find_parts(shapes("fuyu", **fuyu))
    with pytest.raises(ValueError, match=r"idefics: .* inside their language model; choose a type"):
        find_parts(shapes("idefics", **idefics))


# Processors that do not belong to a model, and inputs that vlds cannot place, are named before
# long work.


def test_a_processor_of_another_type() -> None:
    model, other = tiny("qwen2_vl"), tiny("llava")
    kind = replace(model.kind, processor=other.kind.path)
    message = (
        "model.processor: LlavaProcessor does not write token 325, where the qwen2_vl model looks "
        "for a picture; name the processor that belongs to it"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind.collator(kind.load_processor())


def mllama() -> tuple[ImageTextCollator, Any]:
    """Llama 3.2 Vision's collator, and the model's config."""
    words = tokenizer("smolvlm")
    words.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    pictures = hf.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=2)
    processor = hf.MllamaProcessor(image_processor=pictures, tokenizer=words)
    config = hf.MllamaConfig(image_token_index=words.convert_tokens_to_ids("<|image|>"))
    return ImageTextCollator(processor, "mllama", False), config


def test_inputs_for_each_token_are_refused() -> None:
    message = (
        r"^m: the processor of mllama gives 'cross_attention_mask' for each token of a prompt, "
        r"which vlds cannot continue over an answer; choose another type of model \(tested: qwen2_"
    )
    with pytest.raises(ValueError, match=message):
        check_inputs(*mllama(), "m", "p")


def test_an_untested_type_that_fits_is_taken() -> None:
    model = tiny("qwen2_vl")
    check_inputs(replace(model.collator, model_type="new"), model.kind.read_config(), "m", "p")


def test_types_that_take_one_picture() -> None:
    kind = tiny("florence2").kind
    assert kind.most_images == (1, "model.num_images")
    assert tiny("llava").kind.most_images == (2, "model.num_images")
    replace(kind, num_images=1).check_sources()
    message = (
        r"^model\.num_images: got 2, but the processor of florence2 places pictures itself, one in "
        "a row; give 1, or choose another type of model$"
    )
    with pytest.raises(ValueError, match=message):
        replace(kind, num_images=2).check_sources()
    with pytest.raises(ValueError, match="num_images: got 0"):
        build(type(kind), vars(kind) | {"num_images": 0})


WHOLE = r"^p: \w+'s \w+ is .*, a whole number from 1 to"
UNREADABLE = r"^p: \w+ cannot read a small picture .*; name the proc"
CHANGED: list[tuple[str, str, dict[str, Any], str]] = [
    ("llava", "", {"patch_size": 0}, WHOLE),
    ("llava", "", {"patch_size": "14"}, WHOLE),
    ("paligemma", "image_processor", {"image_seq_length": 10**9}, WHOLE),
    ("llava", "", {"num_additional_image_tokens": 10**9}, UNREADABLE),
    ("internvl", "image_processor", {"max_patches": 10**9, "min_patches": 10**5}, UNREADABLE),
    (
        "llava",
        "image_processor",
        {"image_mean": [0.5, torch.nan, 0.5]},
        r"^p: .* NaN or infinite .* \('pixel_values'\); correct",
    ),
]
"""Type, part of its processor, fields that change, and the message."""


@pytest.mark.parametrize(("model_type", "owner", "fields", "message"), CHANGED)
def test_a_changed_processor_costs_neither_time_nor_memory(
    model_type: str, owner: str, fields: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(image_text, "TRY_SECONDS", 2)
    source = tiny(model_type)
    processor = copy.deepcopy(source.processor)
    for name, value in fields.items():
        setattr(getattr(processor, owner) if owner else processor, name, value)
    collator = replace(source.collator, processor=processor)
    with pytest.raises(ValueError, match=message):
        check_inputs(collator, source.kind.read_config(), "m", "p")


# docs/types.md says what the installed transformers' types are.


@pytest.mark.slow
def test_the_page_of_types_is_up_to_date() -> None:
    page = (ROOT / "docs/types.md").read_text("utf-8")
    version = ".".join(hf.__version__.split(".")[:2])
    if f"transformers {version} maps" not in page:
        pytest.skip(f"the page is about another version of transformers than {version}")
    made = subprocess.run(
        [sys.executable, "benchmarks/model_types.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == page


# Pictures reach the processor of an image-text model within the pixels that a recipe allows.


@pytest.mark.parametrize(
    ("sides", "spec", "expected"),
    [
        ((300, 1), NaturalSize(10**6), (1, 300)),
        ((300, 1), NaturalSize(10**6, 30_000), (10, 3000)),
        ((300, 1), NaturalSize(200, 100), (1, 244)),
        ((7, 9), NaturalSize(10**6, 100), (12, 9)),
        ((7, 9), NaturalSize(10**6, 63), (9, 7)),
        ((40, 10), NaturalSize(100, 100), (5, 20)),
    ],
)
def test_sides_keep_their_ratio(
    sides: tuple[int, int], spec: NaturalSize, expected: tuple[int, int]
) -> None:
    """Sides: width and height; expected: height and width."""
    assert decode_image(noise(0, sides), spec).shape == (3, *expected)


def test_small_pictures_have_more_visual_tokens() -> None:
    """Of a type whose processor enlarges none."""
    model = tiny("mistral3")
    tokens = []
    for min_pixels in (None, 56 * 56):
        kind = replace(model.kind, min_pixels=min_pixels)
        small = torch.from_numpy(decode_image(noise(0, (10, 10)), kind.image))
        collator = kind.collator(model.processor)
        prompt, _, media = collator.process(collator.chat.prompt("it", 1), [small])
        assert media["image_sizes"].tolist() == ([[56, 56]] if min_pixels else [[28, 28]])
        tokens.append(len(prompt))
    assert tokens[1] - tokens[0] == 4  # three more, and the end of a line

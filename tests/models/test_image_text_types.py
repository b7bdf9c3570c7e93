"""Types of image-text models: their parts, processors and pictures."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
import transformers as hf
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN_TYPES,
)

from tests.toys.files import ROOT
from tests.toys.image_text import PARAMETERS, TYPES
from tests.toys.image_text.configs import config
from tests.toys.image_text.places import PLACES
from tests.toys.image_text.rows import Tiny, images, tiny
from tests.toys.image_text.words import tokenizer
from tests.toys.pictures import noise
from vlds.data.shards.pictures import decode_image
from vlds.models.kinds import image_text
from vlds.models.kinds.image_text import TESTED, check_inputs, find_parts
from vlds.models.kinds.image_text_rows import ImageTextCollator
from vlds.recipe.build import build as built
from vlds.schema import NaturalSize

# Each tested type sees its pictures.


def test_tested_types_are_those_of_the_tests() -> None:
    assert sorted(TESTED) == sorted(TYPES)


@pytest.fixture(params=PARAMETERS)
def model(request: pytest.FixtureRequest) -> Tiny:
    return tiny(request.param)


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
    with torch.device("meta"):
        llama = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHALLOW))
    small = {"embed_dim": 32, "num_hidden_layers": 1}
    for model, message in (
        (
            shapes("fuyu", text_config={"model_type": "persimmon", **SHALLOW, "vocab_size": 40}),
            r"fuyu: .* no separate vision encoder; choose a type",
        ),
        (llama, r"llama: .* no separate vision encoder"),
        (
            shapes("idefics", **SHALLOW, vocab_size=40, vision_config=small),
            r"idefics: .* inside their language model; choose a type",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            find_parts(model)


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
        built(type(kind), vars(kind) | {"num_images": 0})


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
    version = ".".join(transformers.__version__.split(".")[:2])
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

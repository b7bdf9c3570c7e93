"""Processors that do not belong to a model, and inputs that vlds cannot place, are named before
long work."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.toys.image_text import save_tiny
from tests.toys.image_text.rows import Tiny, tiny
from tests.toys.image_text.words import tokenizer
from vlds.models import ImageTextToText
from vlds.models.kinds import image_text
from vlds.models.kinds.image_text import check_inputs, check_reads
from vlds.models.kinds.image_text_rows import ImageTextCollator
from vlds.recipe.build import build as built


@pytest.mark.parametrize(
    ("model_type", "nested", "pil"),
    [
        ("qwen2_vl", True, False), ("got_ocr2", False, False), ("idefics2", True, True),
        ("llava_onevision", False, False), ("blip-2", True, False),
    ],
)  # fmt: skip
def test_how_a_processor_takes_pictures_is_found_by_trying(
    model_type: str, nested: bool, pil: bool
) -> None:
    assert tiny(model_type).collator.layout == (nested, pil)


def test_a_processor_of_another_type() -> None:
    model, other = tiny("qwen2_vl"), tiny("llava")
    kind = replace(model.kind, processor=other.kind.path)
    message = (
        "model.processor: LlavaProcessor does not write token 325, where the qwen2_vl model looks "
        "for a picture; name the processor that belongs to it"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind.collator(kind.load_processor())


def test_a_tokenizer_with_more_tokens_than_rows() -> None:
    model = tiny("llava")
    processor = copy.deepcopy(model.processor)
    processor.tokenizer.add_tokens(["<more>"])
    with pytest.raises(ValueError, match=r"^model\.path: its tokenizer has ids up to 324, .* 324 "):
        Tiny("llava", model.kind, processor).build()


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


def test_a_processor_that_cannot_read_a_picture() -> None:
    collator, config = mllama()
    collator.processor.image_processor = None
    with pytest.raises(ValueError, match=r"^p: MllamaProcessor cannot read a small picture for a "):
        check_inputs(collator, config, "m", "p")


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


def test_pictures_of_another_size_than_the_model_reads() -> None:
    source = tiny("llava")
    model = source.build().train()
    check_reads(source.collator, "p", model.evaluating)
    assert model.training
    processor = copy.deepcopy(source.processor)
    processor.image_processor.crop_size = {"height": 42, "width": 42}
    processor.image_processor.size = {"shortest_edge": 42}
    other = replace(source.collator, processor=processor)
    message = r"^p: the model cannot read two small pictures as Llava.*42"
    with pytest.raises(ValueError, match=message):
        check_reads(other, "p", model.evaluating)


@pytest.mark.parametrize(("model_type", "said"), [("qwen2_5_vl", 1), ("florence2", 0)])
def test_prompts_without_a_template_are_shown(model_type: str, said: int, tmp_path: Path) -> None:
    save_tiny(model_type, tmp_path)
    for file in tmp_path.glob("chat_template*"):
        file.unlink()
    kind = ImageTextToText(path=str(tmp_path))
    model = kind.build(torch.float32, kind.load_processor())
    lines = kind.check_built(model, model.evaluating)
    assert len(lines) == said
    assert all("path: there is no chat template; prompts are '<|image_pad|>" in x for x in lines)


UNREADABLE = r"^p: \w+ cannot read a small picture .*; name the proc"
CHANGED: list[tuple[str, str, dict[str, Any], str]] = [
    *(
        (*place, {name: value}, rf"^p: \w+'s {name} is .*, a whole number from 1 to")
        for *place, name in (
            ("llava", "", "patch_size"),
            ("paligemma", "image_processor", "image_seq_length"),
        )
        for value in (0, "14", 10**9)
    ),
    ("llava", "", {"num_additional_image_tokens": 10**9}, UNREADABLE),
    (
        "internvl",
        "image_processor",
        {"max_patches": 10**9, "min_patches": 10**5},
        UNREADABLE,
    ),
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

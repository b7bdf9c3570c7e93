"""Tiny image-text-to-text models behave as those of the hub: they open, and see pictures."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.toys.image_text import PARAMETERS, pictures, save_tiny
from tests.toys.image_text.places import PLACES
from tests.toys.image_text.theirs import conversation, processed, question
from vlds.schema import Turn

WITHOUT_TEMPLATE = {"llava", "paligemma", "florence2", "vipllava", "got_ocr2", "blip-2"}
ENDLESS = {"glm4v", "glm4v_moe", "glm46v"}
"""Types whose template ends a turn with the next one."""
ASKS_OTHERWISE = {"glm4v", "gemma4"}
"""Types whose prompt is another than what stands before the answers of conversations."""
REFUSED = {("paligemma", 0), ("got_ocr2", 0), ("blip-2", 0), ("perception_lm", 2)}
"""Numbers of pictures in a row that a type's processor, or the model, refuses; PerceptionLM's takes
no two of unlike numbers of tiles."""
MISREAD = {("florence2", 2), ("blip-2", 2)}
"""Those that it accepts in some versions of transformers, and gives to the wrong row."""
LONG = {"got_ocr2", "gemma4"}
"""Types whose processors write more than a hundred tokens for two pictures."""
PROCESSORS = {
    "vipllava": "LlavaProcessor", "mistral3": "PixtralProcessor", "glm4v_moe": "Glm4vProcessor",
    "qwen3_5": "Qwen3VLProcessor", "qwen3_vl_moe": "Qwen3VLProcessor",
    "blip-2": "Blip2Processor",
}  # fmt: skip
"""Processors that are called otherwise than their type."""
QUESTION = "what color is it ?"


@pytest.fixture(scope="module", params=PARAMETERS)
def model_type(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(model_type)
    save_tiny(model_type, path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def encode(processor: Any, model_type: str, num_pictures: int, seed: int = 0) -> dict[str, Any]:
    """One row with pictures, and labels."""
    text = question(model_type, processor, QUESTION, num_pictures)
    row = processed(model_type, processor, text, pictures(num_pictures, seed))
    return row | {"labels": row["input_ids"]}


def test_a_folder_opens_as_its_type(model: Any, processor: Any, model_type: str) -> None:
    assert model.config.model_type == model_type
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert max(p.numel() for p in model.parameters()) < 100_000
    name = type(processor).__name__
    if model_type in PROCESSORS:
        assert name == PROCESSORS[model_type]
    else:
        assert name.lower().replace("_", "") == model_type.replace("_", "") + "processor"
    table = model.get_input_embeddings().weight
    assert len(table) == len(processor.tokenizer)


@pytest.mark.sampled(2)
def test_a_seed_draws_the_weights(model: Any, model_type: str, tmp_path: Path) -> None:
    states = []
    for seed in (0, 1):
        save_tiny(model_type, tmp_path / str(seed), seed)
        opened = AutoModelForImageTextToText.from_pretrained(tmp_path / str(seed))
        states.append(opened.state_dict())
    expected = model.state_dict()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in expected.items())
    parameters = [name for name, _ in model.named_parameters()]
    assert not any(torch.equal(states[1][name], expected[name]) for name in parameters)


@pytest.mark.parametrize("num_pictures", [0, 1, 2])
def test_rows_have_a_loss(model: Any, processor: Any, model_type: str, num_pictures: int) -> None:
    if (model_type, num_pictures) in MISREAD:
        pytest.skip(f"a row of {model_type} has at most one picture")
    if (model_type, num_pictures) in REFUSED:
        with pytest.raises((ValueError, RuntimeError, TypeError)), torch.no_grad():
            model(**encode(processor, model_type, num_pictures))
        return
    row = encode(processor, model_type, num_pictures)
    assert row["input_ids"].shape[1] < (600 if model_type in LONG else 100)
    assert ("pixel_values" in row) == (num_pictures > 0)
    with torch.no_grad():
        assert model(**row).loss.isfinite()


def test_pictures_change_the_logits(model: Any, processor: Any, model_type: str) -> None:
    row = encode(processor, model_type, 1)
    brighter = row | {"pixel_values": row["pixel_values"] + 1}
    with torch.no_grad():
        change = model(**row).logits[0, -1] - model(**brighter).logits[0, -1]
    assert change.abs().max() > 1e-3


def test_an_answer_ends_with_end_of_turn(processor: Any, model_type: str) -> None:
    assert (processor.chat_template is None) == (model_type in WITHOUT_TEMPLATE)
    if processor.chat_template is None or model_type in ENDLESS:
        return
    turns = [Turn("user", (None, QUESTION)), Turn("assistant", ("red",))]
    whole = conversation(processor, turns)
    prompt = conversation(processor, turns[:1], add_generation_prompt=True)
    assert whole.startswith(prompt) == (model_type not in ASKS_OTHERWISE)
    if model_type in ASKS_OTHERWISE:
        return
    answer = whole.removeprefix(prompt)
    assert answer.strip().startswith("red")
    ids = processor.tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]
    assert ids[-1] in processor.tokenizer.added_tokens_decoder


def test_parts_are_where_their_type_has_them(model: Any, model_type: str) -> None:
    places = PLACES[model_type]
    decoder = model.get_decoder()  # BLIP-2's is a whole model, with a head
    assert model.get_submodule(places.language) in (decoder, decoder.base_model)
    assert model.get_encoder(modality="image") is model.get_submodule(places.vision)
    names = [name for name, _ in model.named_parameters()]
    assert all(any(name.startswith(place) for name in names) for place in places.connector)


def test_processors_pickle(processor: Any, model_type: str) -> None:
    again = pickle.loads(pickle.dumps(processor))
    row, repeated = (encode(p, model_type, 1) for p in (processor, again))
    assert row.keys() == repeated.keys()
    assert all(torch.equal(row[name], repeated[name]) for name in row)


def test_pictures_are_of_unlike_sizes() -> None:
    shown = pictures(4, seed=3)
    assert len({picture.shape for picture in shown}) == 4
    assert all(picture.dtype == "uint8" and picture.shape[2] == 3 for picture in shown)
    assert all((one == two).all() for one, two in zip(shown, pictures(4, seed=3), strict=True))

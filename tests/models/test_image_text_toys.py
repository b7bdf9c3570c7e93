"""Tiny image-text-to-text models behave as those of the hub: they open, and see pictures."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.toys.image_text import TYPES, pictures, save_tiny
from tests.toys.image_text.places import PLACES

WITHOUT_TEMPLATE = {"llava", "paligemma", "florence2"}
REFUSED = {("paligemma", 0)}
"""Numbers of pictures in a row that a type's processor refuses."""
MISREAD = {("florence2", 2)}
"""Those that it accepts in some versions of transformers, and gives to the wrong row."""
QUESTION = "what color is it ?"


@pytest.fixture(scope="module", params=TYPES)
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


def conversation(num_pictures: int) -> list[dict[str, Any]]:
    """A question about pictures, and its answer."""
    shown: list[dict[str, str]] = [{"type": "image"} for _ in range(num_pictures)]
    return [
        {"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]


def encode(processor: Any, model_type: str, num_pictures: int, seed: int = 0) -> dict[str, Any]:
    """One row with pictures, and labels."""
    if processor.chat_template is not None:
        text = processor.apply_chat_template(conversation(num_pictures))
    else:
        text = ("" if model_type == "florence2" else "<image>" * num_pictures) + QUESTION
    shown = [pictures(num_pictures, seed)] if num_pictures else None
    row = dict(processor(text=[text], images=shown, return_tensors="pt"))
    return row | {"labels": row["input_ids"]}


def test_a_folder_opens_as_its_type(model: Any, processor: Any, model_type: str) -> None:
    assert model.config.model_type == model_type
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert max(p.numel() for p in model.parameters()) < 60_000
    name = type(processor).__name__.lower().replace("_", "")
    assert name == model_type.replace("_", "") + "processor"
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
        with pytest.raises(ValueError, match="images"):
            encode(processor, model_type, num_pictures)
        return
    row = encode(processor, model_type, num_pictures)
    assert row["input_ids"].shape[1] < 100
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
    if processor.chat_template is None:
        return
    whole = processor.apply_chat_template(conversation(1))
    prompt = processor.apply_chat_template(conversation(1)[:1], add_generation_prompt=True)
    assert whole.startswith(prompt)
    answer = whole.removeprefix(prompt)
    assert answer.strip().startswith("red")
    ids = processor.tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]
    assert ids[-1] in processor.tokenizer.added_tokens_decoder


def test_parts_are_where_their_type_has_them(model: Any, model_type: str) -> None:
    places = PLACES[model_type]
    assert model.get_decoder() is model.get_submodule(places.language)
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

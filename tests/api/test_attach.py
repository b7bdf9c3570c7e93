"""Methods in models that the user has built."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vlds
from tests.toys.users_models import MODELS, built, inputs, output
from vlds.models.methods import IA3, Adapter, BitFit, Full, LoRA, Method

METHODS: dict[str, Method] = {
    "LoRA": LoRA(rank=2), "Adapter": Adapter(reduction=4, init="identity"), "IA3": IA3(),
    "BitFit": BitFit(add_biases=True),
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_method_trains_and_comes_back(name: str, method: str, tmp_path: Path) -> None:
    """At first it changes nothing; it alone trains; what is saved gives the same in a new model;
    batches of any size and `generate` run."""
    model = built(name)
    before = output(model, name)
    frozen = copy.deepcopy(model.state_dict())
    attached = vlds.attach(model, METHODS[method])
    torch.testing.assert_close(output(model, name), before)
    model.train()
    optimizer = torch.optim.Adam(attached.parameters(), 0.1)
    output(model, name).square().mean().backward()
    trained = set(attached.state_dict())
    assert {n for n, p in model.named_parameters() if p.grad is not None} <= trained
    optimizer.step()
    model.eval()
    after = output(model, name)
    assert not torch.allclose(after, before)
    state = model.state_dict()
    for key, tensor in frozen.items():
        assert torch.equal(state[key], tensor) or key in trained, key
    attached.save(tmp_path / "saved")
    again = built(name)
    vlds.attach(again, tmp_path / "saved")
    assert torch.equal(output(again, name), after)
    assert output(again, name, rows=2).shape[0] == 2
    if name != "CLIP":
        asked = {key: t for key, t in inputs(name).items() if key != "decoder_input_ids"}
        assert len(again.generate(**asked, max_new_tokens=2, num_beams=2)) == 3  # type: ignore[operator]
    with pytest.raises(ValueError, match="saved exists already; name a new folder"):
        attached.save(tmp_path / "saved")


def test_lora_is_the_sum_of_weights() -> None:
    """Against the same weights folded into the model's own."""
    model, plain = built("Llama"), built("Llama")
    attached = vlds.attach(model, {"low": LoRA(rank=2, dropout=0.0, train_biases=False)})
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.normal_(std=0.2)
    folded = vlds.attach(plain, {"low": LoRA(rank=2, dropout=0.0, train_biases=False)})
    with torch.no_grad():
        for key, tensor in folded.state_dict().items():
            tensor.copy_(attached.state_dict()[key])
    folded.methods["low"].merge("low", plain, ["all"])
    assert not [path for path, _ in plain.named_modules() if "extensions.low" in path]
    torch.testing.assert_close(output(plain, "Llama"), output(model, "Llama"))


def test_forms_of_methods_and_a_part_of_a_model() -> None:
    model = built("CLIP")
    model.requires_grad_(False)
    attached = vlds.attach(
        model.vision_model, {"low": {"class_path": "LoRA", "init_args": {"rank": 2}}}
    )  # type: ignore[arg-type]
    assert "LoRA in CLIPVision" in repr(attached)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("vision_model.") for name in trained)
    before = output(built("CLIP"), "CLIP")
    vlds.attach(model.text_model, "BitFit")  # type: ignore[arg-type]
    torch.testing.assert_close(output(model, "CLIP"), before)
    # The same seed draws the same weights, whatever the program has drawn.
    states = []
    for _ in range(2):
        torch.rand(3)
        states.append(vlds.attach(built("Llama"), LoRA(rank=2)).state_dict())
    assert all(torch.equal(states[1][key], tensor) for key, tensor in states[0].items())


def test_a_model_without_its_methods_is_as_before() -> None:
    model = built("T5")
    before = output(model, "T5")
    attached = vlds.attach(model, "Adapter")
    assert not torch.allclose(output(model, "T5"), before)
    assert attached.detach() is model
    assert torch.equal(output(model, "T5"), before)
    assert [type(m) for m in model.modules()] == [type(m) for m in built("T5").modules()]
    vlds.attach(model, Full())  # it can have others now


REFUSED: list[tuple[Any, str]] = [
    ("LST", "methods.method: LST: T5ForConditionalGeneration has no encoder and decoder that LST"),
    ("Mixture", "methods.method: Mixture: it adds to the loss or acts between steps"),
    (LoRA(part="vision"), "part: got vision; give attach that part of your model"),
    (LoRA(roles=["attn_qkv"]), "no layer of T5ForConditionalGeneration plays the role 'attn_qkv'"),
    ("LoRAA", "methods.method: .*LoRAA.*did you mean"),
    ({"low": {"class_path": "LoRA", "init_args": {"rnk": 2}}}, "methods.low.*rnk.*did you mean"),
    ({"a.b": LoRA()}, "methods: 'a.b' cannot be a method's name"),
    ({}, r"methods: got \{\}; give a method such as"),
    (7, "methods: got 7; give a method such as"),
    (LoRA, "methods: got <class"),
    (Path("none"), "none/methods.json: No such file or directory; name a folder"),
]


@pytest.mark.parametrize(("methods", "message"), REFUSED)
def test_what_is_refused_leaves_the_model_as_it_was(methods: Any, message: str) -> None:
    model = built("T5")
    before = output(model, "T5")
    with pytest.raises(ValueError, match=message) as error:
        vlds.attach(model, methods)
    assert "\n" not in str(error.value)
    assert torch.equal(output(model, "T5"), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_twice_and_no_model() -> None:
    model = built("T5")
    vlds.attach(model, Full())
    with pytest.raises(ValueError, match="has methods already; give all methods at once, or call"):
        vlds.attach(model, LoRA())
    with pytest.raises(ValueError, match=r"model: got dict; give a torch\.nn\.Module"):
        vlds.attach({}, LoRA())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plays the role 'attn_q'"):
        vlds.attach(nn.Linear(2, 3), LoRA())


def first(value: Any) -> Any:
    """Changes the first tensor of a folder's weights."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        name = min(tensors)
        tensors[name] = tensors[name].to(value) if isinstance(value, torch.dtype) else value
        save_file(tensors, folder / "weights.safetensors")

    return change


def setting(name: str = "method", class_path: str = "LoRA", **init_args: Any) -> Any:
    """Writes another method into a folder."""
    method = {"class_path": class_path, "init_args": {"rank": 2, **init_args}}
    text = json.dumps({"methods": {name: method}})
    return lambda folder: (folder / "methods.json").write_text(text)


def pipe(name: str) -> Any:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


HOSTILE: dict[str, tuple[Any, str]] = {
    "nan": (first(torch.full((1, 2, 16), math.nan)), "a holds numbers that are NaN or infinite"),
    "inf": (first(torch.full((1, 2, 16), math.inf)), "a holds numbers that are NaN or infinite"),
    "whole": (first(torch.int64), "a is int64, and weights are floats of 16 to 64 bits"),
    "complex": (first(torch.complex64), "a is complex64, and weights are floats"),
    "float8": (first(torch.float8_e4m3fn), "a is float8_e4m3fn, and weights are floats"),
    "sizes": (first(torch.zeros(1, 2, 32)), r"a is 1 x 2 x 32 there and 1 x 2 x 16 in the model"),
    "damaged": (
        lambda f: (f / "weights.safetensors").write_bytes(b"x"),
        r"weights\.safetensors is",
    ),
    "pipe": (pipe("weights.safetensors"), "weights.safetensors is a named pipe, not a regular"),
    "pipe of methods": (pipe("methods.json"), r"methods\.json: a named pipe, not a regular file"),
    # Were they drawn before sizes are compared, these would ask for 64 and 640 GB.
    "rank": (setting(rank=10**9), "there and 1 x 1000000000 x 16 in the model"),
    "length": (
        lambda f: (f / "methods.json").write_text(
            '{"methods": {"method": {"class_path": "PrefixTuning", "init_args": {"length": 10000000'
            "000}}}}"
        ),
        "is absent there and .* in the model",
    ),
    "roles": (setting(roles=["attn_q"] * 100_000), "methods.json: 1,000,[0-9]* bytes; at most 65,"),
    "name": (
        setting("__class__"),
        r"methods\.json: methods: '__class__' cannot be a method's name",
    ),
    "class": (setting(class_path="os.system"), "a saved recipe may name only classes of vlds"),
    "list": (lambda f: (f / "methods.json").write_text("[]"), r"methods\.json: names no methods"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_stranger_s_folder_is_refused_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    change, message = HOSTILE[case]
    folder = vlds.attach(built("Llama"), LoRA(rank=2)).save(tmp_path / "saved")
    change(folder)
    model = built("Llama")
    with pytest.raises(ValueError, match=message) as error:
        vlds.attach(model, folder)
    assert "\n" not in str(error.value)
    attached = vlds.attach(model, LoRA(rank=2))  # the refusal has left nothing
    if case in ("nan", "sizes", "pipe"):
        with pytest.raises(ValueError, match=message):
            attached.load(folder)

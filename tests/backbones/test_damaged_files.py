"""Damaged weights, configs and tokenizers: an error that names file, value and cure, whatever the
library that reads them raises."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Tokenizer

from tests.toys.causal import write_tokenizer as causal_tokenizer
from tests.toys.models import build, saved_backbone
from tests.toys.world import write_tokenizer
from vlds.models.backbones import T5, Backbone, Bart
from vlds.models.loading.model_files import reading

FAMILIES = [T5, Bart]
LAYERS: dict[type[Backbone], str] = {T5: "num_layers", Bart: "encoder_layers"}


def complaint(backbone: Backbone) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (each test looks at the message)
        backbone.load(45, torch.float32)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def folder_of(backbone: Backbone) -> Path:
    return Path(str(backbone.path))


def change_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | fields), encoding="utf-8")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-64], "incomplete metadata, file not fully covered"),
        (lambda data: data[:20], "invalid header length"),
        (lambda data: b"", "header too small"),
        (lambda data: struct.pack("<Q", 1 << 60) + data[8:], "header too large"),
    ],
)
def test_weights_that_are_cut(
    family: type[Backbone], damage: Callable[[bytes], bytes], told: str, tmp_path: Path
) -> None:
    backbone = saved_backbone(family, tmp_path)
    file = folder_of(backbone) / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    message = complaint(backbone)
    assert message.startswith(f"model.backbone.path: {file} is not a whole safetensors file (Safet")
    assert told in message
    assert message.endswith("; copy it again, or name another")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("layers", "d_model", "told"),
    [
        (3, 16, " is missing (and "),
        (1, 16, " is in no layer of the config (and "),
        (2, 32, " x 16, the config asks for "),
    ],
)
def test_a_config_of_another_size(
    family: type[Backbone], layers: int, d_model: int, told: str, tmp_path: Path
) -> None:
    backbone = saved_backbone(family, tmp_path)
    change_config(folder_of(backbone), **{LAYERS[family]: layers}, d_model=d_model)
    message = complaint(backbone)
    assert message.startswith(
        f"model.backbone.path: the weights in {backbone.path} do not fit the co"
    )
    assert told in message
    assert message.endswith("restore the config.json that belongs to the weights")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"d_model": None}, "d_model"),
        ({"d_model": "16"}, "'16'"),
        ({"d_model": -1}, "d_model is -1 in the model's config, a number from 1 expected"),
        ({"vocab_size": 0}, "vocab_size is 0 in the model's config"),
        ({"pad_token_id": None}, "pad_token_id is None in the model's config"),
        ({"decoder_start_token_id": None}, "decoder_start_token_id is None"),
        ({"tie_word_embeddings": "no"}, "'no'"),
        ({"layer_norm_epsilon": math.nan}, "layer_norm_epsilon is nan, a finite number expected"),
        ({"rope": {"factor": math.inf}}, "rope.factor is inf, a finite number expected"),
    ],
)
def test_odd_fields_of_a_config(
    family: type[Backbone], fields: dict[str, Any], told: str, tmp_path: Path
) -> None:
    backbone = saved_backbone(family, tmp_path)
    change_config(folder_of(backbone), **fields)
    message = complaint(backbone)
    assert message.startswith("model.backbone.path: ")
    assert str(backbone.path) in message
    assert told in message
    assert message.endswith("; correct the file, or copy it again")


@pytest.mark.parametrize("value", [{"quant_method": "gptq", "bits": 4}, [], "awq", False])
def test_a_quantised_model_is_told_what_to_name(value: object, tmp_path: Path) -> None:
    backbone = saved_backbone(T5, tmp_path)
    change_config(folder_of(backbone), quantization_config=value)
    message = complaint(backbone)
    assert message.startswith(f"model.backbone.path: {backbone.path} is quantised (its config has")
    assert message.endswith("name the unquantised model")


def unread_index(folder: Path) -> Path:
    """A folder whose index sends each weight to a pickle of other numbers."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    torch.save(zeros, folder / "w.pt")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "w.pt")}
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps(index), encoding="utf-8")
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_an_index_names_no_pickle(family: type[Backbone], tmp_path: Path) -> None:
    backbone = saved_backbone(family, tmp_path)
    file = unread_index(folder_of(backbone))
    message = complaint(backbone)
    assert message.startswith(f"model.backbone.path: cannot read {file}")
    assert "it names 'w.pt', which is not a .safetensors file" in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    backbone = saved_backbone(T5, tmp_path)
    pipe = folder_of(backbone) / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    assert f"model.backbone.path: {pipe} is not a regular file" in complaint(backbone)


@pytest.mark.parametrize("suffix", [".scales", ".weight_scale", ".lora_A.weight"])
def test_weights_that_mean_nothing_without_others(suffix: str, tmp_path: Path) -> None:
    backbone = saved_backbone(T5, tmp_path)
    file = folder_of(backbone) / "model.safetensors"
    weights = load_file(file)
    odd = next(name for name in weights if name.endswith(".q.weight")).removesuffix(".weight")
    save_file(weights | {f"{odd}{suffix}": torch.ones(2)}, file, {"format": "pt"})
    message = complaint(backbone)
    assert f"holds {odd}{suffix}, which belongs to packed weights or to an adapter" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff\xfe" * 50,
        lambda data: b"[]",
        lambda data: json.dumps(json.loads(data) | {"model": None}).encode(),
        lambda data: json.dumps(json.loads(data) | {"model": {"type": "Unigram"}}).encode(),
        lambda data: data.replace(b'"Unigram"', b'"Nope"'),
    ],
)
def test_a_damaged_tokenizer_file(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "spiece.model")
    source = T5(config="x.json", tokenizer=str(tmp_path / "spiece.model"), extra_tokens=0)
    source.load_tokenizer().save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        ValueError, match=r"^model\.backbone\.tokenizer: cannot read a tokenizer from .*saved \("
    ) as e:
        T5(config="x.json", tokenizer=str(tmp_path / "saved")).load_tokenizer()
    assert "; copy it again, or name a folder that holds one" in str(e.value)


def test_an_id_beyond_the_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "spiece.model")
    source = T5(config="x.json", tokenizer=str(tmp_path / "spiece.model"), extra_tokens=0)
    folder = tmp_path / "saved"
    source.load_tokenizer().save_pretrained(folder)
    causal_tokenizer(folder)
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokens["model"]["vocab"]["e"] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    with pytest.raises(ValueError, match=r"saved has 300 tokens, and one with the id 2147483648"):
        source.load_tokenizer_from(folder)


@pytest.mark.slow
def test_more_layers_than_any_model_has(tmp_path: Path) -> None:
    backbone = saved_backbone(T5, tmp_path)
    change_config(folder_of(backbone), num_layers=100_000)
    with pytest.raises(ValueError, match="the model would have more than 50,000 modules; correct"):
        build(backbone, {})


def test_cut_pieces(tmp_path: Path) -> None:
    """A sentencepiece model that is cut between two pieces is valid, with fewer of them."""
    file = tmp_path / "spiece.model"
    write_tokenizer(file)
    whole = file.read_bytes()
    told = r"^model\.backbone\.tokenizer: cannot read a tokenizer from .*model \("
    for size in (0, 1, 59, 69, 200, 408, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=told):
            T5(config="x.json", tokenizer=str(file)).load_tokenizer()


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    backbone = saved_backbone(T5, tmp_path)
    file = folder_of(backbone) / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    message = complaint(backbone)
    assert message.startswith(
        f"model.backbone.path: cannot read weights from {backbone.path} (OSError: "
    )
    assert "model.safetensors" in message


def test_a_saved_tokenizer_brings_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor is anybody asked whether it may: a rank has nobody to ask."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    backbone = saved_backbone(T5, tmp_path)
    T5Tokenizer().save_pretrained(tmp_path)
    folder = tmp_path / "saved"
    backbone.load_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config |= {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with contextlib.suppress(ValueError):
        backbone.load_tokenizer_from(folder)
    assert not (tmp_path / "ran").exists()
    assert "y/N" not in capfd.readouterr().out


def test_panics_and_want_of_memory() -> None:
    class PanicException(BaseException):
        """As pyo3 has it."""

    with (
        pytest.raises(ValueError, match=r"^here \(PanicException: oh\); copy it again"),
        reading("here"),
    ):
        raise PanicException("oh")
    for error in (
        MemoryError(),
        KeyboardInterrupt(),
        OSError(12, "no"),
        RuntimeError("out of memory"),
    ):
        with pytest.raises(type(error)), reading("here"):
            raise error

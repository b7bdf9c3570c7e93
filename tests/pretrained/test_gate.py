"""Folders of strangers: their files can neither run code, nor ask, nor lead to another place."""

from __future__ import annotations

import json
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CLIPVisionModel, T5ForConditionalGeneration

from tests.toys import causal, dual, forks
from tests.toys.hub import Hub, running_hub
from tests.toys.image_text import save_tiny
from tests.toys.models import saved_backbone
from vlds.models import DualEncoder, ImageTextToText
from vlds.models.backbones import T5
from vlds.models.loading import model_files as hub_requests
from vlds.models.vision import ClipVision

SECONDS = 20
"""transformers tries a host that does not answer for 40."""
CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import PreTrainedConfig as Config, PreTrainedModel as Model
"""


@pytest.fixture(autouse=True)
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that knows nothing and records each request."""
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub_requests._check_name.cache_clear()
        hub_requests._snapshot.cache_clear()
        yield hub
        hub_requests._check_name.cache_clear()
        hub_requests._snapshot.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole image-text model, and beside it another one with code of its own."""
    save_tiny("llava", tmp_path / "model")
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "code.py").write_text(CODE, encoding="utf-8")
    maps = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    settings = {"model_type": "own", "auto_map": maps}
    (audio / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path / "model"


def edit(file: Path, fields: dict[str, Any]) -> None:
    """Set fields of a JSON file, which is made if it is not there; a dot leads into an object."""
    tree = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for place, value in fields.items():
        owner, _, name = place.rpartition(".")
        (tree[owner] if owner else tree)[name] = value
    file.write_text(json.dumps(tree), encoding="utf-8")


def answer_yes(folder: str, shown: Path) -> None:
    """Open a processor on a terminal whose user answers each question with yes."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            ImageTextToText(path=folder).load_processor()
        except ValueError as error:
            print(f"refused: {error}")
        sys.stdout.flush()
        os._exit(0)
    os.write(terminal, b"y\n" * 5)
    text = b""
    with suppress(OSError):  # the terminal's end
        while part := os.read(terminal, 4096):
            text += part
    os.waitpid(pid, 0)
    shown.write_bytes(text)


@pytest.mark.parametrize("file", ["processor_config.json", "audio_tokenizer_config.json"])
def test_no_question_is_asked_and_no_code_runs(file: str, folder: Path, tmp_path: Path) -> None:
    audio = audio_tokenizer(str(tmp_path / "audio"))
    whole = {"audio_tokenizer": audio} if file == PROCESSOR else audio
    edit(folder / file, whole)
    shown = tmp_path / "shown"
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": os.environ["PATH"]}
    child = forks.start(answer_yes, str(folder), shown, log=tmp_path / "log",
                        environment=environment)  # fmt: skip
    assert child.exit_code(60) == 0
    text = shown.read_text("utf-8")
    assert "[y/N]" not in text
    assert not list(tmp_path.rglob("ran"))
    assert "refused: model.path: " in text
    assert file in text


def audio_tokenizer(name: str) -> dict[str, str]:
    return {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": name}


PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer_config.json"
OWN_CODE = {"auto_map": {"AutoConfig": "code.Config"}}
DPT = {"model_type": "dpt", "backbone": "someone/net", "is_hybrid": False}
TIMM = {"model_type": "timm_wrapper", "architecture": "resnet18"}
STRANGE: dict[str, tuple[str, dict[str, Any]]] = {
    "audio_tokenizer": (PROCESSOR, {"audio_tokenizer": audio_tokenizer("someone/audio")}),
    "audio_tokenizer_name_or_path": ("audio_tokenizer_config.json", audio_tokenizer("one/audio")),
    "gguf_file": (TOKENIZER, {"gguf_file": "words.gguf"}),
    "vision_config.backbone": ("config.json", {"vision_config": DPT}),
    "vision_config.architecture": (
        "config.json",
        {"vision_config": TIMM | {"architecture": "hf-hub:someone/net"}},
    ),
    "vision_config.model_args.checkpoint_path": (
        "config.json",
        {"vision_config": TIMM | {"model_args": {"checkpoint_path": "/somewhere/weights.pth"}}},
    ),
    "text_config.attn_implementation": (
        "config.json",
        {"text_config.attn_implementation": "someone/kernel"},
    ),
    "image_processor.image_processor_type": (
        PROCESSOR,
        {"image_processor.image_processor_type": "pipeline"},
    ),
    "auto_map": ("config.json", {"model_type": "own"} | OWN_CODE),
    "names code to run, and transformers itself has no class": (
        "config.json",
        {"model_type": ["own"]} | OWN_CODE,
    ),
    "transformers_weights": ("config.json", {"transformers_weights": "sub/other.safetensors"}),
    "fast_tokenizer_files": (
        TOKENIZER,
        {"fast_tokenizer_files": ["../other/tokenizer.1.0.json"]},
    ),
    "tokenizer_class": (TOKENIZER, {"tokenizer_class": "AutoModelForCausalLM"}),
    "processor_class": (PROCESSOR, {"processor_class": "AutoTokenizer"}),
    "names '../other.safetensors'": (
        "model.safetensors.index.json",
        {"weight_map": {"lm_head.weight": "../other.safetensors"}},
    ),
}


@pytest.mark.parametrize("key", STRANGE)
def test_what_leads_elsewhere_is_refused_at_once(key: str, folder: Path, recorded: Hub) -> None:
    name, fields = STRANGE[key]
    edit(folder / name, fields)
    kind, started = ImageTextToText(path=str(folder)), time.monotonic()
    with pytest.raises(ValueError, match=rf"^model\.path: .*{name}.*") as error:
        kind.build(torch.float32, kind.load_processor())
    assert key in str(error.value)
    assert recorded.requests == []
    assert time.monotonic() - started < SECONDS


def test_a_processor_that_a_run_has_saved(folder: Path, recorded: Hub) -> None:
    """An artifact's folder holds no config of a model."""
    (folder / "config.json").unlink()
    edit(folder / PROCESSOR, STRANGE["audio_tokenizer"][1])
    with pytest.raises(
        ValueError, match=r"processor_config\.json: audio_tokenizer is .*, which na"
    ):
        ImageTextToText(config="there.json").load_processor_from(folder)
    assert recorded.requests == []


def test_code_of_a_model_that_transformers_knows_is_left_alone(folder: Path) -> None:
    """Many models on the hub have code for old versions beside them."""
    edit(folder / "config.json", OWN_CODE)
    edit(folder / TOKENIZER, {"auto_map": {"AutoTokenizer": ["code.Words", None]}})
    kind = ImageTextToText(path=str(folder))
    assert kind.build(torch.float32, kind.load_processor()).tokenizer is not None


def test_a_hub_name_is_fetched_and_nothing_that_its_files_name(folder: Path, recorded: Hub) -> None:
    """Configs come first, so that weights of a refused model are not downloaded."""
    recorded.published = {"someone/llava": folder, "someone/bad": folder}
    (folder / "consolidated.safetensors").write_bytes(b"other weights")
    kind = ImageTextToText(path="someone/llava")
    found = kind.build(torch.float32, kind.load_processor())
    local = ImageTextToText(path=str(folder))
    (folder / "consolidated.safetensors").unlink()
    expected = local.build(torch.float32, local.load_processor())
    for mine, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert any("model.safetensors" in request for request in recorded.requests)
    assert not any("consolidated" in request for request in recorded.requests)
    constants.HF_HUB_OFFLINE = True  # what is in the cache does without a network
    hub_requests._snapshot.cache_clear()
    kind.build(torch.float32, kind.load_processor())
    constants.HF_HUB_OFFLINE = False
    recorded.requests.clear()
    edit(folder / PROCESSOR, STRANGE["audio_tokenizer"][1])
    with pytest.raises(ValueError, match=r"^model\.path: .*processor_config\.json: audio_tok"):
        ImageTextToText(path="someone/bad").check_sources()
    assert not any("audio" in r or "safetensors" in r for r in recorded.requests)


def beside_clip(folder: Path) -> Callable[[], object]:
    dual.save_clip(folder)
    CLIPVisionModel.from_pretrained(folder).save_pretrained(folder / "vision")
    save_adapter(CLIPVisionModel.from_pretrained(folder / "vision"), folder / "vision", "q_proj")
    return lambda: ClipVision(path=str(folder / "vision")).build(torch.float32)


def beside_whole_clip(folder: Path) -> Callable[[], object]:
    dual.save_clip(folder)
    kind = DualEncoder(path=str(folder))
    save_adapter(kind.build(torch.float32, None).backbone, folder, "q_proj")
    return lambda: kind.build(torch.float32, None)


def beside_t5(folder: Path) -> Callable[[], object]:
    folder.mkdir()
    family = saved_backbone(T5, folder)
    save_adapter(T5ForConditionalGeneration.from_pretrained(str(family.path)),
                 Path(str(family.path)), "q")  # fmt: skip
    return lambda: family.load(40, torch.float32)


def beside_language_model(folder: Path) -> Callable[[], object]:
    causal.save_model(folder)
    save_adapter(AutoModelForCausalLM.from_pretrained(folder), folder, "q_proj")
    return lambda: causal.build(causal.kind_in(folder))


def save_adapter(model: Any, folder: Path, layers: str) -> None:
    """peft's adapter with weights that change what the model computes, in the model's folder."""
    config = LoraConfig(target_modules=[layers], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)


@pytest.mark.parametrize(
    "write", [beside_clip, beside_whole_clip, beside_t5, beside_language_model]
)
def test_an_adapter_beside_the_weights(
    write: Callable[[Path], Callable[[], object]], tmp_path: Path
) -> None:
    opened = write(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"^model\..*adapter_config\.json: .* an adapter beside .*; move"
    ):
        opened()

"""A folder that open_clip wrote becomes a CLIP that says what theirs says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.toys.dual import WORDS, build, pairs, save_resnet_clip, write_tokenizer
from tests.toys.faults.hostile_inputs import damage_file
from tests.toys.trained_runs import convert_code
from vlds.convert.clip import HUB
from vlds.models.vision.clip import MEAN, STD

open_clip: Any = pytest.importorskip(
    "open_clip", reason="open_clip is not installed: pip install open_clip_torch"
)
TEXT = {
    "context_length": 14, "vocab_size": len(WORDS), "width": 64, "heads": 1, "layers": 2,
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "resnet": {"layers": [1, 2, 1, 1], "width": 8, "image_size": 64},
    "vit": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 16},
}
LAST = [*(word for word in WORDS if word != "<eos>"), "<eos>"]
"""As in CLIP's vocabulary, the last token ends texts."""
TEXTS = ["it is red", "a picture that is blue and nothing but blue", "it is green ."]


def theirs(tower: str, quick: bool = True, **vision: Any) -> Any:
    """A tiny CLIP of open_clip, whose weights are all unlike each other."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(5)
    fields = VISION[tower] | vision
    model = CLIP(12, CLIPVisionCfg(**fields), CLIPTextCfg(**TEXT), quick_gelu=quick)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running_var" in name or ("bn" in name and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 4:
                tensor *= 2.4  # else each of the many layers would halve how pictures differ
            elif tensor.dim() < 2 and name != "logit_scale" and tensor.is_floating_point():
                tensor += 0.2 * torch.randn(tensor.shape)
    return model.eval()


def settings_of(tower: str, quick: bool) -> dict[str, Any]:
    """The content of open_clip_config.json."""
    fields = {"embed_dim": 12, "vision_cfg": VISION[tower], "text_cfg": TEXT}
    return {"model_cfg": fields | ({"quick_gelu": True} if quick else {}), "preprocess_cfg": {}}


def write(model: Any, tower: str, quick: bool, folder: Path) -> Path:
    """Write a model as open_clip does for the hub."""
    folder.mkdir(parents=True)
    write_tokenizer(folder, LAST)
    write_settings(folder, settings_of(tower, quick))
    write_weights(folder, model.state_dict())
    return folder


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps(settings))


def write_weights(folder: Path, state: dict[str, torch.Tensor]) -> None:
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, folder / "open_clip_model.safetensors")


@torch.no_grad()
@pytest.mark.parametrize(
    ("tower", "quick"), [("resnet", True), ("resnet", False), ("vit", True), ("vit", False)]
)
def test_features_are_those_of_open_clip(tower: str, quick: bool, tmp_path: Path) -> None:
    model = theirs(tower, quick)
    source = write(model, tower, quick, tmp_path / "theirs")
    # open_clip reads the folder so, too.
    again, *_ = open_clip.create_model_from_pretrained(f"local-dir:{source}")
    again_state = again.state_dict()
    assert all(torch.equal(again_state[name], t) for name, t in model.state_dict().items())
    assert convert_code("clip", "--from", source, "--out", tmp_path / "ours") == 0
    ours = build(tmp_path / "ours").eval()
    batch = pairs(ours, TEXTS)
    assert batch.images is not None
    # Noise of unlike contrast: averaged over a picture, all noise is alike.
    contrast = torch.tensor([0.1, 0.5, 1.0]).view(-1, 1, 1, 1)
    batch.images = (batch.images * contrast).to(torch.uint8)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (MEAN, STD))
    images = model.encode_image((batch.images.float() / 255 - mean) / std, normalize=True)
    # open_clip reads a text at its largest token; ours ends texts with the last word.
    ids = torch.zeros(len(TEXTS), TEXT["context_length"], dtype=torch.long)
    ids[:, : batch.input_ids.shape[1]] = batch.input_ids
    texts = model.encode_text(ids, normalize=True)
    assert torch.allclose(ours.image_embeddings(batch), images, atol=1e-5)
    assert torch.allclose(ours.through_text(batch.input_ids), texts, atol=1e-5)
    assert torch.allclose(ours.scale, model.logit_scale.exp())
    assert images.std(0).mean() > 0.02  # the pictures differ, and so do the texts
    assert texts.std(0).mean() > 0.02


def test_openai_s_files_have_a_folder_on_the_hub() -> None:
    for stem, name in HUB.items():
        model = stem.replace("-336px", "-336")
        assert open_clip.get_pretrained_cfg(model, "openai")["hf_hub"] == f"timm/{name}.openai/"


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, settings = theirs("resnet"), settings_of("resnet", True)
    folder = write(model, "resnet", True, tmp_path / "theirs")
    state = dict(model.state_dict())

    def said(source: Path, *words: str | Path) -> str:
        capsys.readouterr()
        assert convert_code("clip", "--from", source, *words, "--out", tmp_path / "ours") == 2
        assert not (tmp_path / "ours").exists()
        return capsys.readouterr().err

    (tmp_path / "ViT-B-32.pt").write_bytes(b"PK")
    cure = "`hf download timm/vit_base_patch32_clip_224.openai --local-dir FOLDER`"
    assert cure in said(tmp_path / "ViT-B-32.pt")
    os.mkfifo(tmp_path / "RN50.pt")
    assert "hf download timm/resnet50_clip.openai" in said(tmp_path / "RN50.pt")
    write_tokenizer(tmp_path / "first")  # ends texts with its second token
    end = len(WORDS) - 1
    assert f"model.tokenizer: texts end with token 1, but with eos_token_id {end}" in (
        said(folder, "--tokenizer", tmp_path / "first")
    )
    conv, mean = "visual.conv1.weight", "visual.bn1.running_mean"
    for changed, message in (
        ({"visual.more": torch.zeros(2)}, "holds vision_model.net.more that CLIP has no place for"),
        ({mean: None}, "has no vision_model.net.stem.conv1.bn.running_mean"),
        ({mean: state[mean].to(torch.complex64)}, "bn.running_mean is torch.complex64 (4,) in"),
        ({mean: torch.full_like(state[mean], torch.nan)}, "bn.running_mean holds nan, finite"),
        ({conv: None}, f"is not a CLIP of OpenAI or open_clip: no {conv}"),
    ):
        write_weights(folder, {k: t for k, t in (state | changed).items() if t is not None})
        assert message in said(folder)
    for part, change, message in (
        ("preprocess_cfg", {"mean": [0.5, 0.5, 0.5]}, "preprocess_cfg.mean is [0.5, 0.5, 0.5]"),
        ("vision_cfg", {"timm_model_name": "a"}, "vision_cfg.timm_model_name is 'a', which vlds"),
        ("vision_cfg", {"head_width": 48}, "vision_cfg.head_width is 48; a ResNet's is 64"),
    ):
        write_weights(folder, state)
        changed_settings = settings_of("resnet", True)
        inner = changed_settings if part in settings else changed_settings["model_cfg"]
        inner[part] = inner[part] | change
        write_settings(folder, changed_settings)
        assert message in said(folder)
    (folder / "open_clip_model.safetensors").unlink()
    os.mkfifo(folder / "open_clip_model.safetensors")
    assert "open_clip_model.safetensors is not a regular file" in said(folder)


@pytest.mark.slow
def test_damaged_files(tmp_path: Path) -> None:
    """A line and exit code 2, or a model of other numbers."""
    source = write(theirs("resnet"), "resnet", True, tmp_path / "whole")
    for seed in range(8):
        draw = Random(seed)
        file = source / draw.choice(["open_clip_config.json", "open_clip_model.safetensors"])
        kept = file.read_bytes()
        damage_file(file, draw)
        out = tmp_path / f"ours {seed}"
        code = convert_code("clip", "--from", source, "--out", out)
        assert (code, out.exists()) in ((0, True), (2, False)), seed
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        file.unlink(missing_ok=True)  # it may be a link now
        file.write_bytes(kept)


def test_a_resnet_without_its_statistics_is_not_opened(tmp_path: Path) -> None:
    """Hugging Face makes up buffers that a file lacks."""
    folder = save_resnet_clip(tmp_path / "resnet")
    state = load_file(folder / "model.safetensors")
    (name,) = [n for n in state if n.endswith("stem.conv2.bn.running_var")]
    del state[name]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"model\.path: the weights in .* lack {name}; copy"):
        build(folder)

"""OpenAI's and open_clip's files become a CLIP that says what theirs says."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.toys.dual import WORDS, build, pairs, save_resnet_clip, write_tokenizer
from tests.toys.faults.hostile_inputs import damage_file
from tests.toys.trained_runs import convert_code
from vlds.convert.clip import openai_tokenizer
from vlds.convert.torchscript import read_torchscript
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


class Archived(nn.Module):
    """A model as OpenAI has archived it: with numbers among its buffers, and its two encoders."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(14))

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.visual(pixels)
        return found


def write(model: Any, form: str, tower: str, quick: bool, folder: Path) -> list[Any]:
    """Write a model in a form; the words of `vlds convert clip` that read it."""
    words = folder / "words"
    words.mkdir(parents=True)
    write_tokenizer(words, LAST)
    activation = ["--activation", "quick_gelu" if quick else "gelu"]
    if form == "archive":
        side = VISION[tower]["image_size"]
        traced = torch.jit.trace(Archived(model), torch.randn(1, 3, side, side))
        traced.save(str(folder / "RN.pt"))
        return ["--from", folder / "RN.pt", "--tokenizer", words]
    if form == "checkpoint":
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, folder / "epoch_3.pt")
        heads = ["--head-width", VISION["vit"]["head_width"]] if tower == "vit" else []
        return ["--from", folder / "epoch_3.pt", "--tokenizer", words, *activation, *heads]
    (words / "open_clip_config.json").write_text(json.dumps(settings_of(tower, quick)))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, words / "open_clip_model.safetensors")
    return ["--from", words]


@torch.no_grad()
@pytest.mark.parametrize(
    ("tower", "form", "quick"),
    [
        ("resnet", "archive", True),
        ("resnet", "checkpoint", True),
        ("resnet", "folder", False),
        ("vit", "checkpoint", True),
        ("vit", "folder", True),
        ("vit", "folder", False),
    ],
)
def test_features_are_those_of_open_clip(
    tower: str, form: str, quick: bool, tmp_path: Path
) -> None:
    model = theirs(tower, quick)
    source = write(model, form, tower, quick, tmp_path / "theirs")
    assert convert_code("clip", *source, "--out", tmp_path / "ours") == 0
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


def test_openai_s_list_of_merges_is_its_tokenizer() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    folder = Path(open_clip.__file__).parent
    ours, theirs_ = openai_tokenizer(folder / "bpe_simple_vocab_16e6.txt.gz"), SimpleTokenizer()
    texts = ["a photo of a 707-320, a type of aircraft.", "Yellow lady's slipper!", "ÉTÉ x²", ""]
    for text in texts:
        ends = [theirs_.sot_token_id, theirs_.eot_token_id]
        assert ours(text)["input_ids"] == [ends[0], *theirs_.encode(text), ends[1]]
    assert ours.eos_token_id == len(ours) - 1 == 49_407


def test_the_archive_s_code_is_not_run(tmp_path: Path) -> None:
    """A TorchScript archive is a program: its tensors are read, and nothing else."""

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    torch.jit.script(nn.Linear(3, 2)).save(str(tmp_path / "good.pt"))
    found = read_torchscript(tmp_path / "good.pt")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "weight": (2, 3), "bias": (2,),
    }  # fmt: skip
    for name, bad in (("evil", pickle.dumps(Evil(), 2)), ("cut", b"\x80\x02}")):
        with (
            zipfile.ZipFile(tmp_path / "good.pt") as good,
            zipfile.ZipFile(tmp_path / f"{name}.pt", "w") as out,
        ):
            for entry in good.namelist():
                out.writestr(entry, bad if entry.endswith("/data.pkl") else good.read(entry))
    with pytest.raises(ValueError, match=r"it names .*exec, which could run any program"):
        read_torchscript(tmp_path / "evil.pt")
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(ValueError, match=r"cut\.pt is not a complete TorchScript archive"):
        read_torchscript(tmp_path / "cut.pt")


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = theirs("resnet")
    *_, tokenizer = source = write(model, "checkpoint", "resnet", True, tmp_path / "a")[:4]
    out = ["--out", tmp_path / "ours"]

    def said(*words: str | Path) -> str:
        capsys.readouterr()
        assert convert_code("clip", *words, *out) == 2
        assert not (tmp_path / "ours").exists()
        return capsys.readouterr().err

    assert "--activation: the file does not say which" in said(*source)
    assert "--tokenizer: the file holds none" in said(*source[:2])
    vit = write(theirs("vit"), "checkpoint", "vit", True, tmp_path / "vit")
    assert "--head-width: the file does not say how wide" in said(*vit[:6])
    assert "--head-width: got 48, which does not divide" in said(*vit[:7], "48")
    quick = ["--activation", "quick_gelu"]
    write_tokenizer(tmp_path / "first")  # ends texts with its second token
    words = [*source[:3], tmp_path / "first", *quick]
    end = len(WORDS) - 1
    assert f"model.tokenizer: texts end with token 1, but with eos_token_id {end}" in said(*words)
    state = {**model.state_dict(), "visual.more": torch.zeros(2)}
    torch.save(state, tmp_path / "more.pt")
    words = ["--from", tmp_path / "more.pt", "--tokenizer", tokenizer, *quick]
    assert "holds vision_model.net.more that CLIP has no place for" in said(*words)
    del state["visual.more"], state["visual.bn1.running_mean"]
    torch.save(state, tmp_path / "more.pt")
    assert "has no vision_model.net.stem.conv1.bn.running_mean" in said(*words)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_tokenizer(folder, LAST)
    settings = settings_of("resnet", True)
    settings["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5]}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    assert "preprocess_cfg.mean is [0.5, 0.5, 0.5]" in said("--from", folder)
    settings["model_cfg"]["vision_cfg"] = {"timm_model_name": "convnext_base"}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    assert "vision_cfg.timm_model_name is 'convnext_base', which vlds does not" in (
        said("--from", folder)
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_damaged_files(form: str, tmp_path: Path) -> None:
    """A line and exit code 2, or a model of other numbers."""
    source = write(theirs("resnet"), form, "resnet", True, tmp_path / "whole")
    files = [tmp_path / "whole" / "RN.pt"]
    if form == "folder":
        files = [source[1] / "open_clip_config.json", source[1] / "open_clip_model.safetensors"]
    for seed in range(8):
        draw = Random(seed)
        file = draw.choice(files)
        kept = file.read_bytes()
        damage_file(file, draw)
        out = tmp_path / f"ours {seed}"
        code = convert_code("clip", *source, "--out", out)
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

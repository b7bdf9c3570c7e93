"""Makes a CLIP that `DualEncoder` opens from a folder of the hub in the form of open_clip:

    open_clip_config.json          sizes, and what weights cannot tell: heads, the activation
    open_clip_model.safetensors    OpenAI's weights (timm/resnet50_clip.openai, ...), or others
    tokenizer files

A ViT becomes a folder that Hugging Face's CLIPModel opens, a ResNet one that vlds opens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from vlds.convert.output import first_names, new_output, say
from vlds.convert.target import read_safetensors, read_settings
from vlds.models.kinds.dual_encoder import DualEncoder
from vlds.models.kinds.resnet_clip import HEAD_WIDTH, STRIDE, ResNetClip, ResNetClipConfig
from vlds.models.loading.gate import (
    TOKENIZER_FILES,
    bounded,
    check_finite,
    check_tokenizer,
    open_checked,
    quiet,
)
from vlds.models.loading.model_files import SourceError, reading
from vlds.models.vision.clip import MEAN, STD

SETTINGS, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUB = {
    "RN50": "resnet50_clip", "RN101": "resnet101_clip", "RN50x4": "resnet50x4_clip",
    "RN50x16": "resnet50x16_clip", "RN50x64": "resnet50x64_clip",
    "ViT-B-32": "vit_base_patch32_clip_224", "ViT-B-16": "vit_base_patch16_clip_224",
    "ViT-L-14": "vit_large_patch14_clip_224", "ViT-L-14-336px": "vit_large_patch14_clip_336",
}  # fmt: skip
"""OpenAI's file -> the folder with the same weights, timm/NAME.openai on the hub."""
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Last parts of the names of some files' other entries."""
TEXT = "text."
"""Before the names of the text tower in newer models of open_clip."""
LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Module of a transformer's block -> its name in Hugging Face's layer."""
TOP = {
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
"""Begin of a name -> that of Hugging Face's; a trailing dot: of a module's tensors."""
TURNED = ("text_projection", "visual.proj")
"""Matrices that multiply from the right."""
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
JOINT = re.compile(r"((?:visual\.)?transformer\.resblocks\.\d+)\.attn\.in_proj_(weight|bias)")
"""Queries, keys and values, one below the other."""
STAGE = re.compile(r"visual\.layer([1-4])\.(\d+)\.")
KNOWN = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
    "text_cfg": {
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio",
        "hf_tokenizer_name", "tokenizer_kwargs",
    },
}  # fmt: skip
"""Part of `model_cfg` in open_clip_config.json -> its fields that this file knows."""


def convert_clip(source: Path, tokenizer: str | None, out: Path) -> None:
    """Write a folder that `DualEncoder` opens.

    Errors: ValueError if the files are not of such a model, or the tokenizer is another one's.
    """
    if not source.is_dir():
        hub = HUB.get(source.stem, HUB["RN50"])
        raise ValueError(
            f"--from: {source} is a file, and vlds reads folders with {WEIGHTS}; for OpenAI's: "
            f"`hf download timm/{hub}.openai --local-dir FOLDER`"
        )
    words = tokenizer or str(source)
    with reading(f"--tokenizer: cannot read a tokenizer from {words}"):
        check_tokenizer(words, "--tokenizer", TOKENIZER_FILES)
        processor = open_checked(AutoTokenizer, words, "--tokenizer")
    say(f"reading {source}")
    settings = read_clip_settings(source / SETTINGS)
    weights = read_clip(source / WEIGHTS)
    with reading(f"--from: {source} holds sizes of no CLIP", "name another folder"), quiet():
        config = config_of(weights, settings)
        model_class = ResNetClip if isinstance(config, ResNetClipConfig) else CLIPModel
        # Sizes that the weights do not have, such as a layer's square, ask for no memory.
        with bounded(), torch.device("meta"):
            model = model_class(config)
    fill(model, named_weights(weights), source)
    with new_output(out, "folder") as partial, quiet():
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        kind = DualEncoder(path=str(partial))
        size = {"height": kind.image.height, "width": kind.image.width}
        CLIPImageProcessor(size=size, do_center_crop=False).save_pretrained(partial)
        # As a run opens it: the tokenizer may be that of another model.
        kind.build(torch.float32, kind.load_processor())


def read_clip_settings(file: Path) -> Mapping[str, Any]:
    """`model_cfg` of open_clip.

    Errors: ValueError for pictures that are prepared otherwise than DualEncoder's, and for a field
    that changes what a model computes in a way not known here.
    """
    described = read_settings(file)
    pictures = described.get("preprocess_cfg") or {}
    for name, ours in (("mean", MEAN), ("std", STD)):
        if (theirs := pictures.get(name, list(ours))) != list(ours):
            raise ValueError(
                f"--from: {file}: preprocess_cfg.{name} is {theirs}, and DualEncoder's pictures "
                f"have CLIP's, {list(ours)}; name a CLIP with these"
            )
    settings = described.get("model_cfg")
    for part, known in KNOWN.items():
        fields = settings.get(part) if part and isinstance(settings, Mapping) else settings
        if not isinstance(fields, Mapping):
            raise ValueError(f"--from: {file} does not describe a model of open_clip")
        odd = sorted(name for name, value in fields.items() if name not in known and value)
        if odd:
            raise ValueError(
                f"--from: {file}: {part or 'model_cfg'}.{odd[0]} is {fields[odd[0]]!r}, which vlds "
                "does not know; CLIP's ViT and ResNet alone can be read"
            )
    assert isinstance(settings, Mapping)
    return settings


def read_clip(file: Path) -> dict[str, Tensor]:
    """The weights, by the names that OpenAI gave them.

    Errors: ValueError if they are another model's.
    """
    weights = read_safetensors(file)
    if odd := sorted(name for name in weights if name.startswith("visual.trunk.")):
        raise ValueError(
            f"--from: {file} holds {odd[0]}, of a vision tower of timm's; OpenAI's ViT and ResNet "
            "can be read"
        )
    # Newer models of open_clip name the text tower.
    bare = {
        name.removeprefix(TEXT): tensor
        for name, tensor in weights.items()
        if name.rpartition(".")[2] not in NOT_WEIGHTS
    }
    wanted = ("token_embedding.weight", "positional_embedding", "text_projection", "logit_scale")
    if missing := [name for name in (*wanted, "visual.conv1.weight") if name not in bare]:
        raise ValueError(f"--from: {file} is not a CLIP of OpenAI or open_clip: no {missing[0]}")
    return bare


def config_of(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Any:
    """The config of a model with the sizes of the weights.

    Errors: SourceError if the heads have a width that cannot be; whatever sizes of no such model
    raise.
    """
    activation = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    head_width = settings["vision_cfg"].get("head_width", HEAD_WIDTH)
    words, width = weights["token_embedding.weight"].shape
    text = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(first(weights, "transformer.resblocks.0.mlp.c_fc.bias")),
        "num_hidden_layers": num_blocks(weights, "transformer.resblocks."),
        "num_attention_heads": settings["text_cfg"].get("heads", 8),  # open_clip's default
        "max_position_embeddings": len(weights["positional_embedding"]),
        "hidden_act": activation,
        # As in CLIP's own vocabulary, the last two tokens begin and end texts.
        "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1,
    }  # fmt: skip
    projection = weights["text_projection"].shape[1]
    common = {"projection_dim": projection, "text_config": text | {"projection_dim": projection}}
    conv = weights["visual.conv1.weight"]
    if "visual.layer1.0.conv1.weight" not in weights:
        if head_width < 1 or len(conv) % head_width:
            raise SourceError(
                f"--from: vision_cfg.head_width is {head_width}, which does not divide the vision "
                f"tower's width, {len(conv)}"
            )
        grid = round((len(first(weights, "visual.positional_embedding")) - 1) ** 0.5)
        vision = {
            "hidden_size": len(conv),
            "intermediate_size": len(
                first(weights, "visual.transformer.resblocks.0.mlp.c_fc.bias")
            ),
            "num_hidden_layers": num_blocks(weights, "visual.transformer.resblocks."),
            "num_attention_heads": len(conv) // head_width,
            "image_size": grid * conv.shape[-1],
            "patch_size": conv.shape[-1],
            "hidden_act": activation,
            "projection_dim": projection,
        }
        return CLIPConfig.from_dict(common | {"vision_config": vision})
    if head_width != HEAD_WIDTH:
        raise SourceError(
            f"--from: vision_cfg.head_width is {head_width}; a ResNet's is {HEAD_WIDTH}"
        )
    stages: dict[str, set[str]] = {}
    for stage, number in (m.groups() for m in map(STAGE.match, weights) if m is not None):
        stages.setdefault(stage, set()).add(number)
    grid = round((len(first(weights, "visual.attnpool.positional_embedding")) - 1) ** 0.5)
    vision = {
        "width": len(weights["visual.layer1.0.conv1.weight"]),
        "layers": [len(stages[stage]) for stage in sorted(stages)],
        "image_size": grid * STRIDE,
    }
    return ResNetClipConfig.from_dict(common | {"vision_config": vision})


def first(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor.

    Errors: SourceError if it is missing.
    """
    if name not in weights:
        raise SourceError(f"--from: not a CLIP of OpenAI or open_clip: no {name}")
    return weights[name]


def num_blocks(weights: Mapping[str, Tensor], start: str) -> int:
    """The number of blocks whose weights' names begin so."""
    inside = (name.removeprefix(start) for name in weights if name.startswith(start))
    return len({name.partition(".")[0] for name in inside})


def named_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of vlds, in float32; as they are called where no rule knows them."""
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in renamed(weights)
    }


def renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each weight with its new name."""
    is_resnet = "visual.layer1.0.conv1.weight" in weights
    for name, tensor in weights.items():
        if is_resnet and name.startswith("visual."):
            yield resnet_name(name), tensor
        elif joint := JOINT.fullmatch(name):
            layer = layer_name(joint[1])
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{layer}.self_attn.{part}_proj.{joint[2]}", rows
        elif (block := BLOCK.fullmatch(name)) and block[3] in LAYER:
            start = name.removesuffix(f".{block[3]}.{block[4]}")
            yield f"{layer_name(start)}.{LAYER[block[3]]}.{block[4]}", tensor
        else:
            begins = (b for b in TOP if name == b or (b[-1] == "." and name.startswith(b)))
            begin = next(begins, name)
            new = TOP.get(begin, begin) + name.removeprefix(begin)
            yield new, tensor.T.contiguous() if name in TURNED else tensor


def layer_name(block: str) -> str:
    """visual.transformer.resblocks.3 -> vision_model.encoder.layers.3"""
    tower = "vision_model" if block.startswith("visual.") else "text_model"
    return f"{tower}.encoder.layers.{block.rpartition('.')[2]}"


def resnet_name(name: str) -> str:
    """visual.layer2.0.downsample.1.bias -> vision_model.net.stages.1.0.shortcut.conv.bn.bias"""
    name = name.removeprefix("visual.")
    # The stem: conv1 ... conv3 and bn1 ... bn3.
    name = re.sub(r"^conv(\d)\.", r"stem.conv\1.conv.", name)
    name = re.sub(r"^bn(\d)\.", r"stem.conv\1.bn.", name)
    name = re.sub(r"^layer(\d)\.", lambda stage: f"stages.{int(stage[1]) - 1}.", name)
    kinds = {"1": "conv1_1x1", "2": "conv2_kxk", "3": "conv3_1x1"}
    name = re.sub(
        r"^(stages\.\d\.\d+)\.(conv|bn)(\d)\.", lambda m: f"{m[1]}.{kinds[m[3]]}.{m[2]}.", name
    )
    name = re.sub(r"\.downsample\.0\.", ".shortcut.conv.conv.", name)
    name = re.sub(r"\.downsample\.1\.", ".shortcut.conv.bn.", name)
    if name.startswith("attnpool."):
        name = name.replace("attnpool.positional_embedding", "head.pos_embed")
        name = name.replace("attnpool.c_proj", "head.proj")
        name = re.sub(r"attnpool\.([qkv])_proj", r"head.\1", name)
    return f"vision_model.net.{name}"


def fill(model: Any, weights: Mapping[str, Tensor], source: Path) -> None:
    """Give a model on the meta device its weights.

    Errors: ValueError for a weight that is missing, has another shape or type, has no place, or is
    not finite.
    """
    state = model.state_dict()
    # Old files lack the number of batches that batch norms have seen, which nothing reads.
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    weights = {name: torch.tensor(0) for name in counters} | dict(weights)
    for name, tensor in state.items():
        if name not in weights:
            raise ValueError(f"--from: {source} has no {name}, by the name of vlds")
        if (found := weights[name]).shape != tensor.shape or found.dtype != tensor.dtype:
            raise ValueError(
                f"--from: {name} is {found.dtype} {tuple(found.shape)} in {source}, and "
                f"{tensor.dtype} {tuple(tensor.shape)} by its other weights"
            )
    if left := sorted(weights.keys() - state.keys()):
        raise ValueError(
            f"--from: {source} holds {first_names(left, 1)} that CLIP has no place for"
        )
    model.load_state_dict(weights, assign=True)
    check_finite(model, f"--from: {source}")

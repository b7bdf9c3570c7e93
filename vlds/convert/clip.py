"""Makes a CLIP that `DualEncoder` opens from the files of OpenAI and of open_clip, which name the
weights alike:

    OpenAI      NAME.pt, a TorchScript archive: a ViT or a ResNet
    open_clip   a folder of the hub (open_clip_config.json and weights), or a checkpoint

The sizes are those of the weights. What weights cannot tell comes from open_clip_config.json, from
what OpenAI's models have in common (heads of 64 channels, and QuickGELU), or from the user.

A ViT becomes a folder that Hugging Face's CLIPModel opens, a ResNet one that vlds opens.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vlds.convert.output import first_names, new_output, say
from vlds.convert.target import read_safetensors, read_settings, read_torch, state_dict_of
from vlds.convert.torchscript import is_torchscript, read_torchscript
from vlds.models.kinds.dual_encoder import DualEncoder
from vlds.models.kinds.resnet_clip import HEAD_WIDTH, STRIDE, ResNetClip, ResNetClipConfig
from vlds.models.loading.gate import TOKENIZER_FILES, check_tokenizer, open_checked, quiet
from vlds.models.loading.model_files import SourceError, reading
from vlds.models.vision.clip import MEAN, STD

Activation = Literal["gelu", "quick_gelu"]
"""Of the transformers' feed-forward layers: exact GELU, or x sigmoid(1.702 x)."""
SETTINGS = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Last parts of the names of some files' other entries."""
NUM_MERGES = 49_152 - 256 - 2
"""Of the longer list in bpe_simple_vocab_16e6.txt.gz, CLIP takes the first."""
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
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


class ClipFile(NamedTuple):
    """What was read."""

    weights: dict[str, Tensor]
    settings: Mapping[str, Any]
    """`model_cfg` of open_clip; empty where there is none."""
    activation: Activation | None
    """None: the file does not say."""
    head_width: int | None
    """Channels of a head of the vision tower; None: the file does not say."""


def convert_clip(
    source: Path,
    tokenizer: str | None,
    activation: Activation | None,
    head_width: int | None,
    out: Path,
) -> None:
    """Write a folder that `DualEncoder` opens. `activation`, `head_width`: where the file does not
    say, or in place of what it says.

    Errors: ValueError if the files are not of such a model, or the tokenizer is another one's.
    """
    if tokenizer is None and not source.is_dir():
        raise ValueError(
            "--tokenizer: the file holds none; name a folder or hub name with CLIP's, such as "
            "openai/clip-vit-base-patch32, or OpenAI's bpe_simple_vocab_16e6.txt.gz"
        )
    words = tokenizer or str(source)
    with reading(f"--tokenizer: cannot read a tokenizer from {words}"):
        if words.endswith(".gz"):
            processor = openai_tokenizer(Path(words))
        else:
            check_tokenizer(words, "--tokenizer", TOKENIZER_FILES)
            processor = open_checked(AutoTokenizer, words, "--tokenizer")
    say(f"reading {source}")
    read = read_clip(source)
    read = read._replace(
        activation=activation or read.activation,
        head_width=read.head_width if head_width is None else head_width,
    )
    with reading(f"--from: {source} holds sizes of no CLIP", "name another file"), quiet():
        config = config_of(read)
        model_class = ResNetClip if isinstance(config, ResNetClipConfig) else CLIPModel
        model = model_class(config)
    fill(model, named_weights(read.weights), source)
    with new_output(out, "folder") as partial, quiet():
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        kind = DualEncoder(path=str(partial))
        size = {"height": kind.image.height, "width": kind.image.width}
        CLIPImageProcessor(size=size, do_center_crop=False).save_pretrained(partial)
        # As a run opens it: the tokenizer may be that of another model.
        kind.build(torch.float32, kind.load_processor())


def openai_tokenizer(file: Path) -> Any:
    """Hugging Face's tokenizer of CLIP from OpenAI's list of merges.

    Errors: OSError if it cannot be read.
    """
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        lines = opened.read().split("\n")[1 : 1 + NUM_MERGES]  # the first line is a comment
    merges = [tuple(line.split()) for line in lines]
    # Bytes, the same at the end of a word, what each merge makes, and the two special tokens.
    bytes_ = list(bytes_to_unicode().values())
    tokens = [*bytes_, *(byte + "</w>" for byte in bytes_), *map("".join, merges), *SPECIAL]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def read_clip(source: Path) -> ClipFile:
    """The weights in a file or folder, and what stands beside them.

    Errors: ValueError if it has none.
    """
    settings: Mapping[str, Any] = {}
    activation: Activation | None = None
    head_width: int | None = None
    file = source
    if source.is_dir():
        described = read_settings(source / SETTINGS)
        settings = check_settings(described.get("model_cfg"), source / SETTINGS)
        pictures = described.get("preprocess_cfg") or {}
        for name, ours in (("mean", MEAN), ("std", STD)):
            if (theirs := pictures.get(name, list(ours))) != list(ours):
                raise ValueError(
                    f"--from: {source / SETTINGS}: preprocess_cfg.{name} is {theirs}, and "
                    f"DualEncoder's pictures have CLIP's, {list(ours)}; name a CLIP with these"
                )
        activation = "quick_gelu" if settings.get("quick_gelu") else "gelu"
        head_width = settings["vision_cfg"].get("head_width", HEAD_WIDTH)
        file = next((source / name for name in WEIGHT_FILES if (source / name).is_file()), source)
        if file == source:
            raise ValueError(f"--from: {source} has none of {', '.join(WEIGHT_FILES)}")
    if file.suffix == ".safetensors":
        weights = read_safetensors(file)
    elif is_torchscript(file):
        weights = read_torchscript(file)
        # OpenAI alone publishes such archives of CLIP.
        activation, head_width = activation or "quick_gelu", head_width or HEAD_WIDTH
    else:
        content = read_torch(file)
        # open_clip's checkpoints hold the state of training too.
        inside = content.get("state_dict") if isinstance(content, dict) else None
        weights = state_dict_of(content if inside is None else inside, file)
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
    return ClipFile(bare, settings, activation, head_width)


def check_settings(settings: object, file: Path) -> Mapping[str, Any]:
    """`model_cfg` of open_clip.

    Errors: ValueError for a field that changes what a model computes in a way not known here.
    """
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


def config_of(read: ClipFile) -> Any:
    """The config of a model with the sizes of the weights.

    Errors: SourceError if nothing says which activation it has or how wide the heads of a ViT are,
    or the heads have a width that cannot be; whatever sizes of no such model raise.
    """
    weights, settings, activation, head_width = read
    if activation is None:
        raise SourceError(
            "--activation: the file does not say which its model has; give quick_gelu (OpenAI's "
            "models, and open_clip's called -quickgelu) or gelu (open_clip's others)"
        )
    words, width = weights["token_embedding.weight"].shape
    # 8 is open_clip's default.
    heads = settings["text_cfg"].get("heads", 8) if settings else width // HEAD_WIDTH
    text = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(first(weights, "transformer.resblocks.0.mlp.c_fc.bias")),
        "num_hidden_layers": num_blocks(weights, "transformer.resblocks."),
        "num_attention_heads": heads,
        "max_position_embeddings": len(weights["positional_embedding"]),
        "hidden_act": activation,
        # As in CLIP's own vocabulary, the last two tokens begin and end texts.
        "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1,
    }  # fmt: skip
    projection = weights["text_projection"].shape[1]
    common = {"projection_dim": projection, "text_config": text | {"projection_dim": projection}}
    conv = weights["visual.conv1.weight"]
    if "visual.layer1.0.conv1.weight" not in weights:
        if head_width is None:
            raise SourceError(
                f"--head-width: the file does not say how wide the heads of its vision tower, of "
                f"width {len(conv)}, are; give {HEAD_WIDTH} (ViT-B and ViT-L), 80 (ViT-H), 88 "
                "(ViT-g), 104 (ViT-bigG), or vision_cfg.head_width of open_clip's config"
            )
        if head_width < 1 or len(conv) % head_width:
            raise SourceError(
                f"--head-width: got {head_width}, which does not divide the vision tower's width, "
                f"{len(conv)}"
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
    if head_width not in (None, HEAD_WIDTH):
        raise SourceError(f"--head-width: got {head_width}; a ResNet's is {HEAD_WIDTH}")
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
    """Give a model its weights.

    Errors: ValueError for a weight that is missing, has another shape or has no place.
    """
    state = model.state_dict()
    # Old files lack the number of batches that batch norms have seen, which nothing reads.
    counters = {name: t for name, t in state.items() if name.endswith("num_batches_tracked")}
    weights = counters | dict(weights)
    for name, tensor in state.items():
        if name not in weights:
            raise ValueError(f"--from: {source} has no {name}, by the name of vlds")
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"--from: {name} is {tuple(weights[name].shape)} in {source}, and "
                f"{tuple(tensor.shape)} by its other weights"
            )
    if left := sorted(weights.keys() - state.keys()):
        raise ValueError(
            f"--from: {source} holds {first_names(left, 1)} that CLIP has no place for"
        )
    model.load_state_dict(weights)

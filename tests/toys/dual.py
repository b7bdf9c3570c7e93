"""A tiny CLIP with a ViT or a ResNet: its tokenizer, sizes, batches and recipe."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from data_prep.packing.writer import SampleRecord, write_dataset
from tests.toys.world import COLOURS, world_recipe
from vlds.data.config import DataConfig
from vlds.models import DualEncoder
from vlds.models.build import ModelSetup, build_model
from vlds.models.heads import TextHead
from vlds.models.kinds.dual_encoder_model import DualEncoderModel
from vlds.models.kinds.resnet_clip import ResNetClip, ResNetClipConfig
from vlds.models.methods import Full, Method
from vlds.recipe.config import OptimizerConfig, Recipe
from vlds.schema import Batch, Example, Row
from vlds.tasks import Caption, ImageClass
from vlds.tasks.class_output import ClassOutput

PAINTS = {**COLOURS, "yellow": (230, 220, 40)}
SIDE, WIDTH = 16, 12
"""Pixels of a picture's side, and width of the embeddings."""
WORDS = [
    "<pad>", "<eos>", "<unk>", "a", "photo", "of", "without", "it", "is", "picture", "that", "and",
    "nothing", "but", ".", ",", "lit", "like", *PAINTS,
]  # fmt: skip
LAYERS: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "attention_dropout": 0.0,
}  # fmt: skip
CLASSES = tuple(PAINTS)
TASK = "colour"


def write_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """A tokenizer of whole words that ends each text."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", words.index("<eos>"))]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_config(folder: Path, **sizes: Any) -> Path:
    """The config of a tiny model."""
    fields = {
        "model_type": "clip",
        "projection_dim": WIDTH,
        "logit_scale_init_value": 2.0,
        "text_config": {
            **LAYERS, "vocab_size": len(WORDS), "max_position_embeddings": 14,
            "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, **sizes,
        },
        "vision_config": {**LAYERS, "image_size": SIDE, "patch_size": 8, **sizes},
    }  # fmt: skip
    file = folder / "clip.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    return file


def save_clip(folder: Path, spread: float = 0.3, **sizes: Any) -> Path:
    """A model with its tokenizer in a folder, as on the hub. Its weights are large, so that its
    embeddings differ."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    config = CLIPConfig.from_dict(json.loads(write_config(folder, **sizes).read_text("utf-8")))
    model = CLIPModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter += spread * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


RESNET: dict[str, Any] = {"width": 8, "layers": [1, 1, 1, 1], "image_size": 64}
RESNET_WIDTH = 16
"""Of the embeddings, behind which adapters of a quarter of it stand."""


def save_resnet_clip(folder: Path) -> Path:
    """A model with a ResNet, whose pictures are larger, and its tokenizer."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    fields = json.loads(write_config(folder).read_text("utf-8"))
    sizes = {"vision_config": RESNET, "projection_dim": RESNET_WIDTH}
    model = ResNetClip(ResNetClipConfig.from_dict(fields | sizes))
    with torch.no_grad():
        for name, parameter in model.text_model.named_parameters():
            if "norm" not in name:
                parameter += 0.3 * torch.randn(parameter.shape)
        model.text_projection.weight += 0.3 * torch.randn(model.text_projection.weight.shape)
        for module in model.vision_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                # As after training: no two channels alike.
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Linear):
                module.bias.normal_(std=0.3)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def build(
    folder: Path,
    methods: dict[str, Method] | None = None,
    *,
    head: TextHead | None = None,
    shots: int | None = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> DualEncoderModel:
    """The model in a folder; with a head, for one task of `CLASSES`."""
    kind = DualEncoder(path=str(folder))
    outputs = {} if head is None else {TASK: ClassOutput(head, "cross_entropy", shots)}
    setup = ModelSetup(kind=kind, methods=methods or {}, outputs=outputs, seed=seed)
    model = build_model(setup, [TASK], dtype, kind.load_processor())
    assert isinstance(model, DualEncoderModel)
    return model


def colour_head(**fields: Any) -> TextHead:
    """Of the world's colours."""
    return TextHead(classes=CLASSES, **fields)


def pictures(num: int, seed: int = 0, side: int = SIDE) -> torch.Tensor:
    """(num, 3, h, w) uint8."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num, 3, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def pairs(model: DualEncoderModel, texts: Sequence[str], seed: int = 0) -> Batch:
    """Pictures with these texts."""
    rows = [
        Row(Example(f"{seed}-{n}", TASK, "", text), 0, 14, 14, range(n, n + 1))
        for n, text in enumerate(texts)
    ]
    collator = DualEncoder(config="x").collator(model.processor)
    return collator(rows, pictures(len(texts), seed, side_of(model)), evaluation=False)


def classed(model: DualEncoderModel, classes: Sequence[int], seed: int = 0) -> Batch:
    """Pictures of these classes."""
    rows = [
        Row(
            Example(f"{seed}-{n}", TASK, "", "", class_scores={number: 1.0}),
            0, 14, 14, range(n, n + 1),
        )
        for n, number in enumerate(classes)
    ]  # fmt: skip
    collator = DualEncoder(config="x").collator(model.processor)
    return collator(rows, pictures(len(classes), seed, side_of(model)), evaluation=False)


def side_of(model: DualEncoderModel) -> int:
    """Pixels along a side of the model's pictures."""
    return int(model.backbone.config.vision_config.image_size)


def painted(name: str, seed: int) -> bytes:
    """A noisy JPEG of one colour."""
    noise = np.random.default_rng(seed).integers(-20, 20, (SIDE, SIDE, 3))
    buffer = io.BytesIO()
    pixels = (np.array(PAINTS[name]) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_classes(folder: Path, split: str, num_each: int, seed: int = 0) -> Path:
    """A data set of pictures of each colour."""
    records = (
        SampleRecord(
            id=f"{split}-{number}",
            members=[("jpg", painted(name, 1000 * seed + number))],
            json={"annotations": [{"id": f"{split}-{number}", "label": name}], "size": [[16, 16]]},
        )
        for number, name in enumerate(CLASSES * num_each)
    )
    out = folder / f"classes-{split}"
    write_dataset(
        out, name="classes", kind="image_class", split=split, records=records, shard_samples=7,
        classes=CLASSES,
    )  # fmt: skip
    return out


def class_recipe(
    world: Path,
    output: Path,
    methods: dict[str, Method],
    stage: int = 2,
    model: str = "clip",
    **fields: Any,
) -> Recipe:
    """Ten steps of few-shot classification on the world's colours, evaluated at both ends, by the
    `model` in the world's folder: `resnet` has a ResNet. The first call writes both models and the
    data."""
    if not (world / "clip").exists():
        save_clip(world / "clip")
        save_resnet_clip(world / "resnet")
        for split, num_each in (("train", 8), ("val", 6)):
            write_classes(world, split, num_each, seed=len(split))
    recipe = world_recipe(world, output, stage)
    task = ImageClass(
        train=[str(world / "classes-train")],
        evaluate=[str(world / "classes-val")],
        prompt="",
        max_target_tokens=14,
        **{"shots": 2, "head": TextHead(templates=["a photo of {} ."]), **fields},
    )
    return replace(
        recipe,
        model=DualEncoder(path=str(world / model)),
        methods=methods,
        tasks={TASK: task},
        data=DataConfig(global_batch_size=8),
        optimizer=OptimizerConfig(learning_rate=1e-2, decay="cosine"),
        training=replace(recipe.training, evaluate_first=True),
    )


def text_recipe(world: Path, output: Path, stage: int = 2) -> Recipe:
    """Ten steps in which all of the tiny CLIP learns captions."""
    recipe = class_recipe(world, output, {"full": Full()}, stage)
    caption = Caption(train=[str(world / "caption")], prompt="", max_target_tokens=14)
    return replace(
        recipe,
        tasks={"caption": caption},
        training=replace(recipe.training, evaluate_first=False),
    )

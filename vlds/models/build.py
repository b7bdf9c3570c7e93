"""Builds a model from a recipe's choices: loads and freezes all parts, attaches the methods, and
notes which tensors come from which source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlds.backbones.attention import use_extensions
from vlds.backbones.base import Backbone
from vlds.methods.base import Method
from vlds.methods.host import Host, find_modules
from vlds.methods.routing import TaskRouting
from vlds.models.counts import Counts
from vlds.models.draws import draw_by_name, draw_rows
from vlds.models.tape import Tape
from vlds.models.visual_embedding import VisualEmbedding, VisualEmbeddingConfig
from vlds.models.vl_model import Sources, VLModel
from vlds.runtime.manifest import sha256
from vlds.vision.base import VisionEncoder, freeze, load_weights, on_meta

RESERVED = ("backbone", "vision", "visual_embedding", "norms")
"""Names that parts of the model have, so that methods cannot."""
BACKBONE_PREFIX = "backbone."
"""What the backbone's tensor names begin with inside the model."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What `build_model` needs of a recipe."""

    backbone: Backbone
    vision: VisionEncoder
    visual_embedding: VisualEmbeddingConfig = field(default_factory=VisualEmbeddingConfig)
    methods: dict[str, Method] = field(default_factory=dict)
    train_norms: bool = False
    train_visual_embedding: bool = True
    activation_checkpointing: bool = False
    seed: int = 0
    """Of the weights that no source fills: each is drawn by this seed and its name."""

    def __post_init__(self) -> None:
        for name, method in self.methods.items():
            if self.activation_checkpointing and not method.recomputable:
                raise ValueError(
                    f"methods.{name}: {type(method).__name__} does not go with "
                    "training.activation_checkpointing; switch one of them off"
                )
            # The second test keeps out what a ModuleDict calls its own: "keys", "half", ...
            if name in RESERVED or hasattr(nn.ModuleDict, name) or not name.isidentifier():
                raise ValueError(
                    f"methods: '{name}' cannot be a method's name; use letters, digits and _, and "
                    f"none of {', '.join(RESERVED)}"
                )

    @property
    def sources(self) -> dict[str, str]:
        """Files, folders and hub names that weights come from."""
        sources = {
            "backbone": self.backbone.path,
            "vision encoder": self.vision.source,
            "visual embedding": self.visual_embedding.weights,
        }
        return {part: source for part, source in sources.items() if source is not None}

    def source_hashes(self) -> dict[str, str]:
        """sha256 of those files; for hub names, of the name."""
        return {part: hash_source(source) for part, source in self.sources.items()}


def build_model(
    config: ModelConfig, tasks: Sequence[str], dtype: torch.dtype, tokenizer: Any
) -> VLModel:
    """A model in which only its methods' weights train. Weights that no source fills are drawn by
    `config.seed` and their names.

    Inside `torch.device("meta")` it has shapes only, and `tokenizer` may be None: then the sizes
    come from the backbone's config. Errors: ValueError if parts do not fit each other.
    """
    with Tape() as tape:
        model = build_parts(config, dtype, tokenizer)
    sourced = {*model.sources.names, *model.sources.rows}
    if not on_meta():
        draw_by_name(model, tape, config.seed, keep=sourced)
        table = model.backbone.get_input_embeddings().weight
        rows = {
            n: rows for n, rows in model.sources.rows.items() if model.get_parameter(n) is table
        }
        draw_rows(model, rows, config.backbone.new_row_std, config.seed)
    with Tape() as tape:
        trained = attach_methods(config, model, tasks)
    if not on_meta():
        draw_by_name(model, tape, config.seed, keep=sourced)
    use_extensions(model.backbone)
    model.trained_by = {
        name: trained[id(p)] for name, p in model.named_parameters() if id(p) in trained
    }
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in model.trained_by)
    drop_trained_sources(model)
    if config.activation_checkpointing:
        enable_checkpointing(model.backbone)
    return model


def build_parts(config: ModelConfig, dtype: torch.dtype, tokenizer: Any) -> VLModel:
    """Vision encoder, visual embedding and backbone, frozen, and which of their tensors sources
    have filled."""
    family = config.backbone
    size = len(tokenizer) if tokenizer is not None else family.vocabulary_size()
    loaded = family.load(size, dtype)
    vision = config.vision.build(dtype)
    freeze(vision)
    embedding = build_visual_embedding(config, loaded.model.config.d_model).to(dtype)
    if embedding.num_tokens > family.visual_tokens:
        raise ValueError(
            f"backbone.visual_tokens: {family.visual_tokens}, but an image has "
            f"{embedding.num_tokens} visual tokens; give the vocabulary at least as many"
        )
    routing = TaskRouting()
    model = VLModel(
        vision, embedding, loaded.model, family=family, routing=routing, tokenizer=tokenizer
    )
    model.requires_grad_(False)
    model.sources = Sources(
        names=frozenset(find_source_names(config, model, loaded.source_names)),
        rows={BACKBONE_PREFIX + name: rows for name, rows in loaded.source_rows.items()},
    )
    return model


def enable_checkpointing(backbone: Any) -> None:
    """Recompute each layer's activations in the backward pass; versions of transformers differ in
    the name of the switch."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(backbone, name) for name in names if hasattr(backbone, name))
    enable({"use_reentrant": False})


def build_visual_embedding(config: ModelConfig, width: int) -> VisualEmbedding:
    """The bridge, initialised as the backbone's family does, or from its file."""
    geometry, family = config.vision.geometry, config.backbone
    norm = partial(family.visual_norm, bias=config.visual_embedding.norm_biases)
    embedding = VisualEmbedding(
        config.visual_embedding, geometry.feature_dim, width, geometry.grid_size, norm
    )
    embedding.init_weights(family.linear_init_std)
    load_weights(embedding, config.visual_embedding.weights)
    return embedding


def attach_methods(config: ModelConfig, model: VLModel, tasks: Sequence[str]) -> dict[int, str]:
    """Attach all methods; id of each trainable parameter -> the method, or part of the model, that
    names it first."""
    trained: dict[int, str] = {}

    def claim(parameters: Iterable[nn.Parameter], part: str) -> None:
        for parameter in parameters:
            trained.setdefault(id(parameter), part)

    for name, method in config.methods.items():
        part: nn.Module = model.backbone if method.part == "backbone" else model.vision
        targets = (config.backbone if method.part == "backbone" else config.vision).target_modules
        try:
            claim(method.attach(Host(name, part, targets, tasks, model.routing)), name)
        except ValueError as error:
            raise ValueError(f"methods.{name}: {error}") from None
        if method.part == "vision":
            model.vision.frozen = False
    if config.train_norms:
        norms = find_modules(model.backbone, config.backbone.target_modules, "norm").values()
        claim((p for norm in norms for p in norm.parameters(recurse=False)), "norms")
    if config.train_visual_embedding:
        claim(model.visual_embedding.parameters(), "visual_embedding")
    return trained


def find_source_names(config: ModelConfig, model: VLModel, backbone: Iterable[str]) -> set[str]:
    """Tensors of the model that a named source has filled; before methods are attached."""
    names = {BACKBONE_PREFIX + name for name in backbone}
    state = [name for name, _ in model.unique_state()]
    if config.vision.source is not None:
        names.update(name for name in state if name.startswith("vision."))
    if config.visual_embedding.weights is not None:
        names.update(name for name in state if name.startswith("visual_embedding."))
    return names


def drop_trained_sources(model: VLModel) -> None:
    """Forget the sources of tensors that training changes."""
    moving = model.moving_names()
    rows = {name: rows for name, rows in model.sources.rows.items() if name not in moving}
    model.sources = Sources(names=model.sources.names - moving, rows=rows)


def build_shapes(config: ModelConfig, tasks: Sequence[str], dtype: torch.dtype) -> VLModel:
    """The model on the meta device: its shapes at real size, offline, without its weights.

    A tokenizer on this machine sets the vocabulary's size, as in a run; else the config does.
    """
    tokenizer = config.backbone.local_tokenizer()
    with torch.device("meta"):
        return build_model(config, tasks, dtype, tokenizer)


def describe(config: ModelConfig, tasks: Sequence[str]) -> Counts:
    """Count a model's weights without making them."""
    return build_shapes(config, tasks, torch.float32).count_parameters()


def hash_source(source: str) -> str:
    """sha256 over a file, or over a folder's weight files and config; over the name if it is not
    local."""
    path, digest = Path(source), hashlib.sha256()
    inside = path.iterdir() if path.is_dir() else ()
    weights = [f for f in inside if f.suffix in {".safetensors", ".bin"} or f.name == "config.json"]
    files = [path] if path.is_file() else sorted(weights)
    for file in files:
        digest.update(file.name.encode())
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest() if files else hash_name(source)


def hash_name(source: str) -> str:
    """sha256 of a source that is only a name, such as one on the hub."""
    return hashlib.sha256(source.encode()).hexdigest()

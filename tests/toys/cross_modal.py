"""A tiny text encoder, image encoder and co-attention: files, and the world's recipe with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizerFast

from tests.toys.world import COLOURS, world_recipe
from vlds.models import CrossModal
from vlds.models.heads import LinearHead, MLPHead
from vlds.models.kinds.cross_modal_model import CoAttentionConfig
from vlds.models.methods import Full
from vlds.models.vision import ClipTokens
from vlds.recipe.config import Recipe
from vlds.schema import Batch, Example, Row
from vlds.tasks import VQA, MaskedWords, Matching

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "what colour is it now ? a picture that and nothing but dark vqa : caption"
TEXTS = ["what colour is it", "what is it now now ?", "is it dark ?"]
FUSION = CoAttentionConfig(width=16, layers=2, heads=2)


def write_tokenizer(folder: Path) -> None:
    """A word-piece tokenizer of the world's words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*SPECIAL, *dict.fromkeys([*WORDS.split(), *COLOURS])]
    vocabulary = {word: number for number, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)


def write_configs(folder: Path) -> None:
    """bert.json, clip.json and the folder of the tokenizer."""
    write_tokenizer(folder / "words")
    bert: dict[str, Any] = {
        "model_type": "bert", "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
        "pad_token_id": 0,
    }  # fmt: skip
    clip = {
        "model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    for name, fields in (("bert", bert), ("clip", clip)):
        (folder / f"{name}.json").write_text(json.dumps(fields), encoding="utf-8")


def cross_modal_kind(folder: Path, **fields: Any) -> CrossModal:
    """The kind; the first call writes its files."""
    if not (folder / "bert.json").exists():
        write_configs(folder)
    return CrossModal(
        config=str(folder / "bert.json"),
        tokenizer=str(folder / "words"),
        vision=ClipTokens(config=str(folder / "clip.json")),
        fusion=FUSION,
        **fields,
    )


def pretraining_recipe(world: Path, output: Path, stage: int = 2) -> Recipe:
    """The world's captions: matching and masked words, beside its questions."""
    recipe = cross_modal_recipe(world, output, stage)
    data = {"train": [str(world / "caption")], "evaluate": [str(world / "caption")]}
    tasks = {
        **recipe.tasks,
        "matching": Matching(**data, head=LinearHead()),
        "words": MaskedWords(**data, share=0.3, max_prompt_tokens=12),
    }
    return replace(recipe, model=cross_modal_kind(world, masked_words=True), tasks=tasks)


def cross_modal_recipe(
    world: Path, output: Path, stage: int = 2, precision: str = "fp32"
) -> Recipe:
    """The world's questions, answered by a head; all weights train."""
    recipe = world_recipe(world, output, stage, precision)
    vqa = recipe.tasks["vqa"]
    assert isinstance(vqa, VQA)
    head = MLPHead(classes=(*COLOURS, "dark"), order="norm_gelu")
    return replace(
        recipe,
        model=cross_modal_kind(world),
        methods={"reader": Full(part="text"), "eyes": Full(part="vision")},
        tasks={"vqa": replace(vqa, head=head)},
    )


def batch_of(recipe: Recipe, texts: list[str], side: int = 16) -> Batch:
    """Questions, each about a picture of its own, with the first class as answer."""
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (len(texts), 3, side, side), dtype=torch.uint8, generator=draw)
    rows = [
        Row(Example(str(n), "vqa", text, "", class_scores={0: 1.0}), 0, 20, 4, range(n, n + 1))
        for n, text in enumerate(texts)
    ]
    return recipe.model.collator(recipe.model.load_processor())(rows, pictures, evaluation=False)

"""A tiny causal language model that sees: its tokenizer, sizes, batches and recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.toys.world import COLOURS, world_recipe
from vlds.models import Causal
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.causal import CausalModel
from vlds.models.methods import Method
from vlds.models.vision import ConvNet
from vlds.recipe.config import Recipe
from vlds.schema import Batch, Example, Row

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|eos|>", "<|end|>", "<|user|>", "<|assistant|>"]
TASKS = ("vqa", "gqa", "nlvr")
GRID = 2
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0},
    "phi3": {"num_key_value_heads": 1},
    # Bends the logits behind its output layer.
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 20.0},
}
WIDE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "ffn_dim": 128, "word_embed_proj_dim": 64,
}  # fmt: skip
"""Sizes of layers whose weights can be packed in blocks of 64."""


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """A byte-level tokenizer of the world's words in a folder."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = ["vqa: what colour is it now?", "caption: it is a picture that is nothing but dark"]
    backend.train_from_iterator([*lines, *COLOURS] * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|eos|>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def write_config(folder: Path, kind: str = "llama", **sizes: Any) -> Path:
    """The config of a tiny model, with other `sizes` if so wished."""
    fields = {
        "model_type": kind, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 304, "max_position_embeddings": 128,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, **SIZES[kind], **sizes,
    }  # fmt: skip
    file = folder / f"{kind}.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    return file


def save_model(
    folder: Path,
    kind: str = "llama",
    template: str | None = TEMPLATE,
    spread: float = 0.4,
    **sizes: Any,
) -> None:
    """A model with its tokenizer in a folder, as on the hub. Its weights are large, so that its
    answers differ."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    fields = json.loads(write_config(folder, kind, **sizes).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(fields.pop("model_type"), **fields)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=spread)
    model.save_pretrained(folder)
    write_tokenizer(folder, template)


def kind_in(folder: Path, **fields: Any) -> Causal:
    """The kind of a model that `save_model` has written, with a small encoder."""
    vision = ConvNet(image_size=8, grid=GRID, widths=[4, 6])
    return Causal(**{"path": str(folder), "vision": vision, "num_images": 2, **fields})


def build(
    kind: Causal,
    methods: dict[str, Method] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    activation_checkpointing: bool = False,
) -> CausalModel:
    """A model with methods."""
    setup = ModelSetup(
        kind=kind, methods=methods or {}, activation_checkpointing=activation_checkpointing
    )
    model = build_model(setup, TASKS, dtype, kind.load_processor())
    assert isinstance(model, CausalModel)
    return model


def rows(pictures: Sequence[Sequence[int]] = ((0,), (), (1,), (0, 2))) -> list[Row]:
    """Rows of unlike length and tasks; each with pictures of these numbers, which are
    consecutive."""
    prompts = ["what colour is it?", "is it dark", "vqa: what is it now, red or blue?", "it"]
    targets = ["red", "a picture that is dark", "blue and red", "green"]
    found = []
    for number, mine in enumerate(pictures):
        example = Example(f"e{number}", TASKS[number % 3], prompts[number], targets[number])
        images = range(mine[0], mine[-1] + 1, max(1, mine[-1] - mine[0])) if mine else range(0)
        found.append(Row(example, number % 3, 40, 20, images))
    return found


def batch(kind: Causal, chosen: Sequence[Row] | None = None, *, evaluation: bool = False) -> Batch:
    """A batch of rows about three pictures."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=generator)
    collator = kind.collator(kind.load_processor())
    return collator(rows() if chosen is None else chosen, pictures, evaluation=evaluation)


def causal_recipe(
    folder: Path,
    world: Path,
    output: Path,
    stage: int = 2,
    precision: str = "fp32",
    path: str | None = None,
    **fields: Any,
) -> Recipe:
    """The world's recipe with a causal model in place of the encoder-decoder: that of a path, or a
    random one, whose files are written to the folder. `fields`: of its kind."""
    files = folder / "random"
    files.mkdir(exist_ok=True)
    write_tokenizer(files)
    model = Causal(
        **{
            "path": path,
            "config": None if path else str(write_config(files)),
            "tokenizer": None if path else str(files),
            "vision": ConvNet(image_size=16, grid=2, widths=[4, 8, 8]),
            **fields,
        }
    )
    recipe = world_recipe(world, output, stage, precision)
    tasks = {
        name: replace(task, max_prompt_tokens=24, max_target_tokens=24)
        for name, task in recipe.tasks.items()
    }
    return replace(recipe, model=model, tasks=tasks)

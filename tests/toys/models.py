"""Tiny backbones, models, batches and a tokenizer of numbered words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlds.models import JointSeq2Seq
from vlds.models.backbones import T5, Backbone
from vlds.models.build import ModelSetup, build_model
from vlds.models.kinds.joint import JointModel
from vlds.models.methods import Method
from vlds.models.vision import StoredFeatures, VisionEncoder
from vlds.models.visual_embedding import VisualEmbeddingConfig
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch

TASKS = ("vqa", "gqa", "nlvr")
VOCABULARY = 60
DIM, GRID = 6, 3


class Words:
    """A tokenizer of VOCABULARY tokens: word "w7" is token 7."""

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(f"w{token}" for token in tokens) for tokens in rows]


def hf_config(family: type[Backbone], vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Config of a tiny model of the family."""
    if family is T5:
        return {
            "model_type": "t5", "vocab_size": vocabulary, "d_model": 16, "d_kv": 4, "d_ff": 24,
            "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
            "pad_token_id": 0, "eos_token_id": 1,
        }  # fmt: skip
    return {
        "model_type": "bart", "vocab_size": vocabulary, "d_model": 16, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    }  # fmt: skip


def backbone(family: type[Backbone], folder: Path, **fields: Any) -> Backbone:
    """A backbone with random weights, whose config is written to the folder."""
    file = folder / f"{family.__name__}.json"
    file.write_text(json.dumps(hf_config(family)), encoding="utf-8")
    return family(config=str(file), extra_tokens=0, visual_tokens=12, **fields)


def saved_backbone(family: type[Backbone], folder: Path, vocabulary: int = 40) -> Backbone:
    """A backbone saved in a folder, with fewer vocabulary rows than the tokenizer has."""
    torch.manual_seed(5)
    config = family.config_class.from_dict(hf_config(family, vocabulary))
    family.model_class(config).save_pretrained(folder)
    return family(path=str(folder), extra_tokens=0, visual_tokens=12)


def save_own_head(family: type[Backbone], folder: Path, vocabulary: int = 40) -> nn.Module:
    """A model whose head is not its token table, as in FLAN-T5; also saved in a folder."""
    torch.manual_seed(5)
    fields = hf_config(family, vocabulary) | {"tie_word_embeddings": False}
    if family is T5:
        fields |= {"feed_forward_proj": "gated-gelu"}
    model = family.model_class(family.config_class.from_dict(fields))
    model.set_output_embeddings(nn.Linear(16, vocabulary, bias=False))
    model.set_input_embeddings(model.get_input_embeddings())
    for buffer in model.buffers():  # BART's final_logits_bias is not always zero
        buffer.data.normal_()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return model.eval()


def build(
    source: Backbone,
    methods: dict[str, Method] | None = None,
    *,
    vision: VisionEncoder | None = None,
    visual: VisualEmbeddingConfig | None = None,
    dtype: torch.dtype = torch.float32,
    tasks: Sequence[str] = TASKS,
    seed: int = 0,
    activation_checkpointing: bool = False,
    **fields: Any,
) -> JointModel:
    """A model; by default its pictures are stored features of 3 x 3 cells. `fields`: of its
    kind."""
    config = ModelSetup(
        kind=JointSeq2Seq(
            backbone=source,
            vision=vision or StoredFeatures(dim=DIM, grid=GRID),
            visual_embedding=visual or VisualEmbeddingConfig(),
            **fields,
        ),
        seed=seed,
        methods=methods or {},
        activation_checkpointing=activation_checkpointing,
    )
    return build_model(config, tasks, dtype, Words())


def batch(tasks: Sequence[int] = (0, 1, 0, 2), seed: int = 0) -> Batch:
    """Examples of different lengths about three images; the first two share an image, the last has
    two."""
    generator = torch.Generator().manual_seed(seed)
    num, longest, targets = len(tasks), 7, 5
    lengths = torch.tensor([longest - n % 3 for n in range(num)])
    attention_mask = torch.arange(longest) < lengths[:, None]
    input_ids = torch.randint(3, 40, (num, longest), generator=generator)
    labels = torch.randint(3, 40, (num, targets), generator=generator)
    labels[:, -1] = 2
    labels[::2, 3:] = IGNORED_LABEL
    image_index = torch.full((num, 2), NO_IMAGE)
    image_index[:, 0] = torch.tensor([max(0, n - 1) % 3 for n in range(num)])
    image_index[-1, 1] = 1
    return Batch(
        ids=[str(n) for n in range(num)],
        task_index=torch.tensor(list(tasks)),
        input_ids=input_ids.masked_fill(~attention_mask, 1),
        attention_mask=attention_mask,
        labels=labels,
        weights=torch.ones(num),
        valid=torch.ones(num, dtype=torch.bool),
        image_index=image_index,
        features=torch.randn(3, GRID * GRID, DIM, generator=generator).half(),
    )


def shake(model: nn.Module, seed: int = 3, spread: float = 0.1) -> None:
    """Move all trainable weights away from their initial values, by noise that the seed draws."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += spread * torch.randn(parameter.shape, generator=generator)

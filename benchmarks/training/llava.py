"""A LLaVA of random weights for pictures of 192 pixels: CLIP's ViT-B/32 before a Llama of
SmolLM2-135M's sizes. Imports transformers alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shapes import GRID, PICTURE
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoConfig,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

IMAGE = 2
"""Token that stands for a cell of a picture."""
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152,
    "tie_word_embeddings": True,
}  # fmt: skip
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model", "image_size": PICTURE, "patch_size": PICTURE // GRID,
}  # fmt: skip


def llava_config() -> Any:
    """Its sizes."""
    return AutoConfig.for_model(
        "llava", text_config=LLAMA, vision_config=CLIP, image_token_index=IMAGE,
        image_seq_length=GRID * GRID,
    )  # fmt: skip


def write_files(folder: Path) -> None:
    """The sizes and a processor, whose words are bytes."""
    letters = Tokenizer(BPE())
    letters.pre_tokenizer = ByteLevel()
    special = ["<pad>", "</s>", "<image>"]
    trainer = BpeTrainer(
        special_tokens=special, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    letters.train_from_iterator([], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    sizes = {"height": PICTURE, "width": PICTURE}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": PICTURE}, crop_size=sizes),
        tokenizer=tokenizer, patch_size=PICTURE // GRID, num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    ).save_pretrained(folder)  # fmt: skip
    llava_config().save_pretrained(folder)

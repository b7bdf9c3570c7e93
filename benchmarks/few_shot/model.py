"""The tiny CLIP: its tokenizer, and its config."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import AutoConfig, PreTrainedTokenizerFast

from data_prep.demo.world import FIGURES

SIDE, PATCH, WIDTH, EMBEDDING = 48, 16, 128, 64
# The end is not the third: CLIP reads texts with an end of 2 at their largest token.
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "unk_token": "<unk>", "eos_token": "</s>"}


def write_model(folder: Path, texts: Path) -> None:
    """Write both; the words are those of a file of texts."""
    raw = Tokenizer(WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    trainer = WordLevelTrainer(special_tokens=list(SPECIAL.values()), show_progress=False)
    # Figures get words too. Pretraining never sees them: their embeddings stay random.
    lines = texts.read_text(encoding="utf-8").splitlines()
    raw.train_from_iterator([*lines, *FIGURES], trainer)
    ids = {token: raw.token_to_id(token) for token in SPECIAL.values()}
    raw.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    words = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="right", **SPECIAL)
    words.save_pretrained(folder)
    layers = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": EMBEDDING,
    }
    named = {f"{name}_token_id": ids[SPECIAL[f"{name}_token"]] for name in ("pad", "bos", "eos")}
    config = AutoConfig.for_model(
        "clip",
        projection_dim=EMBEDDING,
        text_config={
            **layers,
            **named,
            "num_hidden_layers": 3,
            "vocab_size": len(words),
            "max_position_embeddings": 24,
        },
        vision_config={**layers, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH},
    )
    config.save_pretrained(folder)

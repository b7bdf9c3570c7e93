"""Tiny random models of Hugging Face's image-text-to-text types, with whole processors.

A folder that `save_tiny` writes opens as one from the hub does: `AutoProcessor` and
`AutoModelForImageTextToText`. Weights are float32, about 32 wide and 2 or 3 layers deep. Pictures
become few visual tokens: most processors make them 28 pixels wide, and tile up to 56.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText

from tests.toys.image_text.configs import config
from tests.toys.image_text.processors import processor
from tests.toys.image_text.words import WORDS, tokenizer

TYPES: tuple[str, ...] = tuple(WORDS)
"""The `model_type` of each config."""
FAST_TYPES = ("florence2", "llava", "paligemma", "qwen2_5_vl", "smolvlm")
"""Those that each run tests: unlike ways to place pictures in the text."""
PARAMETERS = [pytest.param(t, marks=[] if t in FAST_TYPES else [pytest.mark.slow]) for t in TYPES]
SIZES = ((40, 60), (64, 30), (33, 33), (20, 70), (90, 80), (28, 28))
"""Heights and widths of pictures, in turn."""
NOISE = 0.1
"""Standard deviation of what is added to each new weight, so that no bias is 0, no norm is 1, and
pictures change the logits."""


def save_tiny(model_type: str, folder: Path, seed: int = 0) -> None:
    """Write config, weights, tokenizer, processor and, where the type has one, chat template.

    `seed` draws the weights. The last vision layer of llava trains nothing: like the hub's models,
    it reads the states before that layer.
    """
    words = tokenizer(model_type)
    whole = processor(model_type, words)  # PaliGemma's adds tokens, which the model needs rows for.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config(model_type, words))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    model.save_pretrained(folder)
    whole.save_pretrained(folder)


def pictures(num: int, seed: int) -> list[NDArray[np.uint8]]:
    """Pictures of noise, uint8 (height, width, 3), of unlike sizes and aspect ratios."""
    generator = np.random.default_rng(seed)
    sizes = [SIZES[(seed + index) % len(SIZES)] for index in range(num)]
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

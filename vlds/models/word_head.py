"""Words from the states of masked tokens, as BERT predicts them, with a table of its own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.co_attention import INIT_STD


class WordHead(nn.Module):
    """(..., d) -> (..., w): a linear layer, GELU, a norm, and the table. METER's mlm_score."""

    def __init__(self, width: int, num_words: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.words = nn.Linear(width, num_words)
        for layer in (self.dense, self.words):
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.words(self.norm(F.gelu(self.dense(states))))
        return logits

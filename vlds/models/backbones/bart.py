"""VL-BART: BART with visual tokens in its encoder, as VL-Adapter has it.

x = dropout(concat(LayerNorm_emb(text embeddings + positions), visual tokens)). Visual tokens get
neither a position nor the embedding norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer
from transformers.masking_utils import create_bidirectional_mask

from vlds.models.backbones.base import Backbone
from vlds.models.loading.gate import open_checked


@dataclass(frozen=True, kw_only=True)
class Bart(Backbone):
    """BART of any size, from the hub, a folder or a config."""

    model_class: ClassVar[Any] = BartForConditionalGeneration
    config_class: ClassVar[Any] = BartConfig
    new_row_std: ClassVar[float] = 0.02
    linear_init_std: ClassVar[float | None] = 0.02
    beam_forces_eos: ClassVar[bool] = True
    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
        "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings",
    )  # fmt: skip
    widths: ClassVar[tuple[str, ...]] = ("d_model", "encoder_ffn_dim", "decoder_ffn_dim")
    layer_counts: ClassVar[tuple[str, str]] = ("encoder_layers", "decoder_layers")
    tokens: ClassVar[tuple[str, ...]] = (
        "bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id",
    )  # fmt: skip
    tokenizer_files: ClassVar[tuple[str, ...]] = ("tokenizer.json", "vocab.json")
    roles: ClassVar[dict[str, tuple[str, ...]]] = {
        "attn_q": ("model.*.layers.*.self_attn.q_proj",),
        "attn_k": ("model.*.layers.*.self_attn.k_proj",),
        "attn_v": ("model.*.layers.*.self_attn.v_proj",),
        "attn_out": ("model.*.layers.*.self_attn.out_proj",),
        "cross_attn_q": ("model.decoder.layers.*.encoder_attn.q_proj",),
        "cross_attn_k": ("model.decoder.layers.*.encoder_attn.k_proj",),
        "cross_attn_v": ("model.decoder.layers.*.encoder_attn.v_proj",),
        "cross_attn_out": ("model.decoder.layers.*.encoder_attn.out_proj",),
        "ffn_in": ("model.*.layers.*.fc1",),
        "ffn_out": ("model.*.layers.*.fc2",),
        "norm": (
            "model.*.layernorm_embedding",
            "model.*.layers.*.self_attn_layer_norm",
            "model.*.layers.*.encoder_attn_layer_norm",
            "model.*.layers.*.final_layer_norm",
        ),
        # BART's norms stand behind the sum, so the layers' inputs are what the residual carries.
        "attn_residual": ("model.*.layers.*.self_attn.q_proj",),
        "ffn_residual": ("model.*.layers.*.fc1",),
        "layer": ("model.*.layers.*",),
        "decoder_positions": ("model.decoder.embed_positions",),
        "head": ("lm_head",),
    }

    def read_tokenizer(self, source: str) -> Any:
        return open_checked(BartTokenizer, source, "tokenizer")

    def embed_text(self, model: Any, input_ids: Tensor) -> Tensor:
        """Token embeddings and positions, which prompts do not have."""
        encoder = model.model.encoder
        embedded: Tensor = encoder.embed_tokens(input_ids) + encoder.embed_positions(input_ids)
        return embedded

    def run_encoder(self, model: Any, text: Tensor, visual: Tensor, mask: Tensor) -> Tensor:
        encoder = model.model.encoder
        # Visual tokens join behind the embedding norm, as in VL-Adapter.
        states = torch.cat([encoder.layernorm_embedding(text), visual], dim=1)
        states = F.dropout(states, p=encoder.dropout, training=encoder.training)
        expanded = create_bidirectional_mask(encoder.config, states, mask)
        for layer in encoder.layers:
            states = layer(states, expanded)
        return states

    def vocabulary_logits(self, model: Any, states: Tensor) -> Tensor:
        """The token table, and a bias that does not train."""
        logits: Tensor = model.lm_head(states) + model.final_logits_bias
        return logits

    def visual_norm(self, width: int, bias: bool = False) -> nn.Module:
        """Layer norm, which always has a bias."""
        return nn.LayerNorm(width, eps=1e-5)

    def choice_prefix(self, model: Any) -> list[int]:
        """Targets begin with <s>, so the first real token comes after </s> <s>."""
        return [model.config.decoder_start_token_id, model.config.bos_token_id]

    def set_dropout(self, config: Any, dropout: float) -> None:
        config.dropout = config.attention_dropout = config.activation_dropout = dropout

    def share_embeddings(self, model: Any, stacks: Any) -> None:
        del stacks.model.shared, stacks.lm_head
        for own, other in (
            (model.model.encoder, stacks.model.encoder),
            (model.model.decoder, stacks.model.decoder),
        ):
            other.embed_tokens, other.embed_positions = own.embed_tokens, own.embed_positions
            other.layernorm_embedding = own.layernorm_embedding

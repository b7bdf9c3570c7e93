"""VL-T5: T5 with visual tokens in its encoder, as VL-Adapter has it.

x = dropout(concat(text embeddings, visual tokens)). The relative position bias covers pairs of text
tokens; every pair with a visual token gets zero. All blocks use the first block's bias.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.t5.modeling_t5 import T5LayerNorm

from vlds.models.backbones.base import Backbone, LoadedBackbone
from vlds.models.loading.gate import open_checked
from vlds.models.loading.model_files import SourceError
from vlds.runtime.checks import Positive
from vlds.runtime.folders import scratch_folder
from vlds.schema import UNDECAYED, OptimizerRules


@dataclass(frozen=True, kw_only=True)
class T5(Backbone):
    """T5, T5 v1.1 or FLAN-T5 of any size, from the hub, a folder or a config."""

    embedding_std: Positive | None = None
    """With `config`: standard deviation of the token table's random weights. T5's own 1.0 suits
    Adafactor, whose steps grow with the weights. AdamW's do not and learn faster from 0.1, with
    `scale_decoder_outputs: false` in the config, or the logits begin too small."""

    model_class: ClassVar[Any] = T5ForConditionalGeneration
    config_class: ClassVar[Any] = T5Config
    new_row_std: ClassVar[float] = 1.0
    linear_init_std: ClassVar[float | None] = None
    beam_forces_eos: ClassVar[bool] = False
    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
        "relative_attention_num_buckets", "relative_attention_max_distance",
    )  # fmt: skip
    widths: ClassVar[tuple[str, ...]] = ("d_model", "d_kv", "d_ff")
    layer_counts: ClassVar[tuple[str, str]] = ("num_layers", "num_decoder_layers")
    tokens: ClassVar[tuple[str, ...]] = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    tokenizer_files: ClassVar[tuple[str, ...]] = (".model", "spiece.model", "tokenizer.json")
    # layer.0 is self-attention, layer.1 the decoder's cross-attention, the last one feed-forward.
    roles: ClassVar[dict[str, tuple[str, ...]]] = {
        "attn_q": ("*.block.*.layer.0.SelfAttention.q",),
        "attn_k": ("*.block.*.layer.0.SelfAttention.k",),
        "attn_v": ("*.block.*.layer.0.SelfAttention.v",),
        "attn_out": ("*.block.*.layer.0.SelfAttention.o",),
        "cross_attn_q": ("decoder.block.*.layer.1.EncDecAttention.q",),
        "cross_attn_k": ("decoder.block.*.layer.1.EncDecAttention.k",),
        "cross_attn_v": ("decoder.block.*.layer.1.EncDecAttention.v",),
        "cross_attn_out": ("decoder.block.*.layer.1.EncDecAttention.o",),
        "ffn_in": (
            "*.block.*.layer.*.DenseReluDense.wi",
            "*.block.*.layer.*.DenseReluDense.wi_*",
        ),
        "ffn_out": ("*.block.*.layer.*.DenseReluDense.wo",),
        "norm": ("*.block.*.layer.*.layer_norm", "*.final_layer_norm"),
        "attn_residual": ("*.block.*.layer.0.layer_norm",),
        "ffn_residual": (
            "encoder.block.*.layer.1.layer_norm",
            "decoder.block.*.layer.2.layer_norm",
        ),
        "layer": ("*.block.*",),
        "head": ("lm_head",),
    }
    optimizer_rules: ClassVar[OptimizerRules] = {
        "*.block.0.layer.0.SelfAttention.relative_attention_bias.weight": UNDECAYED
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_std is not None and self.config is None:
            raise ValueError(
                f"embedding_std: got {self.embedding_std}; give it only with `config`: pretrained "
                "weights have a token table"
            )

    def saved_in(self, folder: Path) -> Self:
        # The token table is among the saved weights, where `embedding_std` is an error.
        return super(T5, replace(self, embedding_std=None)).saved_in(folder)

    def load(self, tokenizer_len: int, dtype: torch.dtype) -> LoadedBackbone:
        loaded = super().load(tokenizer_len, dtype)
        if self.embedding_std is not None:
            nn.init.normal_(loaded.model.shared.weight, std=self.embedding_std)
        return loaded

    def read_tokenizer(self, source: str) -> Any:
        path = Path(source)
        if path.suffix == ".model":
            return self.read_pieces(path)
        if (path / "spiece.model").is_file() and not (path / "tokenizer.json").is_file():
            return self.read_pieces(path / "spiece.model")
        return open_checked(T5Tokenizer, source, "tokenizer")

    def read_pieces(self, file: Path) -> Any:
        """A bare sentencepiece model, with as many sentinel tokens as the backbone wants."""
        # A file that was cut may be a valid model with fewer pieces; its specs come last.
        pieces = ModelProto()
        pieces.ParseFromString(file.read_bytes())
        if not (pieces.HasField("trainer_spec") and pieces.HasField("normalizer_spec")):
            raise ValueError(
                f"{file} ends too early: it has {len(pieces.pieces)} pieces and no end"
            )
        with scratch_folder() as folder:
            # transformers recognises the file by this name alone.
            shutil.copy(file, folder / "spiece.model")
            tokenizer = open_checked(T5Tokenizer, folder, "tokenizer", extra_ids=self.extra_tokens)
        if (tokenizer.pad_token_id, tokenizer.eos_token_id) != (0, 1):
            raise SourceError(
                f"tokenizer: {file} does not begin with T5's pieces <pad>, </s>, <unk>; train it "
                "with pad_id=0, eos_id=1, unk_id=2, bos_id=-1"
            )
        return tokenizer

    def embed_text(self, model: Any, input_ids: Tensor) -> Tensor:
        embedded: Tensor = model.encoder.embed_tokens(input_ids)
        return embedded

    def run_encoder(self, model: Any, text: Tensor, visual: Tensor, mask: Tensor) -> Tensor:
        """Prompts and text have relative positions, visual tokens have none."""
        encoder = model.encoder
        states = encoder.dropout(torch.cat([text, visual], dim=1))
        attention = encoder.block[0].layer[0].SelfAttention
        length = text.shape[1]
        # Hugging Face's encoder would count positions on over the visual tokens.
        bias = attention.compute_bias(length, length, device=states.device)
        bias = F.pad(bias, (0, visual.shape[1], 0, visual.shape[1]))
        expanded = create_bidirectional_mask(encoder.config, states, mask)
        # Blocks take the bias of the first one, as their own encoder hands it on.
        for block in encoder.block:
            states = block(states, expanded, bias)[0]
        encoded: Tensor = encoder.dropout(encoder.final_layer_norm(states))
        return encoded

    def vocabulary_logits(self, model: Any, states: Tensor) -> Tensor:
        """T5 scales the states down first; T5 v1.1 and FLAN-T5 do not."""
        if model.config.scale_decoder_outputs:
            states = states * model.model_dim**-0.5
        logits: Tensor = model.lm_head(states)
        return logits

    def visual_norm(self, width: int, bias: bool = False) -> nn.Module:
        """RMS norm without mean."""
        norm_class: Any = BiasedT5LayerNorm if bias else T5LayerNorm
        norm: nn.Module = norm_class(width, eps=1e-6)
        return norm

    def choice_prefix(self, model: Any) -> list[int]:
        """The first token after <pad> is the answer's."""
        return [model.config.decoder_start_token_id]

    def set_dropout(self, config: Any, dropout: float) -> None:
        config.dropout_rate = dropout

    def share_embeddings(self, model: Any, stacks: Any) -> None:
        del stacks.shared, stacks.lm_head
        stacks.encoder.embed_tokens = stacks.decoder.embed_tokens = model.shared


class BiasedT5LayerNorm(T5LayerNorm):
    """T5's RMS norm with a bias, at first 0."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed: Tensor = super().forward(hidden_states)
        return normed + self.bias

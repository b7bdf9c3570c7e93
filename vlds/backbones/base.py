"""What a backbone is: one of Hugging Face's own encoder-decoder classes, and what the trainer has
to know about it.

The class is used as it is and keeps its parameter names. A backbone's file says where its weights
and its tokenizer come from, how the joint encoder runs over its own modules, and where the roles
are that methods attach to. Shapes: b examples, l prompt tokens, v visual tokens, d width.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig

from vlds.backbones.attention import CPU_ATTENTION, set_attention
from vlds.backbones.vocabulary import (
    HEAD,
    add_extra_tokens,
    check_ids,
    check_tables,
    give_own_head,
    holds_own_head,
    resize_vocabulary,
)
from vlds.pretrained.files import reading
from vlds.pretrained.gate import check_model, check_tokenizer, open_checked
from vlds.pretrained.weights import TIES, check_config, load_weights, read_config
from vlds.runtime.checks import Limits, ShareBelow1, check_path_or_config
from vlds.runtime.resources import find, shipped
from vlds.schema import OptimizerRules, TargetModules

PIECES = "tokenizer_pieces"
"""Our key in a shipped config: pieces of the tokenizer, where the table has spare rows (T5)."""
ExtraTokens: TypeAlias = Annotated[int, Limits(0, 10_000)]
"""Tokenizers take extra tokens one by one, and a billion of them for ever."""
HUB_NAME = re.compile(r"(?:google-t5/|google/|facebook/)?([\w.-]+)")
"""Hub names whose sizes may lie in recipes/backbones."""


@dataclass(frozen=True)
class LoadedBackbone:
    """A model, and which of its tensors are those of the named checkpoint."""

    model: Any
    """A transformers PreTrainedModel."""
    source_names: frozenset[str] = frozenset()
    """Parameters and buffers that are the checkpoint's, bit for bit."""
    source_rows: Mapping[str, int] = field(default_factory=dict)
    """Tables with new rows -> number of leading rows that are the checkpoint's. `build_model` draws
    the others."""


@dataclass(frozen=True, kw_only=True)
class Backbone(ABC):
    """An encoder-decoder language model."""

    path: str | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: str | None = None
    """Instead of `path`: a config.json of Hugging Face, for a model with random weights."""
    tokenizer: str | None = None
    """Folder, hub name or (T5) sentencepiece .model file of the tokenizer; default: where the
    weights are."""
    dropout: ShareBelow1 | None = None
    """Dropout everywhere in the model; default: what its config says."""
    extra_tokens: ExtraTokens = 100
    """Sentinel tokens <extra_id_0> ... of the vocabulary."""
    visual_tokens: ExtraTokens = 100
    """Tokens <vis_extra_id_0> ...: the last rows of the vocabulary, one for each visual token of an
    image."""

    model_class: ClassVar[Any]
    config_class: ClassVar[Any]
    new_row_std: ClassVar[float]
    """New vocabulary rows are drawn from N(0, std^2), as in VL-Adapter."""
    linear_init_std: ClassVar[float | None]
    """Initial standard deviation of new linear layers; None: PyTorch's default."""
    beam_forces_eos: ClassVar[bool]
    """True if beam search puts </s> at the last position, whatever the model says."""
    roles: ClassVar[dict[str, tuple[str, ...]]]
    """Role -> path patterns."""
    sizes: ClassVar[tuple[str, ...]]
    """Fields of the config that are numbers from 1."""
    widths: ClassVar[tuple[str, ...]]
    """Fields of the config that narrow stacks divide."""
    layer_counts: ClassVar[tuple[str, str]]
    """Fields of the config: numbers of the encoder's and the decoder's layers."""
    tokens: ClassVar[tuple[str, ...]]
    """Fields of the config that are ids of tokens that the model needs."""
    tokenizer_files: ClassVar[tuple[str, ...]]
    """Files that hold a tokenizer: names in a folder, and endings of files anywhere."""
    optimizer_rules: ClassVar[OptimizerRules] = {}
    """Path pattern of a parameter -> rule, where the kind of the parameter's module does not say
    it."""

    def __post_init__(self) -> None:
        check_path_or_config(self)

    # What each backbone says.

    @abstractmethod
    def read_tokenizer(self, source: str) -> Any:
        """The tokenizer of a folder, hub name or file, without our extra tokens."""

    @abstractmethod
    def embed_text(self, model: Any, input_ids: Tensor) -> Tensor:
        """Token ids (b, l) -> the encoder's input (b, l, d), before any norm."""

    @abstractmethod
    def run_encoder(self, model: Any, text: Tensor, visual: Tensor, mask: Tensor) -> Tensor:
        """Embedded prompts and text (b, p + l, d), visual tokens (b, v, d) and the mask of both ->
        states (b, p + l + v, d)."""

    @abstractmethod
    def vocabulary_logits(self, model: Any, states: Tensor) -> Tensor:
        """Decoder states (..., d) -> logits over the vocabulary (..., w)."""

    @abstractmethod
    def visual_norm(self, width: int, bias: bool = False) -> nn.Module:
        """A norm of the backbone's kind, for the visual embedding. `bias`: with a bias, even if
        that kind has none."""

    @abstractmethod
    def choice_prefix(self, model: Any) -> list[int]:
        """Decoder input after which the first real token of an answer is predicted."""

    @abstractmethod
    def set_dropout(self, config: Any, dropout: float) -> None:
        """Write one dropout rate everywhere into a Hugging Face config."""

    @abstractmethod
    def share_embeddings(self, model: Any, stacks: Any) -> None:
        """Give other stacks what a model has before its layers, and take their head away."""

    # The same for all.

    def encode(
        self, model: Any, input_ids: Tensor, visual: Tensor, mask: Tensor, prompts: Tensor | None
    ) -> Tensor:
        """Joint encoder over prompts (b, p, d), text (b, l) and visual tokens (b, v, d), with the
        mask of all (b, p + l + v) -> states (b, p + l + v, d)."""
        text = self.embed_text(model, input_ids)
        if prompts is not None:
            text = torch.cat([prompts, text], dim=1)
        return self.run_encoder(model, text, visual, mask)

    @property
    def target_modules(self) -> TargetModules:
        """Where methods attach."""
        return TargetModules(self.roles, self.linear_init_std, narrow=self.narrow)

    def narrow(self, model: Any, reduction: int, num_layers: tuple[int, int]) -> Any:
        """Stacks of the model's class whose sizes are divided by `reduction`, with `num_layers` in
        encoder and decoder. Their input is the model's own: embeddings of its width.

        Errors: ValueError if a size is not a multiple of the reduction.
        """
        config = copy.deepcopy(model.config)
        for name in self.widths:
            width = getattr(config, name)
            if width % reduction:
                raise ValueError(
                    f"reduction: got {reduction}, and the backbone's {name} is {width}; give a "
                    "divisor"
                )
            setattr(config, name, width // reduction)
        for name, number in zip(self.layer_counts, num_layers, strict=True):
            setattr(config, name, number)
        stacks = self.model_class(config)
        self.share_embeddings(model, stacks)
        set_attention(stacks, model.config._attn_implementation)
        return stacks

    def check_sources(self) -> None:
        """Check, before any long work, that weights and tokenizer exist here or can be fetched.

        Errors: ValueError that names the field.
        """
        if self.path is not None:
            check_model(self.path, "model.backbone.path")
        self.tokenizer_source()

    def tokenizer_source(self) -> tuple[str, str]:
        """The folder, hub name or file of the tokenizer, and the field that names it.

        Errors: ValueError if there is none.
        """
        source = self.tokenizer or self.path
        if source is None:
            raise ValueError(
                f"tokenizer: {type(self).__name__} has random weights (`config`), so it needs the "
                "tokenizer's folder or file"
            )
        field = f"model.backbone.{'tokenizer' if self.tokenizer else 'path'}"
        check_tokenizer(source, field, self.tokenizer_files)
        return source, field

    def load_tokenizer(self) -> Any:
        """The tokenizer with sentinel and visual tokens: <vis_extra_id_o> has id len(tokenizer) - 1
        - o.

        Errors: ValueError if there is none.
        """
        source, field = self.tokenizer_source()
        what = f"{field}: cannot read a tokenizer from {source}"
        with reading(what, "copy it again, or name a folder that holds one, or a name on the hub"):
            tokenizer = self.read_tokenizer(source)
        add_extra_tokens(tokenizer, self.extra_tokens, self.visual_tokens, source)
        return tokenizer

    def local_tokenizer(self) -> Any:
        """The tokenizer if its files are on this machine, else None.

        Errors: ValueError if the files hold no tokenizer.
        """
        source = self.tokenizer or self.path
        return self.load_tokenizer() if source is not None and Path(source).exists() else None

    def saved_in(self, folder: Path) -> Self:
        """The same backbone with the weights and the tokenizer of a folder."""
        return replace(self, path=str(folder), config=None, tokenizer=None)

    def load_tokenizer_from(self, folder: Path) -> Any:
        """A tokenizer that a run has saved, extra tokens included."""
        tokenizer = open_checked(AutoTokenizer, folder, "tokenizer")
        check_ids(tokenizer, str(folder))
        return tokenizer

    def read_config(self) -> Any:
        """The Hugging Face config, from `config` or from where the weights are.

        On the meta device the sizes of well-known hub names come from the files that vlds brings.
        """
        source = str(find(self.config)) if self.config is not None else str(self.path)
        if torch.get_default_device().type == "meta":
            source = shipped_sizes(source)
        field = f"model.backbone.{'config' if self.config is not None else 'path'}"
        config, fields = read_config(self.config_class, source, field)
        if config.model_type != self.config_class.model_type:
            raise ValueError(
                f"{source} is the config of a {config.model_type} model, not of "
                f"{type(self).__name__}; choose the backbone class that fits"
            )
        check_config(config, f"{field}: {source}", self.sizes, self.tokens)
        # T5Config replaces this by True.
        config.tie_word_embeddings = fields.get(TIES) is not False
        if self.dropout is not None:
            self.set_dropout(config, self.dropout)
        return config

    def vocabulary_size(self) -> int:
        """Length of the tokenizer, computed from the config."""
        config = self.read_config()
        extra = self.extra_tokens + self.visual_tokens
        return int(getattr(config, PIECES, config.vocab_size)) + extra

    def load(self, tokenizer_len: int, dtype: torch.dtype) -> LoadedBackbone:
        """The model with exactly `tokenizer_len` vocabulary rows; on the meta device, its shapes
        only."""
        config = self.read_config()
        if self.config is not None or torch.get_default_device().type == "meta":
            config.vocab_size = tokenizer_len
            loaded = LoadedBackbone(self.build(config).to(dtype))
        else:
            loaded = self.load_pretrained(config, tokenizer_len, dtype)
        model = loaded.model
        usual = model.config._attn_implementation
        set_attention(model, CPU_ATTENTION)  # on GPUs too: it raises if transformers is too old
        if torch.cuda.is_available():
            set_attention(model, usual)
        # Values in a checkpoint's generation config (no_repeat_ngram_size, forced tokens, ...)
        # would leak into generate() wherever ours are None.
        model.generation_config = GenerationConfig()
        return loaded

    def build(self, config: Any) -> Any:
        """The model of a config, with random weights or on the meta device."""
        own_head = not config.tie_word_embeddings
        # Without this, transformers would give each stack a separate token table.
        config.tie_word_embeddings = True
        source = self.config or self.path
        with reading(f"{'config' if self.config else 'path'}: {source} describes no model"):
            model = self.model_class(config)
        if self.path is not None:
            in_files = holds_own_head(Path(self.path), model.all_tied_weights_keys[HEAD])
            own_head = own_head if in_files is None else in_files
        if own_head:
            give_own_head(model, self.linear_init_std)
        return model

    def load_pretrained(
        self, config: Any, tokenizer_len: int, dtype: torch.dtype
    ) -> LoadedBackbone:
        """Weights from `path`. Under ZeRO-3's loading hint each rank only ever holds its part of
        them."""
        config.tie_word_embeddings = True  # transformers ties what is equal, and nothing else
        model, missing = load_weights(
            self.model_class, str(self.path), config, dtype, "model.backbone.path"
        )
        check_tables(model, str(self.path))
        names = {name for name, _ in unique_state(model)} - missing
        rows = resize_vocabulary(model, tokenizer_len)
        names -= rows.keys()
        if rows:
            # Named by the checkpoint or not, these buffers have new entries.
            names -= {
                name for name, tensor in model.named_buffers() if tokenizer_len in tensor.shape
            }
        return LoadedBackbone(model, frozenset(names), rows)


def shipped_sizes(source: str) -> str:
    """The config file that vlds brings for a well-known hub name; any other source as it is."""
    name = HUB_NAME.fullmatch(source)
    # FLAN-T5 is T5 v1.1, trained further.
    file = f"recipes/backbones/{name[1].replace('t5-v1_1-', 'flan-t5-')}.json" if name else ""
    if file in shipped("recipes") and not Path(source).exists():
        return str(find(file))
    return source


def unique_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers, tied ones once, by their first name."""
    yield from model.named_parameters()
    saved = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in saved:
            yield name, buffer

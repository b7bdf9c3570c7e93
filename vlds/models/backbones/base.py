"""A backbone: one of Hugging Face's own encoder-decoder classes, and what the trainer has to know
about it.

The class is used as it is and keeps its parameter names. `Backbone` says where its weights and its
tokenizer come from, how the joint encoder runs over its modules, and where the roles are that
methods attach to; it adds the sentinel and visual tokens and resizes the vocabulary's two tables.
Shapes: b examples, l prompt tokens, v visual tokens, d width.
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

from vlds.models.backbones.attention import CPU_ATTENTION, set_attention
from vlds.models.loading.gate import (
    TIES,
    check_config,
    check_model,
    check_tokenizer,
    load_weights,
    open_checked,
    read_config,
)
from vlds.models.loading.model_files import open_tensors, reading
from vlds.runtime.checks import (
    Choice,
    Limits,
    ShareBelow1,
    SourceFile,
    SourcePath,
    check_path_or_config,
)
from vlds.runtime.devices import uses_gpu
from vlds.runtime.process import find, shipped
from vlds.schema import OptimizerRules, TargetModules

HEAD = "lm_head.weight"
PIECES = "tokenizer_pieces"
"""Our key in a shipped config: pieces of the tokenizer, where the table has spare rows (T5)."""
ExtraTokens: TypeAlias = Annotated[int, Limits(0, 10_000)]
"""Bounded because tokenizers take extra tokens one by one: a billion would never end."""
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
class Backbone(Choice, ABC):
    """An encoder-decoder language model."""

    path: SourcePath | None = None
    """Pretrained weights: a Hugging Face hub name or a local folder."""
    config: SourceFile | None = None
    """Instead of `path`: a config.json of Hugging Face, for a model with random weights."""
    tokenizer: SourcePath | None = None
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

    # Where things are in the model and in its Hugging Face config.
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
        # The number of heads stays: each becomes narrower.
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
        # The class makes a whole model; its embeddings give way to the model's.
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
        """The tokenizer, with the missing sentinel and visual tokens appended in descending order:
        <vis_extra_id_o> has id len(tokenizer) - 1 - o.

        Errors: ValueError if there is none, if an id is not below the number of tokens, or if the
        visual tokens are not its last ones.
        """
        source, field = self.tokenizer_source()
        what = f"{field}: cannot read a tokenizer from {source}"
        with reading(what, "copy it again, or name a folder that holds one, or a name on the hub"):
            tokenizer = self.read_tokenizer(source)
        check_ids(tokenizer, source)
        names = [f"<extra_id_{i}>" for i in reversed(range(self.extra_tokens))]
        visual_names = [f"<vis_extra_id_{i}>" for i in reversed(range(self.visual_tokens))]
        # Descending, so that <vis_extra_id_0> is the last token whatever their number is.
        known = tokenizer.get_vocab()
        missing = [name for name in names + visual_names if name not in known]
        tokenizer.add_tokens(missing, special_tokens=True)
        # Visual tokens that the source has already lie elsewhere, and would get the wrong rows.
        last_ids = list(range(len(tokenizer) - self.visual_tokens, len(tokenizer)))
        if tokenizer.convert_tokens_to_ids(visual_names) != last_ids:
            raise ValueError(
                f"tokenizer: {source} has <vis_extra_id_*> tokens, but not {self.visual_tokens} of "
                "them as its last tokens; set visual_tokens to their number, or take a tokenizer "
                "without them"
            )
        return tokenizer

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
        if torch.get_default_device().type == "meta" and (name := HUB_NAME.fullmatch(source)):
            # FLAN-T5 is T5 v1.1, trained further, and has its sizes.
            file = f"recipes/backbones/{name[1].replace('t5-v1_1-', 'flan-t5-')}.json"
            if file in shipped("recipes") and not Path(source).exists():
                source = str(find(file))
        field = f"model.backbone.{'config' if self.config is not None else 'path'}"
        config, fields = read_config(self.config_class, source, field)
        if config.model_type != self.config_class.model_type:
            raise ValueError(
                f"{source} is the config of a {config.model_type} model, not of "
                f"{type(self).__name__}; choose the backbone class that fits"
            )
        check_config(config, f"{field}: {source}", self.sizes, self.tokens)
        # transformers 5's T5Config says True whatever the file says.
        config.tie_word_embeddings = fields.get(TIES) is not False
        if self.dropout is not None:
            self.set_dropout(config, self.dropout)
        return config

    def vocabulary_size(self) -> int:
        """Length of the tokenizer, computed from the config."""
        config = self.read_config()
        # The table may have more rows than the tokenizer has pieces: T5's is rounded up to 32128.
        extra = self.extra_tokens + self.visual_tokens
        return int(getattr(config, PIECES, config.vocab_size)) + extra

    def load(self, tokenizer_len: int, dtype: torch.dtype) -> LoadedBackbone:
        """The model with exactly `tokenizer_len` vocabulary rows; on the meta device, its shapes
        only."""
        config = self.read_config()
        if self.config is not None or torch.get_default_device().type == "meta":
            # Without pretrained rows to keep, the tables get their final size at once.
            config.vocab_size = tokenizer_len
            loaded = LoadedBackbone(self.build(config).to(dtype))
        else:
            loaded = self.load_pretrained(config, tokenizer_len, dtype)
        model = loaded.model
        usual = model.config._attn_implementation
        set_attention(model, CPU_ATTENTION)  # on GPUs too: it raises if transformers is too old
        if uses_gpu():
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
        with reading(f"{'config' if self.config else 'path'}: {source} does not describe a model"):
            model = self.model_class(config)
        if self.path is not None:
            # The config may be wrong about the head: the checkpoint's tensors decide.
            table = model.all_tied_weights_keys[HEAD]
            tensors: dict[str, Tensor] = {}
            for file in sorted(Path(self.path).glob("*.safetensors")):
                with open_tensors("model.backbone.path", file) as opened:
                    names = {HEAD, table} & set(opened.keys())
                    tensors |= {name: opened.get_tensor(name) for name in names}
            if tensors:
                own_head = len(tensors) == 2 and not torch.equal(tensors[HEAD], tensors[table])
        if own_head:
            # transformers draws an untied T5 head from N(0, 1). The states before it are normalised
            # and not scaled down, so its first logits would be sqrt(d_model) wide. Here it begins
            # like all new linear layers of the family.
            weight = model.get_input_embeddings().weight
            rows, width = weight.shape
            head = nn.Linear(width, rows, bias=False, device=weight.device, dtype=weight.dtype)
            if self.linear_init_std is not None:
                nn.init.normal_(head.weight, std=self.linear_init_std)
            model.set_output_embeddings(head)
            model.config.tie_word_embeddings = False
        return model

    def load_pretrained(
        self, config: Any, tokenizer_len: int, dtype: torch.dtype
    ) -> LoadedBackbone:
        """Weights from `path`. Under ZeRO-3's loading hint each rank only ever holds its part of
        them.

        Errors: ValueError if encoder and decoder do not share the token table.
        """
        config.tie_word_embeddings = True  # transformers ties what is equal, and nothing else
        model, missing = load_weights(
            self.model_class, str(self.path), config, dtype, "model.backbone.path"
        )
        table = model.get_input_embeddings().weight
        for part, stack in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
            if stack.embed_tokens.weight is not table:
                raise ValueError(
                    f"path: {self.path} has a token table for the {part} alone; vlds gives encoder "
                    "and decoder one table, so choose a checkpoint that has one"
                )
        # Before resizing, which gives the tables new parameters under the same names.
        names = {name for name, _ in unique_state(model)} - missing
        rows = resize_vocabulary(model, tokenizer_len)
        names -= rows.keys()
        if rows:
            # Buffers over the vocabulary, such as BART's bias, have new entries too.
            names -= {
                name for name, tensor in model.named_buffers() if tokenizer_len in tensor.shape
            }
        return LoadedBackbone(model, frozenset(names), rows)


def num_ids(tokenizer: Any) -> int:
    """Rows of a table that has one for every id of a tokenizer; a file may give a token any id,
    also one beyond the number of tokens."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def check_ids(tokenizer: Any, source: str) -> None:
    """Errors: ValueError if an id is not below the number of tokens."""
    if (ids := num_ids(tokenizer)) > len(tokenizer):
        raise ValueError(
            f"tokenizer: {source} has {len(tokenizer)} tokens, and one with the id {ids - 1}; copy "
            "it again, or name another"
        )


def has_own_head(model: Any) -> bool:
    """True if the head, which a model writes with, is not the token table, which it reads with.

    In T5 and BART they are one tensor. T5 v1.1 and FLAN-T5 have a separate head.
    """
    separate: bool = model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    return separate


@torch.no_grad()
def resize_vocabulary(model: Any, size: int) -> dict[str, int]:
    """Give the tables `size` rows, and make the config say whether they are tied; name of each
    resized table -> number of leading rows that are as before.

    Whoever builds the model draws the new rows of the token table. New rows of a separate head
    are the mean of the old ones: a new token's logit is then the mean of the others, so by Jensen's
    inequality its probability is at most the mean of theirs, whatever the state is. Rows as wide as
    the token table's would outshout all trained tokens.
    """
    # While the config says that they are tied, `resize_token_embeddings` replaces the head by the
    # token table.
    model.config.tie_word_embeddings = not has_own_head(model)
    old_rows = model.get_input_embeddings().num_embeddings
    if size == old_rows:
        return {}
    model.resize_token_embeddings(size, mean_resizing=False)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if size > old_rows and head is not table:
        head.data[old_rows:] = head.data[:old_rows].mean(0, dtype=torch.float32)
    kept = min(size, old_rows)
    return {name: kept for name, p in model.named_parameters() if p is table or p is head}


def unique_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers, tied ones once, by their first name."""
    yield from model.named_parameters()
    saved = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in saved:
            yield name, buffer

"""Causal: any causal language model of Hugging Face behind a vision encoder of vlds, as in LLaVA.

Vision encoder -> projector -> visual tokens before the text, which is prompt and answer in one
sequence. Shapes: b rows, u distinct images, n images per row, v visual tokens per image, l tokens
of prompt and answer, s tokens of the whole sequence, w words of the vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from inspect import getsource
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from vlds.models.generation.answer_list import Writer
from vlds.models.generation.decoding import cache_of
from vlds.models.generation.positions import (
    Lines,
    can_share_starts,
    drops_pairs,
    pick_positions,
    picking,
    share_starts,
)
from vlds.models.kernels.dropout import beginnings_follow, tokens_move
from vlds.models.kinds.base import (
    CONNECTOR_RATE,
    GridKind,
    PathKind,
    StatesModel,
    grid_features,
    named,
    try_questions,
)
from vlds.models.kinds.causal_rows import PICTURES_BEFORE, CausalCollator
from vlds.models.kinds.chat_format import ChatFormat
from vlds.models.kinds.library import LibraryModel, own_state
from vlds.models.loading.gate import check_config, read_any_config
from vlds.models.loading.load_backbone import Longest, check_fits, load_backbone, num_positions
from vlds.models.loading.model_files import save_module
from vlds.models.loading.quantised import (
    Bits,
    check_has_source,
    check_libraries,
    check_writable_whole,
)
from vlds.models.loss import targets_of
from vlds.models.methods.context import Predicted, Visual, places_of
from vlds.models.methods.host import CROSS_ATTENTION, run_beside
from vlds.models.model import Model, Part
from vlds.models.peers import opened
from vlds.models.roles import find_roles
from vlds.models.vision.base import GridEncoder, VisionEncoder
from vlds.models.vision.base import load_weights as load_file
from vlds.models.visual_embedding import Projector, packing, tokens_of_rows, visual_mask
from vlds.runtime.checks import Count, SourceFile, SourcePath
from vlds.schema import (
    IGNORED_LABEL,
    NO_IMAGE,
    Batch,
)

CURES: dict[str, str] = dict.fromkeys(
    (*CROSS_ATTENTION, "decoder_positions"),
    "A causal model has no cross-attention; choose other roles, or another method",
)
"""Roles of encoder-decoders -> what to choose instead."""

NO_TEXT = -1
"""Stands for the number of a visual token, or of a method's prompt."""


class Sequences(NamedTuple):
    """What the language model reads."""

    embeds: Tensor
    """(b, s, d). The other tensors are on the host, where rows are laid out."""
    mask: Tensor
    """(b, s) bool, False on padding."""
    before_labels: Tensor
    """(b, s) bool, True for the positions that predict the answer's tokens."""
    tokens: Tensor
    """(b, s) int64 numbers of the text's tokens; NO_TEXT elsewhere."""


class CausalModel(StatesModel):
    """A model of `AutoModelForCausalLM` behind a vision encoder."""

    def __init__(
        self,
        vision: GridEncoder,
        connector: Projector,
        backbone: Any,
        *,
        encoder: VisionEncoder,
        tokenizer: Any = None,
    ) -> None:
        """`encoder`: the recipe's choice that `vision` comes from."""
        super().__init__(tokenizer)
        self.vision = vision
        self.connector = connector
        self.backbone = backbone
        self.encoder = encoder
        self.chat = None if tokenizer is None else ChatFormat.of(tokenizer)
        # Methods' own layers would confuse the rule later.
        init_std = getattr(backbone.config, "initializer_range", None)
        roles = find_roles(backbone, init_std)
        self.parts = {
            "backbone": Part("backbone", replace(roles, cures={**roles.cures, **CURES})),
            "vision": Part("vision", encoder.target_modules),
        }
        self.answer_positions = pick_positions(backbone)
        self.shares_starts = can_share_starts(backbone)

    def answer_tokens(self, answers: Sequence[str]) -> list[list[int]]:
        assert self.chat is not None
        return [self.chat.answer_ids(answer) for answer in answers]

    def choice_tokens(self, choice: str) -> list[int]:
        assert self.chat is not None
        return self.chat.first_ids(choice)

    def sizes(self, batch: Batch) -> Tensor:
        """(b, 1) tokens of the sequence, visual ones included; of all sequences together where rows
        share their start, so that a cut by size leaves them together."""
        visual = (batch.image_index != NO_IMAGE).sum(1) * self.connector.num_tokens
        lengths = visual + batch.attention_mask.sum(1)
        if not self.shares_starts:
            return lengths[:, None]
        # Rows of one task about the same images: lengths 5 7 4 in groups 0 1 0 give 9 7 9.
        keys = torch.cat([batch.task_index[:, None], batch.image_index], 1)
        groups = keys.unique(dim=0, return_inverse=True)[1]
        return torch.zeros_like(lengths).index_add(0, groups, lengths)[groups][:, None]

    # Training.

    def predicted(self, batch: Batch) -> Predicted:
        labels = targets_of(batch.on_host)
        split = self.heads.split(batch, labels)
        sequences = self.sequences(batch, self.visual_tokens(batch), labels != IGNORED_LABEL)
        logits, states = self.read_at(batch, sequences, sequences.before_labels, split.among)
        classes = self.heads.predicted(states, split, batch)
        return Predicted(logits, targets_of(batch), split.tokens, classes)

    def logits(self, batch: Batch) -> Tensor:
        """(b, l, w) for each token of the answer, given those before it; 0 elsewhere."""
        labels = targets_of(batch.on_host)
        split = self.heads.split(batch, labels)
        sequences = self.sequences(batch, self.visual_tokens(batch), labels != IGNORED_LABEL)
        logits, _ = self.read_at(batch, sequences, sequences.before_labels, None)
        return logits.new_zeros(*labels.shape, logits.shape[-1]).index_put(split.every, logits)

    def read_at(
        self,
        batch: Batch,
        sequences: Sequences,
        picked: Tensor,
        among: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, w) at the k picked positions (b, s, on the host) that `among` wants, and
        states (m, d) at the others (`Picking`): both row by row."""
        device, lines = sequences.embeds.device, self.lines(batch, sequences, picked)
        beginnings_follow(sequences.tokens, batch.pictures, batch.on_host.image_index)
        if lines is None:
            places, inputs = places_of(picked.nonzero(), device), self.arguments(sequences)
        else:
            places = places_of(lines.places_of(picked), device)
            inputs = self.arguments_of_lines(lines, sequences)
        with picking(self.answer_positions, places, among) as read:
            logits: Tensor = self.backbone(**inputs, use_cache=False).logits
        return logits, read.states

    # What the language model reads.

    def lines(
        self, batch: Batch, sequences: Sequences, picked: Tensor, besides: int = 0
    ) -> Lines | None:
        """The rows laid out so that what rows about one image begin with is computed once; None
        where that saves nothing, or methods treat examples differently. `picked`, `besides`: as in
        `share_starts`."""
        if not self.shares_starts or self.context.reads_examples:
            return None
        if self.training and drops_pairs(self.backbone):
            return None
        return share_starts(
            sequences.tokens,
            sequences.mask.sum(1),
            picked,
            batch.task_index,
            batch.on_host.image_index,
            sequences.embeds.shape[2],
            besides,
        )

    def arguments_of_lines(self, lines: Lines, sequences: Sequences) -> dict[str, Tensor]:
        """Those of Hugging Face's forward pass: each token of a line sees only its own row, and has
        the position that it has there. Sets the lines' tasks."""
        embeds, device = sequences.embeds, sequences.embeds.device
        self.context.routing.set(lines.tasks, device)
        tokens_move(lines.source)
        source, positions = (
            values.to(device, non_blocking=True) for values in (lines.source, lines.positions)
        )
        return {
            "inputs_embeds": embeds.flatten(0, 1)[source],
            "attention_mask": lines.mask(embeds.dtype, device),
            "position_ids": positions,
        }

    def arguments(self, sequences: Sequences) -> dict[str, Tensor]:
        """Those of Hugging Face's forward pass and of `generate`."""
        mask = sequences.mask.long().to(sequences.embeds.device, non_blocking=True)
        return {"inputs_embeds": sequences.embeds, "attention_mask": mask}

    def sequences(
        self, batch: Batch, visual: Tensor, real: Tensor | None = None, *, left: bool = False
    ) -> Sequences:
        """[prompts of methods][visual tokens][text] of each row without gaps, padded on the right
        or on the left; in conversations, visual tokens stand where their
        pictures do. `real`: (b, l) the answer's tokens, on the host. Sets the batch's tasks."""
        device, known = batch.input_ids.device, batch.on_host
        self.context.set_rows(batch.task_index, None, device)
        text = self.backbone.get_input_embeddings()(batch.input_ids)
        shown, shown_mask = tokens_of_rows(visual.to(text.dtype), batch.image_index)
        self.context.visual = Visual(shown, shown_mask)
        prompts = run_beside(self.backbone)
        embeds = [shown, text]
        masks = [visual_mask(known.image_index, visual.shape[1]), known.attention_mask.bool()]
        length = batch.input_ids.shape[1]
        if prompts is not None:
            embeds.insert(0, prompts)
            masks.insert(0, masks[0].new_ones(prompts.shape[:2]))
        joined, mask = torch.cat(embeds, 1), torch.cat(masks, 1)
        tokens = torch.full_like(mask, NO_TEXT, dtype=torch.long)
        tokens[:, -length:] = known.input_ids
        # The number of prompts and visual tokens varies, but here the text is always the end.
        labelled = torch.zeros_like(mask)
        if real is not None:
            labelled[:, -length:] = real
        # Absent images leave gaps in the middle, which would shift the positions of the text.
        order = None
        if PICTURES_BEFORE in known.types:
            # Prompts, then picture 0 between the words with none before them and those with one: by
            # 1, 2 (words), 3 (picture 0), 4 (words), 5 (picture 1), ...
            prompt = torch.ones(mask[:, : mask.shape[1] - length - shown.shape[1]].shape).long()
            image = torch.arange(known.image_index.shape[1]).repeat_interleave(visual.shape[1])
            words = 2 + 2 * known.types[PICTURES_BEFORE]
            order = torch.cat([prompt, (3 + 2 * image).expand(len(mask), -1), words], 1)
        places = packing(mask, left=left, order=order)
        there = places.to(device, non_blocking=True)
        joined = joined.gather(1, there[..., None].expand(-1, -1, joined.shape[2]))
        mask, labelled, tokens = (values.gather(1, places) for values in (mask, labelled, tokens))
        self.context.token_mask = mask.to(device, non_blocking=True)
        # The position before each token of the answer predicts it.
        return Sequences(joined, mask, F.pad(labelled[:, 1:], (0, 1)), tokens)

    def visual_tokens(self, batch: Batch) -> Tensor:
        """(u, v, d) visual tokens of the distinct images; of an empty image if there are none, so
        that encoder and projector run on every rank: under ZeRO-3 all ranks gather together."""
        if (pictures := batch.pictures) is not None and len(pictures) > 0:
            return self.projected(pictures)
        device, geometry = batch.input_ids.device, self.encoder.geometry
        if (spec := geometry.image) is not None:
            empty = torch.zeros(1, 3, spec.height, spec.width, dtype=torch.uint8, device=device)
        else:
            empty = torch.zeros(1, geometry.grid_size**2, geometry.feature_dim, device=device)
        is_training = self.vision.training
        self.vision.eval()  # batch norm counts real pictures only
        tokens = self.projected(empty)
        self.vision.train(is_training)
        return tokens

    def projected(self, pictures: Tensor) -> Tensor:
        """(u, 3, h, w) uint8, or stored features (u, v', dim) -> (u, v, d)."""
        tokens: Tensor = self.connector(grid_features(self.vision, pictures))
        return tokens

    # Answers.

    def read_first(
        self, batch: Batch, among: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        # The last token of a row predicts its answer's first one.
        sequences = self.sequences(batch, self.visual_tokens(batch))
        last = sequences.mask.sum(1) - 1
        picked = torch.zeros_like(sequences.mask).scatter(1, last[:, None], True)
        return self.read_at(batch, sequences, picked, among)

    @property
    def writer(self) -> Writer:
        assert self.chat is not None
        return Writer(self.backbone, tuple(self.chat.end_ids), self.chat.pad_id)

    def prompts(self, batch: Batch) -> dict[str, Any]:
        visual = self.visual_tokens(batch)
        computed = self.starts(batch, visual)
        return {**self.arguments(self.sequences(batch, visual, left=True)), **computed}

    def starts(self, batch: Batch, visual: Tensor) -> dict[str, Any]:
        """Keys and values of all tokens of the rows but each one's last, for `generate`; nothing if
        rows share too little. Rows about one image share what they begin with."""
        keys = torch.cat([batch.task_index[:, None], batch.on_host.image_index], 1)
        if len(keys.unique(dim=0)) == len(keys):
            return {}  # each row is about pictures of its own
        sequences = self.sequences(batch, visual)
        none = torch.zeros_like(sequences.mask)  # no logits: keys and values are all that counts
        # `generate` computes the last tokens in a pass of their own.
        lines = self.lines(batch, sequences, none, besides=len(batch))
        if lines is None:
            return {}
        device, lengths = sequences.embeds.device, sequences.mask.sum(1, keepdim=True)
        with picking(self.answer_positions, places_of(none.nonzero(), device), None):
            output = self.backbone(**self.arguments_of_lines(lines, sequences), use_cache=True)
        # Moved to the right, as `generate` wants rows, and without the last token: of a row of 2
        # where the longest has 4, the tokens are -2 -1 0. What is negative is padding.
        longest = int(lengths.max())
        tokens = (torch.arange(longest - 1) - (longest - lengths)).clamp(min=0)
        # A token's place among those of all lines (g * t).
        places = lines.line[:, None] * lines.source.shape[1] + lines.places.gather(1, tokens)
        places = places.to(device, non_blocking=True)
        computed = cache_of(output)
        for known in computed.values():
            for layer in known.layers:
                # (g, heads, t, d) -> (b, heads, longest - 1, d)
                layer.keys, layer.values = (
                    states.transpose(1, 2).flatten(0, 1)[places].transpose(1, 2)
                    for states in (layer.keys, layer.values)
                )
        return computed


SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")


@dataclass(frozen=True, kw_only=True)
class Causal(PathKind, GridKind):
    """A causal language model that reads visual tokens before the text, as LLaVA does."""

    rate_fields: ClassVar[Mapping[str, str]] = {
        "connector": CONNECTOR_RATE,
        "projector": CONNECTOR_RATE,
    }
    """One part: `projector` in words, `connector` in the model, as in all kinds."""
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    backbone_word: ClassVar[str] = "language model"
    backbone_task: ClassVar[str | None] = "text-generation"

    path: SourcePath | None = None
    """The language model: a Hugging Face hub name or a local folder."""
    tokenizer: SourcePath | None = None
    """Folder or hub name of the tokenizer, whose chat template is used if it has one; default:
    `path`."""
    grid: Count | None = None
    """Cells along a side after max pooling; default: the encoder's own grid."""
    num_images: Count = 1
    """Most images an example may have."""
    projector_weights: SourceFile | None = None
    """A .safetensors file with a trained projector (projector.safetensors of `vlds convert hf`)."""
    train_projector: bool = True
    """Train the projector, which turns grid features into visual tokens."""
    bits: Bits | None = None
    """Pack the language model's frozen linear layers in 4 bits (nf4) or 8 (LLM.int8); not under
    ZeRO stage 3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_has_source(self.bits, self.config)

    # Where it comes from.

    @property
    def sources(self) -> dict[str, str]:
        return named(
            {
                "language model": self.path,
                "vision encoder": self.vision.source,
                "projector": self.projector_weights,
            }
        )

    def check_sources(self) -> None:
        super().check_sources()
        check_libraries(self.bits)

    @property
    def packed_bits(self) -> Bits | None:
        return self.bits

    def unpacked(self) -> Causal:
        return replace(self, bits=None)

    # Pictures and text.

    @property
    def most_images(self) -> tuple[int, str]:
        return self.num_images, "model.num_images"

    def check_length(self, task: str, longest: Longest) -> None:
        config = self.read_config()
        most = num_positions(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config)
        if most is None:
            return
        chat = self.chat_format(self.load_processor())
        tokens = {
            "pictures": longest.pictures * (self.grid or self.vision.geometry.grid_size) ** 2,
            "around the prompt": chat.num_around(longest.turns),
            "prompt": longest.prompt,
            "answer": longest.answer,
        }
        check_fits(task, tokens, most, "model.grid", "model.num_images")

    def collator(self, processor: Any, dtype: torch.dtype = torch.float32) -> CausalCollator:
        return CausalCollator(self.chat_format(processor), features=self.image is None)

    def chat_format(self, tokenizer: Any) -> ChatFormat:
        """How the tokenizer writes prompts and answers.

        Errors: ValueError that names the field with the tokenizer.
        """
        try:
            return ChatFormat.of(tokenizer)
        except ValueError as error:
            raise ValueError(f"{self.processor_place[1]}: {error}") from error

    # The model.

    def build(self, dtype: torch.dtype, processor: Any) -> CausalModel:
        """Errors: ValueError if the parts do not fit each other."""
        geometry = self.vision.geometry
        if self.grid is not None and self.grid > geometry.grid_size:
            raise ValueError(
                f"model.grid: {self.grid} is more than the encoder's {geometry.grid_size} x "
                f"{geometry.grid_size} cells; give at most {geometry.grid_size}"
            )
        config = self.read_config()
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        backbone, names = load_backbone(model_class, config, self.path, dtype, self.bits)
        table = backbone.get_input_embeddings()
        self.check_vocabulary(processor, table.num_embeddings, "language model")
        vision = self.build_vision(dtype)
        grid = self.grid or geometry.grid_size
        connector = Projector(geometry.feature_dim, table.embedding_dim, grid)
        load_file(connector, self.projector_weights)
        model = CausalModel(
            vision, connector.to(dtype), backbone, encoder=self.vision, tokenizer=processor
        )
        parts = {"vision": self.vision.source, "connector": self.projector_weights}
        model.note_sources(names, parts)
        return model

    def check_built(
        self, model: Model, evaluation: Callable[[], AbstractContextManager[Model]]
    ) -> Sequence[str]:
        """Let the model read a question behind an empty picture, and answer with a token."""
        assert isinstance(model, CausalModel)
        if model.chat is None:
            return ()
        kind = model.backbone.config.model_type
        try_questions(
            [None],
            CausalCollator(model.chat, self.image is None),
            evaluation,
            f"{self.config_place[1]}: {kind} cannot answer a question behind a picture",
            "name another language model",
        )
        return ()

    def read_config(self) -> Any:
        """The language model's config.

        Errors: ValueError if it is not one of a causal language model.
        """
        source, field = self.config_place
        config = read_any_config(source, field)
        kind = config.model_type
        # Configs of models that read more than text hold the text model's config inside.
        is_text = config.get_text_config() is config and not config.is_encoder_decoder
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not is_text:
            raise ValueError(
                f"{field}: {source} is a {kind} model, not a causal language model; name one of "
                "those that AutoModelForCausalLM opens and that reads text only"
            )
        # Encoders have such a class too, for those who make decoders of them.
        made = getsource(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__init__)
        if "not config.is_decoder" in made and not getattr(config, "is_decoder", False):
            raise ValueError(
                f"{field}: {source} is a {kind} model, an encoder: it would read an answer before "
                "it writes it; name a model that writes from left to right"
            )
        check_config(config, f"{field}: {source}", SIZES)
        return config

    def trained_parts(self, model: Model) -> Iterator[tuple[str, Iterable[nn.Parameter]]]:
        assert isinstance(model, CausalModel)
        if self.train_projector:
            yield "connector", model.connector.parameters()

    @property
    def trained_text(self) -> list[str]:
        return ["projector"] if self.train_projector else []

    def library(self, model: Model) -> LibraryModel:
        assert isinstance(model, CausalModel)
        config, state = self.read_config(), own_state(model.backbone)
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        theirs = opened(model_class, self.path, "model.path", config, state)
        return LibraryModel(theirs, model, self.load_processor(), model.chat)

    def export(self, model: Model, folder: Path) -> Causal:
        """The language model and the tokenizer under Hugging Face's names, and a file for each
        other part."""
        assert isinstance(model, CausalModel)
        check_writable_whole(self.bits)
        model.save_backbone(folder)
        return replace(
            self,
            path=str(folder),
            config=None,
            tokenizer=None,
            vision=self.vision.export(model.vision, folder),
            projector_weights=save_module(model.connector, folder / "projector.safetensors"),
            train_projector=False,
        )

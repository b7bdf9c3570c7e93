"""A causal language model that sees: vision encoder -> projector -> visual tokens before the text.

Shapes: b rows, u distinct images, n images per row, v visual tokens per image, l prompt tokens (and
those of the answer), s tokens of the whole sequence, w words of the vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vlds.kernels.dropout import pictures_follow
from vlds.methods.batch_loss import Predicted
from vlds.methods.context import Visual
from vlds.methods.extended import run_beside
from vlds.methods.host import CROSS_ATTENTION
from vlds.models.chat_format import ChatFormat
from vlds.models.generation.answer_positions import output_width, pick_positions, picking
from vlds.models.generation.shared_starts import Lines, can_share_starts, share_starts
from vlds.models.generation.written_answers import Writer
from vlds.models.model import Part
from vlds.models.projector import Projector, packing, tokens_of_rows
from vlds.models.roles import find_roles
from vlds.models.token_nll import targets_of
from vlds.models.writing_model import WritingModel
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch
from vlds.vision.base import GridEncoder, VisionEncoder

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
    """(b, s, d)."""
    mask: Tensor
    """(b, s) bool, False on padding."""
    labelled: Tensor
    """(b, s) bool, True for tokens of the answer."""
    tokens: Tensor
    """(b, s) int64 numbers of the text's tokens; NO_TEXT elsewhere."""

    @property
    def before_labels(self) -> Tensor:
        """(b, s) bool, True for the positions that predict the answer's tokens."""
        return F.pad(self.labelled[:, 1:], (0, 1))


class CausalModel(WritingModel):
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
        keys = torch.cat([batch.task_index[:, None], batch.image_index], 1)
        groups = keys.unique(dim=0, return_inverse=True)[1]
        return torch.zeros_like(lengths).index_add(0, groups, lengths)[groups][:, None]

    # Training.

    def predicted(self, batch: Batch) -> Predicted:
        labels = targets_of(batch)
        split = self.heads.split(batch, labels)
        sequences = self.sequences(batch, self.visual_tokens(batch), split.is_label)
        is_token = split.is_token[split.is_label] if self.heads else None
        logits, states = self.read_at(batch, sequences, sequences.before_labels, is_token)
        return Predicted(logits, labels, self.heads.predicted(states, split.rows, batch))

    def logits(self, batch: Batch) -> Tensor:
        """(b, l, w) for each token of the answer, given those before it; 0 elsewhere."""
        logits, real = self.answer_logits(batch, self.visual_tokens(batch))
        dense = logits.new_zeros(*real.shape, logits.shape[-1])
        return dense.masked_scatter(real[..., None], logits)

    def answer_logits(self, batch: Batch, visual: Tensor) -> tuple[Tensor, Tensor]:
        """(k, w) for the k tokens of all answers, row by row; where they are (b, l)."""
        real = targets_of(batch) != IGNORED_LABEL
        sequences = self.sequences(batch, visual, real)
        return self.logits_at(batch, sequences, sequences.before_labels), real

    def logits_at(self, batch: Batch, sequences: Sequences, picked: Tensor) -> Tensor:
        """(k, w) at the k positions (b, s) that are True, row by row."""
        return self.read_at(batch, sequences, picked, None)[0]

    def read_at(
        self, batch: Batch, sequences: Sequences, picked: Tensor, is_token: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(n, w) logits at the picked positions that `is_token` (k,) says, without it at all, and
        states (m, d) at the others: both row by row."""
        lines = self.lines_of(batch, sequences, picked) if self.shares_starts else None
        if lines is not None:
            return self.read_lines(sequences, lines, is_token)
        with picking(self.answer_positions, picked, is_token) as read:
            logits: Tensor = self.backbone(
                inputs_embeds=sequences.embeds,
                attention_mask=sequences.mask.long(),
                use_cache=False,
            ).logits
        return logits, read.states

    def lines_of(self, batch: Batch, sequences: Sequences, picked: Tensor) -> Lines | None:
        """How rows share their first tokens, if they do."""
        if self.context.reads_examples:
            return None
        return share_starts(
            sequences.tokens.cpu(),
            sequences.mask.sum(1).cpu(),
            picked.cpu(),
            batch.task_index,
            batch.image_index.cpu(),
            sequences.embeds.shape[2],
        )

    def read_lines(
        self, sequences: Sequences, lines: Lines, is_token: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `read_at`, for rows that share their starts."""
        embeds, device = sequences.embeds, sequences.embeds.device
        self.context.routing.set(lines.tasks, device)
        mask = torch.zeros(lines.visible.shape, dtype=embeds.dtype, device=device)
        mask.masked_fill_(~lines.visible.to(device), torch.finfo(embeds.dtype).min)
        with picking(self.answer_positions, lines.picked, is_token) as read:
            logits: Tensor = self.backbone(
                inputs_embeds=embeds.flatten(0, 1)[lines.source.to(device)],
                attention_mask=mask,
                position_ids=lines.positions.to(device),
                use_cache=False,
            ).logits
        return logits, read.states

    # What the language model reads.

    def sequences(
        self, batch: Batch, visual: Tensor, real: Tensor | None = None, *, left: bool = False
    ) -> Sequences:
        """[prompts of methods][visual tokens][text] of each row without gaps, padded on the right
        or on the left. `real`: (b, l) the answer's tokens. Sets the batch's tasks."""
        device = batch.input_ids.device
        self.context.set_rows(batch.task_index, None, device)
        text = self.backbone.get_input_embeddings()(batch.input_ids)
        shown, shown_mask = tokens_of_rows(visual.to(text.dtype), batch.image_index)
        self.context.visual = Visual(shown, shown_mask)
        prompts = run_beside(self.backbone)
        embeds, masks = [shown, text], [shown_mask, batch.attention_mask.bool()]
        if prompts is not None:
            embeds.insert(0, prompts)
            masks.insert(0, masks[0].new_ones(prompts.shape[:2]))
        joined, mask = torch.cat(embeds, 1), torch.cat(masks, 1)
        length = batch.input_ids.shape[1]
        tokens = torch.full_like(mask, NO_TEXT, dtype=torch.long)
        tokens[:, -length:] = batch.input_ids
        labelled = torch.zeros_like(mask)
        if real is not None:
            labelled[:, -length:] = real
        # Gaps of absent images would move the positions behind them.
        places = packing(mask, left=left)
        joined = joined.gather(1, places[..., None].expand(-1, -1, joined.shape[2]))
        mask, labelled, tokens = (values.gather(1, places) for values in (mask, labelled, tokens))
        self.context.token_mask = mask
        return Sequences(joined, mask, labelled, tokens)

    def visual_tokens(self, batch: Batch) -> Tensor:
        """(u, v, d) visual tokens of the distinct images; of an empty image if there are none, so
        that encoder and projector run on every rank: under ZeRO-3 all ranks gather together."""
        if (pictures := batch.pictures) is not None and len(pictures) > 0:
            return self.projected(pictures)
        is_training = self.vision.training
        self.vision.eval()  # batch norm counts real pictures only
        tokens = self.projected(self.empty_image(batch.input_ids.device))
        self.vision.train(is_training)
        return tokens

    def projected(self, pictures: Tensor) -> Tensor:
        """(u, 3, h, w) uint8, or stored features (u, v', dim) -> (u, v, d)."""
        with torch.no_grad() if self.vision.frozen else pictures_follow(pictures):
            features = self.vision(pictures)
        tokens: Tensor = self.connector(features)
        return tokens

    def empty_image(self, device: torch.device) -> Tensor:
        """(1, ...) a black picture, or zeros for stored features."""
        geometry = self.encoder.geometry
        if (spec := geometry.image) is not None:
            return torch.zeros(1, 3, spec.height, spec.width, dtype=torch.uint8, device=device)
        return torch.zeros(1, geometry.grid_size**2, geometry.feature_dim, device=device)

    # Answers.

    @property
    def state_width(self) -> int:
        return output_width(self.backbone)

    def first_logits(self, batch: Batch) -> Tensor:
        return self.read_first(batch, logits=True)[0]

    def first_states(self, batch: Batch) -> Tensor:
        return self.read_first(batch.prompts(), logits=False)[1]

    def read_first(self, batch: Batch, *, logits: bool) -> tuple[Tensor, Tensor]:
        """Logits (b, w) of the token that an answer begins with, and no states; or no logits, and
        the states (b, d) that predict it."""
        sequences = self.sequences(batch, self.visual_tokens(batch))
        last = sequences.mask.sum(1) - 1
        positions = torch.zeros_like(sequences.mask).scatter(1, last[:, None], True)
        nowhere = torch.zeros(len(batch), dtype=torch.bool, device=positions.device)
        return self.read_at(batch, sequences, positions, None if logits else nowhere)

    @property
    def writer(self) -> Writer:
        assert self.chat is not None
        return Writer(self.backbone, tuple(self.chat.end_ids), self.chat.pad_id)

    def prompts(self, batch: Batch) -> dict[str, Tensor]:
        sequences = self.sequences(batch, self.visual_tokens(batch), left=True)
        return {"inputs_embeds": sequences.embeds, "attention_mask": sequences.mask.long()}

"""JointSeq2Seq: VL-T5 and VL-BART. Vision encoder -> visual embedding -> backbone's joint encoder
of text and visual tokens -> decoder.

Shapes: b examples, u distinct images, n images per example, p prompts of methods, l prompt tokens,
v visual tokens, t target tokens, w words of the vocabulary, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from vlds.models.backbones.attention import beams_share_states
from vlds.models.backbones.base import Backbone
from vlds.models.backbones.t5 import T5
from vlds.models.collate import JointCollator
from vlds.models.generation.answer_list import Answer, WrittenAnswer
from vlds.models.generation.decoding import (
    CachedDecoder,
    CachedStack,
    Written,
    answers,
    best_choice,
    generate_ids,
    token_means,
)
from vlds.models.kernels.dropout import decoder_follows, visual_tokens_end
from vlds.models.kinds.base import EmbeddingKind, grid_features, named
from vlds.models.kinds.library import LibraryModel, own_state
from vlds.models.loading.drawn_weights import draw_rows
from vlds.models.loading.load_backbone import Longest, check_fits, num_positions
from vlds.models.loading.model_files import save_module
from vlds.models.loss import targets_of
from vlds.models.methods.context import Predicted, Visual
from vlds.models.methods.host import run_beside, side_path
from vlds.models.model import BACKBONE_PREFIX, Model, Part
from vlds.models.peers import opened
from vlds.models.vision.base import GridEncoder, VisionEncoder, load_weights
from vlds.models.visual_embedding import VisualEmbedding, VisualEmbeddingConfig
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Decoding


class JointModel(Model):
    """VL-T5 and VL-BART, methods attached: text and visual tokens go through one encoder.

    A method may put a side path (LST) beside the backbone. Then the backbone reads the text alone,
    without gradients, and the side's stacks, which read its states, give the answer.
    """

    def __init__(
        self,
        vision: GridEncoder,
        visual_embedding: VisualEmbedding,
        backbone: Any,
        *,
        encoder: VisionEncoder,
        family: Backbone,
        tokenizer: Any = None,
    ) -> None:
        """`encoder` and `family`: the recipe's choices that `vision` and `backbone` come from."""
        super().__init__(tokenizer)
        self.vision = vision
        self.visual_embedding = visual_embedding
        self.backbone = backbone
        self.family = family
        self.parts = {
            "backbone": Part("backbone", family.target_modules, family.optimizer_rules),
            "vision": Part("vision", encoder.target_modules),
        }

    def generation_defaults(self) -> GenerationConfig:
        config = self.backbone.config
        return GenerationConfig(
            decoder_start_token_id=config.decoder_start_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )

    def use_methods(self) -> None:
        """Errors: ValueError if something trains that gradients do not reach."""
        super().use_methods()
        if (side := side_path(self.backbone)) is None:
            return
        reached = {id(parameter) for parameter in side.parameters()}
        for name, method in self.trained_by.items():
            if name.startswith(BACKBONE_PREFIX) and id(self.get_parameter(name)) not in reached:
                raise ValueError(
                    f"{'model.train_norms' if method == 'norms' else f'methods.{method}'}: trains "
                    f"{name}, and gradients do not run through a backbone that has a "
                    f"{type(side).__name__.lower()} beside it; remove one of them"
                )

    def sizes(self, batch: Batch) -> Tensor:
        """(b, 3) visual tokens, target tokens and prompt tokens."""
        assert batch.labels is not None
        images = (batch.image_index != NO_IMAGE).sum(1)
        targets = (batch.labels != IGNORED_LABEL).sum(1)
        visual = images * self.visual_embedding.num_tokens
        return torch.stack([visual, targets, batch.attention_mask.sum(1)], 1)

    # Training.

    def predicted(self, batch: Batch) -> Predicted:
        split = self.heads.split(batch, targets_of(batch.on_host))
        states = self.target_states(batch)
        # Logits over the vocabulary are the largest tensor of a step, so padding has none.
        logits = self.vocabulary_logits(states[split.tokens])
        classes = self.heads.predicted(states[split.classes], split, batch)
        return Predicted(logits, targets_of(batch), split.tokens, classes)

    def logits(self, batch: Batch) -> Tensor:
        return self.vocabulary_logits(self.target_states(batch))

    def target_states(self, batch: Batch) -> Tensor:
        """(b, t, d) states that predict each target token."""
        labels = targets_of(batch)
        states, mask = self.encode(batch)
        return self.decode(states, mask, self.decoder_inputs(labels))

    def decoder_inputs(self, labels: Tensor) -> Tensor:
        """(b, t) what the decoder reads before each label; what stands before every answer (BART's
        <s>) also where it is not a label, as in examples with classes."""
        input_ids: Tensor = self.backbone.prepare_decoder_input_ids_from_labels(labels)
        # Entry 0 of the prefix is the start token, which is never a label. Column c of the inputs
        # is label c - 1: labels shifted to the right by one.
        for column, token in enumerate(self.family.choice_prefix(self.backbone)[1:], 1):
            hidden = labels[:, column - 1 : column] == IGNORED_LABEL
            input_ids[:, column : column + 1].masked_fill_(hidden, token)
        return input_ids

    def decode(self, states: Tensor, mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """(b, t, d) states after each decoder input token."""
        if (side := side_path(self.backbone)) is None:
            return run_decoder(self.backbone, states, mask, decoder_input_ids)
        read, text_mask = side.read.value
        # The backbone's decoder runs for its rungs alone: its layers note what they give.
        with torch.no_grad():
            run_decoder(self.backbone, read, text_mask, decoder_input_ids)
        return side.leave(run_decoder(side.stacks, states, mask, decoder_input_ids))

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """(..., d) decoder states -> (..., w)."""
        return self.family.vocabulary_logits(self.backbone, states)

    # The encoder side.

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Joint encoder states (b, p + l + n*v, d) and their mask, with p prompts of methods. With
        a side path, its encoder's."""
        self.context.set_rows(batch.task_index, None, batch.input_ids.device)
        visual, visual_mask = self.visual_tokens(batch)
        self.context.visual = Visual(visual, visual_mask)
        prompts, text_mask = run_beside(self.backbone), batch.attention_mask.bool()
        masks = [text_mask, visual_mask]
        if prompts is not None:  # they stand before the text, visual tokens behind it
            masks.insert(0, visual_mask.new_ones(prompts.shape[:2]))
        # Visual tokens come last, as `visual_tokens_end` below tells dropout.
        mask = self.context.token_mask = torch.cat(masks, 1)
        encode, stacks = self.family.encode, self.backbone
        if (side := side_path(stacks)) is not None:
            # LST's backbone sees no picture.
            visual_tokens_end(text_mask.shape[1], 0)
            with torch.no_grad():
                read = encode(stacks, batch.input_ids, visual[:, :0], text_mask, None)
            side.read.value, stacks = (read, text_mask), side.stacks
        visual_tokens_end(mask.shape[1], visual.shape[1])
        return encode(stacks, batch.input_ids, visual, mask, prompts), mask

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, n*v, d) visual tokens and their mask; each distinct image is encoded once."""
        if (pictures := batch.pictures) is None:
            raise ValueError(
                "images: this batch has neither pictures nor stored features; use data sets with "
                "pictures, or vision: StoredFeatures with shards that hold features"
            )
        features = grid_features(self.vision, pictures)
        boxes = self.vision.boxes(pictures) if batch.boxes is None else batch.boxes
        table = self.backbone.get_input_embeddings()
        tokens: tuple[Tensor, Tensor] = self.visual_embedding(
            features, boxes, batch.image_index, table
        )
        return tokens

    # Answers.

    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        return self.generate(batch, decoding)[1]

    @property
    def state_width(self) -> int:
        return int(self.backbone.config.d_model)

    def first_states(self, batch: Batch) -> Tensor:
        return self.after_prefix(*self.encode(batch))

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> tuple[list[list[int]], list[Answer]]:
        """Token ids of each example's answer, without start token and </s>; the answers."""
        states, mask = self.encode(batch)
        means: Sequence[float | None] = [None] * len(batch)
        if decoding.choices is not None:
            # One pass of the decoder: choices differ in their first token.
            choices = self.choice_ids(decoding.choices)
            logits = self.vocabulary_logits(self.after_prefix(states, mask))
            chosen, confidences = best_choice(logits, choices)
            ids = [choices[index] for index in chosen]
            texts = [decoding.choices[index] for index in chosen]
            log_probabilities = confidences.log()
        else:
            written = self.written(batch, states, mask, decoding)
            log_probabilities = written.log_probabilities
            end = self.backbone.config.eos_token_id
            ids = answers(written.ids, end)
            # The list's own texts: decoding their tokens may change blanks.
            if (listed := self.answer_list(decoding)) is not None:
                texts = [listed.texts[*tokens, end] for tokens in ids]
            else:
                texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                texts = [text.strip() for text in texts]
                num_before = len(self.family.choice_prefix(self.backbone)) - 1
                means = token_means(written, num_before, end)
        rows = zip(texts, log_probabilities.tolist(), means, strict=True)
        return ids, [Answer(text, math.exp(total), mean) for text, total, mean in rows]

    @torch.no_grad()
    def write_tokens(self, batch: Batch, decoding: Decoding) -> list[WrittenAnswer]:
        written = self.written(batch, *self.encode(batch), decoding)
        end, limit = self.backbone.config.eos_token_id, written.ids.shape[1] - 1
        return [
            # An answer of the whole length has no </s>.
            WrittenAnswer([*words, end][:limit], words, total)
            for words, total in zip(
                answers(written.ids, end), written.log_probabilities.tolist(), strict=True
            )
        ]

    def written(self, batch: Batch, states: Tensor, mask: Tensor, decoding: Decoding) -> Written:
        """What the decoder writes from encoder states."""
        side = side_path(self.backbone)
        # Each decoder with the encoder states that its cross-attention reads. The backbone's comes
        # first in a step, since the side's rungs read what its layers give.
        sources = [(self.backbone, states, mask)]
        if side is not None:
            sources = [(self.backbone, *side.read.take()), (side.stacks, states, mask)]
        decoder = CachedDecoder(
            self.backbone.config,
            [CachedStack(model.get_decoder(), *read) for model, *read in sources],
            lambda states: self.vocabulary_logits(side.leave(states) if side else states),
            batch.task_index,
            self.context,
        )
        with beams_share_states([model for model, *_ in sources], decoding.num_beams):
            return generate_ids(
                decoder,
                decoding,
                self.answer_list(decoding),
                beam_forces_eos=self.family.beam_forces_eos,
            )

    def after_prefix(self, states: Tensor, mask: Tensor) -> Tensor:
        """(b, d) decoder states from which the first real token of an answer is predicted: BART
        writes <s> before it."""
        prefix = torch.tensor(self.family.choice_prefix(self.backbone))
        prefix = prefix.to(states.device, non_blocking=True)
        return self.decode(states, mask, prefix.expand(len(states), -1))[:, -1]


def run_decoder(model: Any, states: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
    """(b, t, d) states of a model's decoder after each input token."""
    decoder_follows(input_ids.shape[1])
    output = model.get_decoder()(
        input_ids=input_ids,
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        use_cache=False,
    )
    decoded: Tensor = output.last_hidden_state
    return decoded


@dataclass(frozen=True, kw_only=True)
class JointSeq2Seq(EmbeddingKind):
    """An encoder-decoder whose encoder reads text and visual tokens together: VL-T5, VL-BART."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    own_backbone: ClassVar[bool] = True

    backbone: Backbone
    """The language model: a class of vlds.models.backbones."""
    visual_embedding: VisualEmbeddingConfig = field(default_factory=VisualEmbeddingConfig)
    """Turns grid features into visual tokens."""

    @property
    def sources(self) -> dict[str, str]:
        return named(
            {
                "backbone": self.backbone.path,
                "vision encoder": self.vision.source,
                "visual embedding": self.visual_embedding.weights,
            }
        )

    @property
    def processor_place(self) -> tuple[str | None, str]:
        backbone = self.backbone
        return backbone.tokenizer or backbone.path, "model.backbone.tokenizer"

    def check_sources(self) -> None:
        self.backbone.check_sources()
        self.vision.check_sources()

    @property
    def fewest_images(self) -> int:
        return 1

    @property
    def most_images(self) -> tuple[int, str]:
        return self.visual_embedding.num_images, "model.visual_embedding.num_images"

    def check_length(self, task: str, longest: Longest) -> None:
        """Visual tokens have no positions here, and answers are the decoder's."""
        family = self.backbone
        most = num_positions(family.model_class, family.read_config())
        if most is not None:
            for tokens in ({"prompt": longest.prompt}, {"answer": longest.answer}):
                check_fits(task, tokens, most)

    def load_processor(self) -> Any:
        return self.backbone.load_tokenizer()

    def load_processor_from(self, folder: str | Path) -> Any:
        return self.backbone.load_tokenizer_from(Path(folder))

    def collator(self, processor: Any, dtype: torch.dtype = torch.float32) -> JointCollator:
        return JointCollator(processor, features=self.image is None)

    def build(self, dtype: torch.dtype, processor: Any) -> JointModel:
        """Errors: ValueError if an image has more visual tokens than the vocabulary, or if features
        cannot be pooled as the recipe says."""
        family = self.backbone
        size = len(processor) if processor is not None else family.vocabulary_size()
        loaded = family.load(size, dtype)
        vision = self.build_vision(dtype)
        # The bridge, initialised as the backbone's family does, or from its file.
        geometry, config = self.vision.geometry, self.visual_embedding
        if geometry.box_channels and config.grid not in (None, geometry.grid_size):
            raise ValueError(
                f"model.visual_embedding.grid: got {config.grid}, but features with their own "
                "boxes are not pooled; leave it out"
            )
        embedding = VisualEmbedding(
            config,
            geometry.feature_dim,
            loaded.model.config.d_model,
            geometry.grid_size,
            partial(family.visual_norm, bias=config.norm_biases),
        )
        embedding.init_weights(family.linear_init_std)
        load_weights(embedding, config.weights)
        if embedding.num_tokens > family.visual_tokens:
            raise ValueError(
                f"model.backbone.visual_tokens: {family.visual_tokens}, but an image has "
                f"{embedding.num_tokens} visual tokens; give the vocabulary at least as many"
            )
        model = JointModel(
            vision,
            embedding.to(dtype),
            loaded.model,
            encoder=self.vision,
            family=family,
            tokenizer=processor,
        )
        parts = {"vision": self.vision.source, "visual_embedding": config.weights}
        model.note_sources(loaded.source_names, parts)
        # The token table has more rows than its source, which are drawn.
        rows = {BACKBONE_PREFIX + name: rows for name, rows in loaded.source_rows.items()}
        model.sources = replace(model.sources, rows=rows)
        return model

    def draw_rows(self, model: Model, seed: int) -> None:
        # New rows of the token table; a separate head is drawn like other weights.
        assert isinstance(model, JointModel)
        table = model.backbone.get_input_embeddings().weight
        rows = {
            name: rows
            for name, rows in model.sources.rows.items()
            if model.get_parameter(name) is table
        }
        draw_rows(model, rows, self.backbone.new_row_std, seed)

    def visual_parts(self, model: Model) -> tuple[GridEncoder, VisualEmbedding]:
        assert isinstance(model, JointModel)
        if self.backbone.path is not None or self.vision.source is not None:
            raise ValueError(
                f"alignment: model.backbone.path is {self.backbone.path}, the vision encoder's "
                f"weights {self.vision.source}; alignment is for models with random weights: leave "
                "it out"
            )
        return model.vision, model.visual_embedding

    def encoder_decoder(self) -> Any:
        return self.backbone.load(len(self.backbone.load_tokenizer()), torch.float32).model

    def library(self, model: Model) -> LibraryModel:
        assert isinstance(model, JointModel)
        family, state = self.backbone, own_state(model.backbone)
        config, size = family.read_config(), len(model.backbone.get_input_embeddings().weight)
        if family.path is None:
            config.vocab_size = size
        theirs = opened(family.model_class, family.path, "model.backbone.path", config, state)
        # The library's own way to more words, whose rows no file has.
        begin = len(theirs.get_input_embeddings().weight)
        theirs.resize_token_embeddings(size, mean_resizing=False)
        for name, tensor in theirs.state_dict().items():
            if len(tensor.shape) and tensor.shape[0] == size and size > begin:
                tensor[begin:] = state[name][begin:]
        return LibraryModel(theirs, model, self.load_processor())

    def refusal(self, layout: str) -> str | None:
        if (
            layout == "reference"
            and self.visual_embedding.norm_biases
            and isinstance(self.backbone, T5)
        ):
            return (
                "model.visual_embedding.norm_biases: the original code's T5 norms have no bias; "
                "`vlds convert hf` keeps them"
            )
        return None

    def export(self, model: Model, folder: Path) -> JointSeq2Seq:
        """The backbone and the tokenizer under Hugging Face's names, and a file for each other
        part."""
        assert isinstance(model, JointModel)
        model.save_backbone(folder)
        weights = save_module(model.visual_embedding, folder / "visual_embedding.safetensors")
        return replace(
            self,
            backbone=self.backbone.saved_in(folder),
            vision=self.vision.export(model.vision, folder),
            visual_embedding=replace(self.visual_embedding, weights=weights),
            train_norms=False,
            train_visual_embedding=False,
        )

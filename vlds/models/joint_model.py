"""The model: vision encoder -> visual embedding -> backbone's joint encoder -> decoder, methods
attached.

Shapes: b examples, u distinct images, n images per example, l prompt tokens, v visual tokens, t
target tokens, w words of the vocabulary, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vlds.backbones.attention import beams_share_states, use_extensions
from vlds.backbones.base import Backbone
from vlds.kernels.dropout import decoder_follows, pictures_follow, visual_tokens_end
from vlds.methods.extended import run_beside
from vlds.models.cached_decoder import CachedDecoder
from vlds.models.generation import answers, best_choice, generate_ids, token_means
from vlds.models.hypotheses import Written
from vlds.models.model import Answer, Model, Part
from vlds.models.token_nll import nll_at, targets_of
from vlds.models.visual_embedding import VisualEmbedding
from vlds.schema import IGNORED_LABEL, NO_IMAGE, Batch, Decoding
from vlds.vision.base import GridEncoder, VisionEncoder


class JointModel(Model):
    """VL-T5 and VL-BART: text and visual tokens go through one encoder."""

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
        use_extensions(self.backbone)

    def moving_buffers(self) -> list[tuple[str, Tensor]]:
        """Also those of a vision encoder that is not frozen."""
        vision = [] if self.vision.frozen else self.vision.named_buffers()
        return [*super().moving_buffers(), *((f"vision.{n}", b) for n, b in vision)]

    def sizes(self, batch: Batch) -> Tensor:
        """(b, 3) visual tokens, target tokens and prompt tokens."""
        assert batch.labels is not None
        images = (batch.image_index != NO_IMAGE).sum(1)
        targets = (batch.labels != IGNORED_LABEL).sum(1)
        visual = images * self.visual_embedding.num_tokens
        return torch.stack([visual, targets, batch.attention_mask.sum(1)], 1)

    # Training.

    def token_nll(self, batch: Batch) -> Tensor:
        """(b, t) negative log-likelihood of each target token, 0 on padding, in at least
        float32."""
        labels = targets_of(batch)
        # Logits over the vocabulary are the largest tensor of a step, so padding has none.
        real = labels != IGNORED_LABEL
        logits = self.vocabulary_logits(self.target_states(batch)[real])
        return nll_at(logits, labels, real)

    def logits(self, batch: Batch) -> Tensor:
        """(b, t, w) for each target token, given those before it."""
        return self.vocabulary_logits(self.target_states(batch))

    def target_states(self, batch: Batch) -> Tensor:
        """(b, t, d) decoder states that predict each target token."""
        assert batch.labels is not None
        states, mask = self.encode(batch)
        return self.decode(
            states, mask, self.backbone.prepare_decoder_input_ids_from_labels(batch.labels)
        )

    def decode(self, states: Tensor, mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """(b, t, d) decoder states after each decoder input token."""
        decoder_follows(decoder_input_ids.shape[1])
        output = self.backbone.get_decoder()(
            input_ids=decoder_input_ids,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            use_cache=False,
        )
        decoded: Tensor = output.last_hidden_state
        return decoded

    def vocabulary_logits(self, states: Tensor) -> Tensor:
        """(..., d) decoder states -> (..., w)."""
        return self.family.vocabulary_logits(self.backbone, states)

    # The encoder side.

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Joint encoder states (b, p + l + n*v, d) and their mask, with p prompts of methods."""
        self.routing.set(batch.task_index, batch.input_ids.device)
        prompts = self.method_prompts()
        visual, visual_mask = self.visual_tokens(batch)
        mask = batch.attention_mask.bool()
        before = 0 if prompts is None else prompts.shape[1]
        visual_tokens_end(before + mask.shape[1] + visual.shape[1], visual.shape[1])
        return self.family.encode(
            self.backbone, batch.input_ids, mask, visual, visual_mask, prompts
        )

    def method_prompts(self) -> Tensor | None:
        """Run what methods have put beside the backbone: (b, p, d) what precedes the text."""
        return run_beside(self.backbone)

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, n*v, d) visual tokens and their mask; each distinct image is encoded once."""
        if (pictures := batch.pictures) is None:
            raise ValueError(
                "images: this batch has neither pictures nor stored features; use data sets with "
                "pictures, or vision: StoredFeatures with shards that hold features"
            )
        features = self.grid_features(pictures)
        table = self.backbone.get_input_embeddings()
        tokens: tuple[Tensor, Tensor] = self.visual_embedding(
            features, batch.boxes, batch.image_index, table
        )
        return tokens

    def grid_features(self, pictures: Tensor) -> Tensor:
        """(u, 3, h, w) uint8, or stored features (u, v', dim) -> (u, v', dim)."""
        with torch.no_grad() if self.vision.frozen else pictures_follow(pictures):
            features: Tensor = self.vision(pictures)
        return features

    # Answers.

    def answer(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        """Each example's answer."""
        return self.generate(batch, decoding)[1]

    @torch.no_grad()
    def generate(self, batch: Batch, decoding: Decoding) -> tuple[list[list[int]], list[Answer]]:
        """Token ids of each example's answer, without start token and </s>; the answers."""
        states, mask = self.encode(batch)
        means: Sequence[float | None] = [None] * len(batch)
        if decoding.choices is not None:
            choices = self.choice_ids(decoding.choices)
            chosen, confidences = best_choice(self.choice_logits(states, mask), choices)
            ids = [choices[index] for index in chosen]
            texts = [decoding.choices[index] for index in chosen]
            log_probabilities = confidences.log()
        else:
            written = self.written(batch, states, mask, decoding)
            log_probabilities = written.log_probabilities
            end = self.backbone.config.eos_token_id
            ids = answers(written.ids, end)
            if (listed := self.answer_list(decoding)) is not None:
                texts = [listed.texts[*tokens, end] for tokens in ids]
            else:
                texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                texts = [text.strip() for text in texts]
                num_before = len(self.family.choice_prefix(self.backbone)) - 1
                means = token_means(written, num_before, end)
        rows = zip(texts, log_probabilities.tolist(), means, strict=True)
        return ids, [Answer(text, math.exp(total), mean) for text, total, mean in rows]

    def written(self, batch: Batch, states: Tensor, mask: Tensor, decoding: Decoding) -> Written:
        """What the decoder writes from encoder states."""
        decoder = CachedDecoder(
            self.backbone, self.vocabulary_logits, states, mask, batch.task_index, self.routing
        )
        with beams_share_states(self.backbone, decoding.num_beams):
            return generate_ids(
                decoder,
                decoding,
                self.answer_list(decoding),
                beam_forces_eos=self.family.beam_forces_eos,
            )

    def choice_logits(self, states: Tensor, mask: Tensor) -> Tensor:
        """(b, w) logits of the first real token of an answer."""
        prefix = torch.tensor(self.family.choice_prefix(self.backbone), device=states.device)
        decoded = self.decode(states, mask, prefix.expand(len(states), -1))
        return self.vocabulary_logits(decoded[:, -1])

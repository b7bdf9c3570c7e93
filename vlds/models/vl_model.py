"""The model: vision encoder -> visual embedding -> backbone's joint encoder -> decoder, methods
attached.

Shapes: b examples, u distinct images, n images per example, l prompt tokens, v visual tokens, t
target tokens, w words of the vocabulary, d width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.backbones.attention import beams_share_states
from vlds.backbones.base import Backbone, unique_state
from vlds.methods.extended import is_own
from vlds.methods.routing import TaskRouting
from vlds.models.answer_list import AnswerList, read_answers
from vlds.models.cached_decoder import CachedDecoder
from vlds.models.counts import Counts
from vlds.models.generation import answers, best_choice, generate_ids, token_means
from vlds.models.hypotheses import Written
from vlds.models.visual_embedding import VisualEmbedding
from vlds.schema import IGNORED_LABEL, Batch, Decoding
from vlds.vision.base import GridEncoder


class ModelOutput(NamedTuple):
    """One forward pass. A tuple, in which ZeRO-3's hooks find the tensors."""

    loss: Tensor
    """Sum over examples of coefficient x summed token nll, in float32."""
    token_nll_sum: Tensor
    """(b,) summed token nll of each example, detached."""


class Answer(NamedTuple):
    """A model's answer, and how sure it is."""

    text: str
    confidence: float
    """The model's probability of the whole answer; with `choices`, its share among them."""
    token_confidence: float | None
    """The geometric mean over the tokens of a free text, </s> included. None for a text of one
    token, where `confidence` says as much, and for restricted answers."""


@dataclass(frozen=True)
class Sources:
    """Which tensors of a model are, bit for bit, those of the files or hub names that its recipe
    names."""

    names: frozenset[str] = frozenset()
    """Whole tensors."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Tables whose first rows are: name -> number of rows. The others are new."""


class VLModel(nn.Module):
    """A vision-and-language model; `build_model` makes it."""

    def __init__(
        self,
        vision: GridEncoder,
        visual_embedding: VisualEmbedding,
        backbone: Any,
        *,
        family: Backbone,
        routing: TaskRouting,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.visual_embedding = visual_embedding
        self.backbone = backbone
        self.family = family
        self.routing = routing
        self.tokenizer = tokenizer
        self.trained_by: dict[str, str] = {}
        """Trainable parameter -> method that trains it, or "norms", or "visual_embedding"."""
        self.sources = Sources()
        self.answer_lists: dict[Any, AnswerList] = {}

    # Training.

    def forward(
        self, batch: Batch, coefficients: Tensor, parts: Sequence[Tensor] = ()
    ) -> ModelOutput:
        """The loss: each example's summed token nll times its coefficient (b,).

        `parts`: sets of rows that are computed one after another, each padded to its own longest;
        without them all rows are computed at once.
        """
        if parts:
            pieces = [self.token_nll(batch.select(rows)).sum(1) for rows in parts]
            sums = torch.cat(pieces)[torch.cat(list(parts)).argsort().to(coefficients.device)]
        else:
            sums = self.token_nll(batch).sum(1)
        loss = (coefficients.to(sums) * sums).sum()
        return ModelOutput(loss, sums.detach())

    def token_nll(self, batch: Batch) -> Tensor:
        """(b, t) negative log-likelihood of each target token, 0 on padding, in at least
        float32."""
        if batch.labels is None:
            raise ValueError("labels: this batch has no targets; train on a split that has answers")
        # Logits over the vocabulary are the largest tensor of a step, so padding has none.
        real = batch.labels != IGNORED_LABEL
        logits = self.vocabulary_logits(self.target_states(batch)[real])
        precise = torch.promote_types(logits.dtype, torch.float32)
        nll = F.cross_entropy(logits.to(precise), batch.labels[real], reduction="none")
        return nll.new_zeros(real.shape).masked_scatter(real, nll)

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
        return self.family.encode(
            self.backbone, batch.input_ids, mask, visual, visual_mask, prompts
        )

    def method_prompts(self) -> Tensor | None:
        """Run what methods have put beside the backbone: (b, p, d) what precedes the text."""
        extensions = list(getattr(self.backbone, "extensions", {}).values())
        extensions.sort(key=lambda extension: extension.runs_layers)
        outputs = [extension() for extension in extensions]
        prompts = [prompt for prompt in outputs if prompt is not None]
        return torch.cat(prompts, dim=1) if prompts else None

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(b, n*v, d) visual tokens and their mask; each distinct image is encoded once."""
        pictures = batch.images if batch.images is not None else batch.features
        if pictures is None:
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
        with torch.no_grad() if self.vision.frozen else nullcontext():
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

    def answer_list(self, decoding: Decoding) -> AnswerList | None:
        """The list that answers come from, kept for the next batch; None where they are free.

        Errors: ValueError if the list cannot be read.
        """
        if decoding.answers is None:
            return None
        if (listed := self.answer_lists.get(decoding.answers)) is None:
            listed = AnswerList(read_answers(decoding.answers), self.tokenizer)
            self.answer_lists[decoding.answers] = listed
        return listed.to(self.backbone.device)

    def choice_logits(self, states: Tensor, mask: Tensor) -> Tensor:
        """(b, w) logits of the first real token of an answer."""
        prefix = torch.tensor(self.family.choice_prefix(self.backbone), device=states.device)
        decoded = self.decode(states, mask, prefix.expand(len(states), -1))
        return self.vocabulary_logits(decoded[:, -1])

    def choice_ids(self, choices: Sequence[str]) -> list[list[int]]:
        """Tokens of words to choose from.

        Errors: ValueError if two of them begin with the same token, so that they cannot be told
        apart.
        """
        ids = [
            list(self.tokenizer(word, add_special_tokens=False)["input_ids"]) for word in choices
        ]
        firsts = {tuple(tokens[:1]) for tokens in ids}
        if len(firsts) < len(ids) or () in firsts:
            raise ValueError(
                f"choices: {', '.join(choices)} do not differ in their first token; use words "
                "that do, or generate"
            )
        return ids

    # What it is made of.

    def unique_state(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and saved buffers, tied ones once."""
        return unique_state(self)

    def pretrained_names(self) -> set[str]:
        """Names of the backbone's own tensors, relative to the backbone: all but what methods have
        added."""
        return {name for name in self.backbone.state_dict() if is_own(name)}

    def moving_names(self) -> set[str]:
        """The tensors that training changes: trainable weights, and the statistics of a vision
        encoder that is not frozen."""
        buffers = [] if self.vision.frozen else self.vision.named_buffers()
        return {*self.trained_by, *(f"vision.{name}" for name, _ in buffers)}

    def part_of(self, name: str) -> str:
        """The method that trains a parameter, or else the part of the model that holds it."""
        return self.trained_by.get(name, name.split(".", 1)[0])

    def count_parameters(self) -> Counts:
        """Weights by part, tied ones once, without the vision encoder, as in VL-Adapter's
        percentages."""
        return Counts.of(self)

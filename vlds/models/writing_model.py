"""Models whose answers Hugging Face's `generate` writes.

Shapes: b rows, w words of the vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from transformers import GenerationConfig

from vlds.models.generation.answer import Answer
from vlds.models.generation.decoding import best_choice
from vlds.models.generation.written_answers import Writer, as_answer
from vlds.models.model import Model
from vlds.schema import Batch, Decoding


class WritingModel(Model):
    """A model whose answers a `Writer` writes, or the logits behind the prompt choose."""

    @abstractmethod
    def first_logits(self, batch: Batch) -> Tensor:
        """(b, w) of the token that an answer begins with. The batch has no labels."""

    @property
    @abstractmethod
    def writer(self) -> Writer:
        """What generates answers."""

    def generation_defaults(self) -> GenerationConfig:
        return self.writer.defaults()

    @abstractmethod
    def prompts(self, batch: Batch) -> dict[str, Tensor]:
        """The arguments of `generate`, which answers continue. The batch has no labels."""

    @torch.no_grad()
    def write(self, batch: Batch, decoding: Decoding) -> list[Answer]:
        batch = batch.prompts()
        if decoding.choices is not None:
            choices = decoding.choices
            chosen, confidences = best_choice(self.first_logits(batch), self.choice_ids(choices))
            pairs = zip(chosen, confidences.tolist(), strict=True)
            return [Answer(choices[number], confidence, None) for number, confidence in pairs]
        listed = self.answer_list(decoding)
        written = self.writer.write(self.prompts(batch), decoding, listed)
        return [as_answer(each, self.tokenizer, listed) for each in written]

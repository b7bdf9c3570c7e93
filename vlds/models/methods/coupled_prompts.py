"""Prompts in both towers of CLIP (MaPLe, Khattak et al. 2023, https://arxiv.org/abs/2210.03117). In
the first `depth` layers of the text tower, learned vectors replace the first words of the classes'
template. A linear map per layer turns them into the prompts of the vision tower, which stand behind
the picture's tokens in the same layer.

Text attention is causal, so the states of a template's first words are the same for all classes.
The prompts begin as these states, so that texts begin with the frozen tower's embeddings; the
original code draws the prompts of deeper layers from N(0, 0.02^2).

Shapes: b rows, l tokens, p prompts, d width of the tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.models.methods.host import (
    Host,
    InputExtension,
    LinearExtension,
    ModelExtension,
    extended,
    states_type,
)
from vlds.runtime.checks import MadeForBatch
from vlds.schema import OptimizerRule, OptimizerRules


class Switch:
    """Turns a method's modules off for a while."""

    def __init__(self) -> None:
        self.is_on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the modules change nothing."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before


class PromptTable(nn.Module):
    """The text's prompts of all layers. A module, because ZeRO-3 gathers weights when a module
    runs."""

    optimizer_rules: ClassVar[OptimizerRules] = {"weight": OptimizerRule()}

    def __init__(self, *shape: int, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(*shape, **options), std=0.02))

    def forward(self) -> Tensor:
        """(depth, p, d)."""
        return self.weight.clone()  # ZeRO-3 empties the weight itself after this


class CoupledPrompts(ModelExtension):
    """The prompts of all layers. It runs before each pass, and layers of both towers read its
    results."""

    positions: Tensor
    """(p, d) position embeddings of the text tower, added to the first layer's prompts."""

    def __init__(
        self, depth: int, length: int, text_width: int, vision_width: int, **options: Any
    ) -> None:
        super().__init__()
        self.text = PromptTable(depth, length, text_width, **options)
        self.to_vision = nn.ModuleList(
            nn.Linear(text_width, vision_width, **options) for _ in range(depth)
        )
        self.register_buffer("positions", torch.zeros(length, text_width, **options))
        self.made_text, self.made_vision = MadeForBatch(), MadeForBatch()
        self.first = 0
        """Position of the first prompt in a text."""

    def forward(self) -> None:
        whole = self.text()
        self.made_vision.value = [
            linear(p) for linear, p in zip(self.to_vision, whole, strict=True)
        ]
        # The first layer's prompts replace words, before which the tower adds positions.
        self.made_text.value = self.first, [whole[0] + self.positions, *whole[1:]]

    @torch.no_grad()
    def start(self, text_model: Any, ids: Sequence[int], first: int) -> None:
        """Begin as the states of the words from position `first` on of a text with these ids."""
        prompts, table = self.text.weight, text_model.embeddings
        depth, length, _ = prompts.shape
        # A start token may come before the words.
        self.first = first
        tokens = torch.tensor([ids]).to(prompts.device, non_blocking=True)
        words = slice(first, first + length)
        states = text_model(input_ids=tokens, output_hidden_states=True).hidden_states
        # hidden_states[n] is the input of layer n. That of the first holds positions already,
        # which are kept apart here.
        prompts[0] = table.token_embedding(tokens)[0, words]
        self.positions.copy_(table.position_embedding.weight[words])
        for number in range(1, depth):
            prompts[number] = states[number][0, words]


class LayerPrompts(InputExtension):
    """Puts prompts into the states before the `number`-th layer of a tower."""

    def __init__(self, made: MadeForBatch, number: int, switch: Switch) -> None:
        super().__init__()
        self.made, self.number, self.switch = made, number, switch


class TextPrompts(LayerPrompts):
    """Replaces a text's first words by the layer's prompts."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.switch.is_on:
            return inputs
        first, of_layers = self.made.value
        prompts = of_layers[self.number].to(inputs)
        before, behind = inputs[:, :first], inputs[:, first + len(prompts) :]
        return torch.cat([before, prompts.expand(len(inputs), -1, -1), behind], 1)


class VisionPrompts(LayerPrompts):
    """Replaces the prompts of the layer before, behind a picture's tokens, by the layer's own."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.switch.is_on:
            return inputs
        # Behind the picture's tokens, so that the class token stays first, where CLIP reads it.
        prompts = self.made.value[self.number].to(inputs)
        kept = inputs[:, : -len(prompts)]
        return torch.cat([kept, prompts.expand(len(inputs), -1, -1)], 1)


class FirstVisionPrompts(LinearExtension):
    """Puts the first layer's prompts behind a picture's tokens. It extends the embeddings, not the
    first layer: as in the original code, the norm between them acts on the prompts too."""

    def __init__(self, made: MadeForBatch, switch: Switch) -> None:
        super().__init__()
        self.made, self.switch = made, switch

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        if not self.switch.is_on:
            return outputs
        prompts = self.made.value[0].to(outputs)
        return torch.cat([outputs, prompts.expand(len(outputs), -1, -1)], 1)


def attach_prompts(host: Host, depth: int, length: int, switch: Switch) -> CoupledPrompts:
    """Put prompts into the towers of Hugging Face's CLIP.

    Errors: ValueError for another model, or more layers than its towers have.
    """
    model: Any = host.model
    if not (hasattr(model, "text_model") and hasattr(model, "vision_model")):
        raise ValueError(
            f"{type(model).__name__} has no towers of text and pictures; choose it for a "
            "DualEncoder, with part: backbone"
        )
    if not hasattr(model.vision_model, "encoder"):
        raise ValueError(
            "prompts stand among the tokens of the vision tower, and a ResNet has none; choose a "
            "CLIP with a vision transformer"
        )
    text, vision = model.text_model.encoder.layers, model.vision_model.encoder.layers
    if depth > (most := min(len(text), len(vision))):
        raise ValueError(
            f"depth: {depth}, but the shorter tower has {most} layers; give at most that"
        )
    widths = (model.text_model.config.hidden_size, model.vision_model.config.hidden_size)
    prompts = CoupledPrompts(depth, length, *widths, dtype=states_type(model))
    host.extend_model(prompts)
    embeddings = extended(model.vision_model.embeddings)
    embeddings.extensions[host.name] = FirstVisionPrompts(prompts.made_vision, switch)
    # The vision tower's first prompts come with the embeddings; its later layers replace them.
    for number in range(depth):
        layer = extended(text[number])
        layer.input_extensions[host.name] = TextPrompts(prompts.made_text, number, switch)
        if number:
            layer = extended(vision[number])
            layer.input_extensions[host.name] = VisionPrompts(prompts.made_vision, number, switch)
    return prompts

"""Prompts of BART's decoder, as VL-Adapter's code has them (https://arxiv.org/abs/2112.06825). They
run through the decoder alone, without the encoder's states, and their keys and values stand before
those of the target in every self-attention. Positions of the target count on from the prompts'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlds.kernels.dropout import tasks_follow
from vlds.methods.base import Case, Toy, by_kinds
from vlds.methods.extended import ModelExtension
from vlds.methods.host import Host, find_modules
from vlds.methods.layouts import Library
from vlds.methods.prompt_network import LearnedEmbeddings, PromptNetwork
from vlds.methods.routing import TaskRouting
from vlds.runtime.made_for_batch import MadeForBatch


@dataclass(frozen=True, kw_only=True)
class DecoderPromptTuning(LearnedEmbeddings):
    """Learned prompts of the decoder, which leave its targets as many positions fewer; BART only,
    whose decoder has absolute positions."""

    recomputable: ClassVar[bool] = False  # layers that run twice a pass, in two states
    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    reasons: ClassVar[Mapping[Library, str]] = {
        "peft": "peft has no prompts that run through the decoder alone"
    }

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put the prompts beside the model, and a place for their keys and values into every
        self-attention of the decoder."""
        (positions,) = find_modules(host.model, host.targets, "decoder_positions").values()
        layers = {layer_of(path) for path in host.linears("cross_attn_k")}
        keys = host.linears("attn_k")
        decoder_keys = {path: linear for path, linear in keys.items() if layer_of(path) in layers}
        projection = next(iter(decoder_keys.values()))
        network = PromptNetwork(self, host, projection, projection.in_features)
        positions.offset += self.length  # type: ignore[assignment, operator]
        recorded = [RecordedPrefix(self.length, host.context.routing) for _ in decoder_keys]
        for path, prefix in zip(decoder_keys, recorded, strict=True):
            host.extend_attention(path, prefix)
        decoder = host.model.get_decoder()  # type: ignore[operator]
        host.extend_model(
            DecoderPrompts(network, decoder, positions, recorded, host.context.routing)
        )
        return list(network.parameters())

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        cases = cls.network_cases("decoder_network", Toy.width, Toy.width)
        refused = by_kinds("no layer of .* plays the role 'decoder_positions'")
        return {
            word: replace(case, families=("Bart",), refused=case.refused | refused)
            for word, case in cases.items()
        }


class DecoderPrompts(ModelExtension):
    """The prompts of all tasks, and what runs them through the decoder."""

    runs_layers = True
    gives_prompts = True

    def __init__(
        self,
        network: PromptNetwork,
        decoder: nn.Module,
        positions: Any,
        recorded: Sequence[RecordedPrefix],
        routing: TaskRouting,
    ) -> None:
        super().__init__()
        self.decoder_network, self.routing = network, routing
        # In a tuple, they are not this module's children: they are the model's.
        self.others = (decoder, positions, recorded)

    def forward(self) -> None:
        """Run the prompts of the tasks present; their keys and values stay in the attentions."""
        decoder, positions, recorded = self.others
        prompts = self.decoder_network()
        # Positions count from the prompts here, and from behind them in the running batch.
        positions.offset -= prompts.shape[1]
        for prefix in recorded:
            prefix.records = True
        try:
            with self.routing.each_task(), tasks_follow(self.routing.tasks):
                decoder(inputs_embeds=self.routing.of_rows(prompts), use_cache=False)
        finally:
            positions.offset += prompts.shape[1]
            for prefix in recorded:
                prefix.records = False


class RecordedPrefix(nn.Module):
    """Keys and values of one attention: recorded when the prompts run, and put before those of each
    later pass."""

    def __init__(self, length: int, routing: TaskRouting) -> None:
        super().__init__()
        self.length, self.routing = length, routing
        self.records = False
        self.pair = MadeForBatch()
        self.tasks: list[int] = []
        """Whose they are, in order; later some may have left the batch."""

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(b, heads, s, d) keys and values -> (b, heads, p + s, d)."""
        if self.records:
            # Without what other methods have put before them, and will again.
            self.pair.value = keys[:, :, -self.length :], values[:, :, -self.length :]
            self.tasks = self.routing.tasks
            return keys, values
        before = [self.routing.of_present(tensor, self.tasks) for tensor in self.pair.value]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


def layer_of(path: str) -> str:
    """`model.decoder.layers.3.self_attn.k_proj` -> model.decoder.layers.3."""
    return path.rsplit(".", 2)[0]

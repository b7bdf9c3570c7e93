"""Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691), with a small network that
makes the prompts while they train, as VL-Adapter has it (https://arxiv.org/abs/2112.06825):

    prompts = W_2 tanh( W_1 E + b_1 ) + b_2,    E: a table of `length` embeddings.

They stand before the text in the encoder's input, and the decoder attends to them too. On T5 they
have relative positions like the text behind them; on BART no positions, but the embedding norm.
`DecoderPromptTuning` has them in BART's decoder instead. Prefixes (`prefix_tuning.py`) are made by
the same network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlds.models.kernels.dropout import tasks_follow
from vlds.models.methods.adapter import init_linear
from vlds.models.methods.base import (
    Layout,
    Library,
    Method,
    Stored,
    is_t5,
    num_slices,
)
from vlds.models.methods.context import TaskRouting
from vlds.models.methods.host import (
    Host,
    ModelExtension,
    added_tensors,
    weight_options,
)
from vlds.runtime.checks import Count, MadeForBatch
from vlds.schema import STACKED, STACKED_UNDECAYED, OptimizerRules

NETWORK_NAMES = {
    "table": "0.weight",
    "hidden_weight": "1.weight",
    "hidden_bias": "1.bias",
    "output_weight": "3.weight",
    "output_bias": "3.bias",
}
"""Tensor of a network -> its name in the original code."""


@dataclass(frozen=True, kw_only=True)
class LearnedEmbeddings(Method):
    """Base of prompts and prefixes: embeddings, and the network that makes them in training."""

    merges_to_itself: ClassVar[bool] = True
    original_owner: ClassVar[str] = ""
    """Prefix of the prompts' names in the original code."""

    sharing: Literal["single", "multiple"] = "single"
    """Whether tasks share one set of embeddings, or have one each."""
    length: Count = 40
    """Number of prompts or prefixes."""
    hidden_dim: Count | None = 800
    """Width of the network that makes them in training; null: they are learned as they are."""

    def __post_init__(self) -> None:
        if self.part == "vision":
            raise ValueError(
                f"part: {type(self).__name__} stands before text, and the vision encoder reads "
                "none; use backbone"
            )

    def merge(self, name: str, model: nn.Module, tasks: Sequence[str]) -> Mapping[str, Method]:
        """Keep what the network makes, without the network."""
        # The network's table becomes what it makes; then `hidden_dim: null` describes it.
        for module in model.get_submodule(f"extensions.{name}").modules():
            if isinstance(module, PromptNetwork) and module.has_layers:
                with torch.no_grad():
                    module.table = nn.Parameter(module(), requires_grad=False)
                module.has_layers = False
                for leaf in ("hidden_weight", "hidden_bias", "output_weight", "output_bias"):
                    delattr(module, leaf)
        return {name: replace(self, hidden_dim=None)}

    def refusal(self, library: Library, model: Any) -> str | None:
        reason = super().refusal(library, model)
        if reason is None and library == "reference" and self.hidden_dim is None:
            return "the original code always makes prompts with a network (hidden_dim)"
        return reason

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """The original code's layout: a small network for each task."""
        tensors = {}
        for tensor in added_tensors(model, name):
            original = NETWORK_NAMES[tensor.leaf.rpartition(".")[2]]
            key = f"prompt_modules.prompts.{{task}}.prefix_embedding.{original}"
            tensors[tensor.name] = Stored((self.original_owner + key,))
        return Layout(tensors)


class PromptNetwork(nn.Module):
    """Tables and networks of all tasks, stacked (tasks or 1, ...)."""

    optimizer_rules: ClassVar[OptimizerRules] = {
        "table": STACKED,
        "hidden_weight": STACKED,
        "hidden_bias": STACKED_UNDECAYED,
        "output_weight": STACKED,
        "output_bias": STACKED_UNDECAYED,
    }

    def __init__(
        self,
        config: LearnedEmbeddings,
        host: Host,
        like: nn.Linear | nn.Embedding,
        output_width: int,
    ) -> None:
        """The table's embeddings have the width and type of `like`: a layer that reads the model's
        states, or the table of its words."""
        super().__init__()
        num, _ = num_slices(config.sharing, len(host.tasks))
        width = like.in_features if isinstance(like, nn.Linear) else like.embedding_dim
        hidden_dim, options = config.hidden_dim, weight_options(like)
        init_std = host.targets.linear_init_std
        self.has_layers = hidden_dim is not None
        # Without a network, the table's entries are the embeddings themselves.
        inputs = output_width if hidden_dim is None else width
        table = torch.empty(num, config.length, inputs, **options)
        self.table = nn.Parameter(nn.init.normal_(table, std=1.0 if init_std is None else init_std))
        if hidden_dim is not None:
            self.hidden_weight = nn.Parameter(torch.empty(num, hidden_dim, width, **options))
            self.hidden_bias = nn.Parameter(torch.empty(num, hidden_dim, **options))
            self.output_weight = nn.Parameter(torch.empty(num, output_width, hidden_dim, **options))
            self.output_bias = nn.Parameter(torch.empty(num, output_width, **options))
            init_linear(self.hidden_weight, self.hidden_bias, init_std)
            init_linear(self.output_weight, self.output_bias, init_std)

    def forward(self) -> Tensor:
        """(tasks or 1, length, output_width)."""
        if not self.has_layers:
            return self.table.clone()  # ZeRO-3 empties the table itself after this
        hidden = self.table @ self.hidden_weight.mT + self.hidden_bias[:, None]
        return hidden.tanh() @ self.output_weight.mT + self.output_bias[:, None]


@dataclass(frozen=True, kw_only=True)
class PromptTuning(LearnedEmbeddings):
    """Learned embeddings before the text."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"peft", "reference"})
    original_owner: ClassVar[str] = "encoder."

    def attach(self, host: Host) -> list[nn.Parameter]:
        host.check_prompts()
        words = host.model.get_input_embeddings()  # type: ignore[operator]
        network = PromptNetwork(self, host, words, words.embedding_dim)
        host.extend_model(Prompts(network, host.context.routing))
        return list(network.parameters())

    def refusal(self, library: Library, model: Any) -> str | None:
        if library == "peft" and not is_t5(model):
            return (
                "peft's prompts have positions, and on BART move the text's; PromptTuning's have "
                "none there. `vlds convert hf` keeps them"
            )
        if library == "peft" and self.hidden_dim is not None:
            return (
                f"hidden_dim is {self.hidden_dim}, but peft has no prompt network; set it to null"
            )
        return super().refusal(library, model)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """peft's: the prompts alone."""
        if library == "reference":
            return super().layout(library, name, model)
        (table,) = added_tensors(model, name)  # `refusal` allows no network
        config = {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.length,
            # The encoder alone has prompts.
            "num_transformer_submodules": 1,
            "token_dim": model.config.d_model,
            "num_layers": model.config.num_hidden_layers,
            "num_attention_heads": model.config.num_attention_heads,
        }
        return Layout({table.name: Stored(("prompt_embeddings",))}, config)


class Prompts(ModelExtension):
    """The prompts of all tasks."""

    gives_prompts = True

    def __init__(self, network: PromptNetwork, routing: TaskRouting) -> None:
        super().__init__()
        self.network, self.routing = network, routing

    def forward(self) -> Tensor:
        """(b, length, d): each row's prompts."""
        return self.routing.of_rows(self.network())


@dataclass(frozen=True, kw_only=True)
class DecoderPromptTuning(LearnedEmbeddings):
    """Learned prompts of the decoder, which leave its targets as many positions fewer; BART only,
    whose decoder has absolute positions.

    As in VL-Adapter's code (https://arxiv.org/abs/2112.06825), they run through the decoder alone,
    without the encoder's states, and their keys and values stand before those of the target in
    every self-attention. Positions of the target count on from the prompts'.
    """

    recomputable: ClassVar[bool] = False  # layers that run twice a pass, in two states
    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    reasons: ClassVar[Mapping[Library, str]] = {
        "peft": "peft has no prompts that run through the decoder alone"
    }

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put the prompts beside the model, and a place for their keys and values into every
        self-attention of the decoder."""
        (positions,) = host.modules_of("decoder_positions").values()
        # Layers with cross-attention are the decoder's. Two steps up from the projection
        # `model.decoder.layers.3.self_attn.k_proj` is its layer.
        layers = {path.rsplit(".", 2)[0] for path in host.linears("cross_attn_k")}
        keys = host.linears("attn_k")
        decoder_keys = {path: k for path, k in keys.items() if path.rsplit(".", 2)[0] in layers}
        projection = next(iter(decoder_keys.values()))
        network = PromptNetwork(self, host, projection, projection.in_features)
        # BART's table of positions adds this offset, 2 at first, to each number.
        positions.offset += self.length  # type: ignore[assignment, operator]
        recorded = [RecordedPrefix(self.length, host.context.routing) for _ in decoder_keys]
        for path, prefix in zip(decoder_keys, recorded, strict=True):
            host.extend_attention(path, prefix)
        decoder = host.model.get_decoder()  # type: ignore[operator]
        host.extend_model(
            DecoderPrompts(network, decoder, positions, recorded, host.context.routing)
        )
        return list(network.parameters())


class DecoderPrompts(ModelExtension):
    """The prompts of all tasks; runs them through the decoder before each pass."""

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
        # A tuple hides them from nn.Module: they are the model's children, not this module's.
        self.others = (decoder, positions, recorded)

    def forward(self) -> None:
        """Run the prompts of the tasks present; their keys and values stay in the attentions."""
        decoder, positions, recorded = self.others
        prompts = self.decoder_network()
        # Here positions count from the first prompt; in the running batch, from behind the last.
        positions.offset -= prompts.shape[1]
        for prefix in recorded:
            prefix.records = True
        try:
            # Once for each task of the batch: all rows of a task have the same prompts.
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
        """The recorded rows' tasks, in order; later passes may have fewer of them."""

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(b, heads, s, d) keys and values -> (b, heads, p + s, d)."""
        if self.records:
            # Without what other methods have put before them, and will again.
            self.pair.value = keys[:, :, -self.length :], values[:, :, -self.length :]
            self.tasks = self.routing.tasks
            return keys, values
        # A row for each task -> a row for each example.
        before = [self.routing.of_present(tensor, self.tasks) for tensor in self.pair.value]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

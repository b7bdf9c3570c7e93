"""Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691), with a small network that
makes the prompts while they train, as VL-Adapter has it (https://arxiv.org/abs/2112.06825):

    prompts = W_2 tanh( W_1 E + b_1 ) + b_2,    E: a table of `length` embeddings.

They stand before the text in the encoder's input, and the decoder attends to them too. On T5 they
have relative positions like the text behind them; on BART no positions, but the embedding norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from vlds.methods.base import Case, Toy
from vlds.methods.extended import ModelExtension, added_tensors
from vlds.methods.host import Host
from vlds.methods.layouts import Layout, Library, Stored, is_t5
from vlds.methods.prompt_network import LearnedEmbeddings, PromptNetwork
from vlds.methods.routing import TaskRouting


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
        """peft's prompts are T5's, and have no network."""
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
        (table,) = added_tensors(model, name)
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

    @classmethod
    def cases(cls) -> Mapping[str, Case]:
        cases = cls.network_cases("network", Toy.width, Toy.width)
        refused = {
            "Bart peft": "peft's prompts have positions, and on BART move the text's",
            "ImageTextToText": ".* takes no prompts, .*; choose a method that extends layers",
        }
        return {w: replace(case, refused=case.refused | refused) for w, case in cases.items()}


class Prompts(ModelExtension):
    """The prompts of all tasks."""

    gives_prompts = True

    def __init__(self, network: PromptNetwork, routing: TaskRouting) -> None:
        super().__init__()
        self.network, self.routing = network, routing

    def forward(self) -> Tensor:
        """(b, length, d): each row's prompts."""
        return self.routing.of_rows(self.network())

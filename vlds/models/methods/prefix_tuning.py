"""Prefix tuning (Li and Liang 2021, https://arxiv.org/abs/2101.00190): learned keys and values
before those of every attention, made by a small network while they train.

They are real keys and values: no token stands behind them, and positions count from the text's own
first token, so that on T5 their relative position bias is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vlds.models.methods.base import Library
from vlds.models.methods.context import TaskRouting
from vlds.models.methods.host import CROSS_ATTENTION, Host, ModelExtension
from vlds.models.methods.prompt_tuning import LearnedEmbeddings, PromptNetwork
from vlds.runtime.checks import Count, MadeForBatch
from vlds.schema import Role


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(LearnedEmbeddings):
    """Learned keys and values in every attention."""

    reasons: ClassVar[Mapping[Library, str]] = {
        "peft": "peft puts prefixes before the decoder's keys alone, vlds into every attention"
    }

    length: Count = 20
    """Number of keys and values before those of the input."""
    hidden_dim: Count | None = 512
    """Width of the network that makes them in training; null: they are learned as they are."""
    cross_attention: bool = True
    """Prefixes in cross-attention too, where the model has it."""

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put the network beside the model, and a place for its prefixes into every attention."""
        # Cross-attentions last: weights are stored in this order (see `fixed_prefixes`).
        roles: list[Role] = ["attn_k", "cross_attn_k"] if self.cross_attention else ["attn_k"]
        keys = host.linears(*roles, optional=CROSS_ATTENTION)
        if len(widths := sorted({key.out_features for key in keys.values()})) > 1:
            raise ValueError(
                f"keys of {type(host.model).__name__} are {' and '.join(map(str, widths))} wide, "
                "and one network makes all prefixes; tune one of its parts"
            )
        return list(self.put(host, list(keys), next(iter(keys.values()))).parameters())

    def put(self, host: Host, keys: Sequence[str], projection: nn.Linear) -> PromptNetwork:
        """Put the network of all prefixes beside the model. `keys`: paths of the attentions' key
        projections; `projection`: one of them."""
        network = PromptNetwork(self, host, projection, 2 * projection.out_features * len(keys))
        prefixes = Prefixes(network, 2 * len(keys))
        for index, path in enumerate(keys):
            host.extend_attention(path, Prefix(prefixes.pieces, index, host.context.routing))
        host.extend_model(prefixes)
        return network


@torch.no_grad()
def fixed_prefixes(
    host: Host, made: Mapping[str, Sequence[Tensor]], cross_attention: bool
) -> PrefixTuning:
    """Put prefixes, made by another method, into a model; the method that describes them.

    `made`: path of an attention's key projection -> keys and values of all tasks, (tasks, p,
    width). Cross-attentions come last, the order in which PrefixTuning attaches.
    """
    pieces = [piece for pair in made.values() for piece in pair]
    length = pieces[0].shape[1]
    method = PrefixTuning(
        sharing="multiple", length=length, hidden_dim=None, cross_attention=cross_attention
    )
    first = host.model.get_submodule(next(iter(made)))
    assert isinstance(first, nn.Linear)
    # Without hidden layers the network is its table: keys and values of all attentions, by columns.
    method.put(host, list(made), first).table.copy_(torch.cat(pieces, -1))
    return method


class Prefixes(ModelExtension):
    """The prefixes of all tasks and attentions."""

    def __init__(self, network: PromptNetwork, num_pieces: int) -> None:
        super().__init__()
        self.network, self.num_pieces = network, num_pieces
        self.pieces = MadeForBatch()

    def forward(self) -> None:
        # Keys of the first attention, its values, keys of the second, ...
        self.pieces.value = self.network().chunk(self.num_pieces, dim=-1)


class Prefix(nn.Module):
    """The prefixes of one attention."""

    def __init__(self, pieces: MadeForBatch, index: int, routing: TaskRouting) -> None:
        """`pieces`: keys, then values, of one attention after another."""
        super().__init__()
        self.pieces, self.index, self.routing = pieces, index, routing

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(b, heads, s, d) keys and values -> (b, heads, p + s, d)."""
        # Pieces 2 i and 2 i + 1: keys and values of attention i.
        pair = self.pieces.value[2 * self.index : 2 * self.index + 2]
        of_rows = (self.routing.of_keys(piece, len(keys)) for piece in pair)
        # (b, p, heads * d) -> (b, heads, p, d)
        before = [rows.unflatten(-1, (keys.shape[1], -1)).transpose(1, 2) for rows in of_rows]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

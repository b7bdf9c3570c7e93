"""A side network that begins as its backbone with the less important units taken away: LST's
"fisher-v2".

The importance of a weight is the sum of its squared gradients over single examples of text. Along
each layer, the units that stay are chosen by the L1 norms of the rows of the importance: rows of q,
k and v by their product, all others by their own. What stays of a layer's rows is what is read of
the next one's columns, so no coordinate of the residual stream keeps its meaning.

The original code lists the units that stay in the order in which Python's set gives them, which
decides which of them make up an attention head. `sorted_units` is the sound choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Order = Callable[[int, set[int]], list[int]]
"""Number of units, and those that go -> those that stay, in order."""


def reference_units(num: int, gone: set[int]) -> list[int]:
    """In the order of the original code, that of a set of numbers."""
    return list(set(range(num)) - gone)


def sorted_units(num: int, gone: set[int]) -> list[int]:
    """In rising order."""
    return sorted(set(range(num)) - gone)


class Pruning:
    """Takes units away along the layers of a T5."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        reduction: int,
        order: Order,
    ) -> None:
        """`weights`, `importance`: by Hugging Face's names."""
        self.weights, self.importance = weights, importance
        self.reduction, self.order = reduction, order
        self.pruned: dict[str, Tensor] = {}

    def kept(self, scores: Tensor) -> list[int]:
        """Numbers of the units that stay, given each one's score."""
        num = len(scores)
        num_gone = round((1 - 1 / self.reduction) * num)
        gone = torch.argsort(scores, stable=True)[:num_gone]
        return self.order(num, set(gone.tolist()))

    def run(self, num_encoder: int, num_decoder: int) -> dict[str, Tensor]:
        """The weights of all blocks and final norms that are left."""
        table = self.importance["shared.weight"].double()
        units = self.kept(table.abs().sum(0))
        for stack, num in (("encoder", num_encoder), ("decoder", num_decoder)):
            for number in range(num):
                units = self.block(f"{stack}.block.{number}.layer", units)
            self.norm(f"{stack}.final_layer_norm", units)
            bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            self.pruned[bias] = self.weights[bias].clone()
        return self.pruned

    def block(self, path: str, units: list[int]) -> list[int]:
        """One block; the units that its output keeps."""
        for layer, names in self.layers(path):
            self.norm(f"{path}.{layer}.layer_norm", units)
            *inner, last = names
            rows = self.matrices([f"{path}.{layer}.{name}.weight" for name in inner], units)
            units = self.matrices([f"{path}.{layer}.{last}.weight"], rows)
        return units

    def layers(self, path: str) -> Iterator[tuple[int, Sequence[str]]]:
        """Number and matrices of each sub-layer of a block, the last one making its output."""
        layer = 0
        while f"{path}.{layer}.layer_norm.weight" in self.weights:
            prefix = f"{path}.{layer}."
            found = [n for n in self.weights if n.startswith(prefix) and "norm" not in n]
            names = [n.removeprefix(prefix).removesuffix(".weight") for n in found]
            names = [name for name in names if "relative_attention_bias" not in name]
            yield layer, sorted(names, key=lambda name: name.endswith((".o", ".wo")))
            layer += 1

    def matrices(self, names: Sequence[str], columns: list[int]) -> list[int]:
        """Prune matrices that read the same units; rows are chosen by the product of their
        importance, in double precision since cubes of squares are small."""
        scores: Tensor | float = 1.0
        for name in names:
            scores = scores * self.importance[name].double()[:, columns]
        assert isinstance(scores, Tensor)
        rows = self.kept(scores.abs().sum(1))
        for name in names:
            self.pruned[name] = self.weights[name][:, columns][rows].clone()
        return rows

    def norm(self, path: str, units: list[int]) -> None:
        """Prune a norm."""
        self.pruned[f"{path}.weight"] = self.weights[f"{path}.weight"][units].clone()

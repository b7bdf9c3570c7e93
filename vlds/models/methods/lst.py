"""Ladder Side-Tuning (Sung et al. 2022, https://arxiv.org/abs/2206.06522): a narrow encoder-decoder
beside the backbone, fed by rungs from the backbone's layers. With the backbone's layer outputs h_i
and the side's states s, side layer i reads

    g s + (1 - g) [ W_i h_i + b_i ; 0 ],    g = sigmoid( a_i / 0.1 ),

where the zeros stand for the pictures, which the side alone reads. The first side layer's s is a
projection of the embeddings, and the last one's states are widened before the backbone's own head.
Nothing in front of the backbone trains, so it runs without gradients and keeps no activations.

As the original code for T5. On BART, whose stacks the paper does not have, the choices are the
same: the side's embeddings, positions and embedding norm are the backbone's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlds.models.methods.base import Layout, Library, Method, Stored, is_t5
from vlds.models.methods.host import (
    Host,
    InputExtension,
    NoteOutput,
    SidePath,
    added_tensors,
    extended,
    is_own,
    weight_options,
)
from vlds.models.methods.importance import read_importance
from vlds.runtime.checks import Count, MadeForBatch, SourceFile
from vlds.schema import UNDECAYED, OptimizerRule, OptimizerRules

TEMPERATURE = 0.1
"""Gates divide their weight by it."""
LADDER_NAMES = {
    r"stacks\.(\w+)\.block\.\d+\.input_extensions\.enter\.linear\.(\w+)": (
        r"\1.side_first_downsample.\2"
    ),
    r"stacks\.(\w+)\.block\.\d+\.input_extensions\.rung\.linear\.(\w+)": (
        r"\1.side_downsamples.{number}.\2"
    ),
    r"stacks\.(\w+)\.block\.\d+\.input_extensions\.rung\.gate": r"\1.side_gate_params.{number}",
    r"stacks\.(\w+)\.block\.\d+\.(layer\..+)": r"\1.side_block.{number}.\2",
    r"stacks\.(\w+)\.final_layer_norm\.weight": r"\1.final_side_layer_norm.weight",
    r"idle_gates\.(\w+)_(\d+)": r"\1.side_gate_params.\2",
    r"up\.(\w+)": r"side_final_upsample.\1",
}
"""Path of a tensor in the ladder on T5 -> its name in the original code, where `{number}` stands
for the number of the backbone's layer."""


@dataclass(frozen=True, kw_only=True)
class LST(Method):
    """A narrow side network, fed by the backbone's layers."""

    libraries: ClassVar[frozenset[Library]] = frozenset({"reference"})
    recomputable: ClassVar[bool] = False

    reduction: Count = 4
    """Width of the model divided by the width of the side."""
    encoder_layers: list[int] | None = None
    """Numbers, from 0, of the encoder's layers that have a rung and a side layer; default: all."""
    decoder_layers: list[int] | None = None
    """The same for the decoder."""
    start: Literal["random", "fisher", "fisher_sorted"] = "random"
    """How side layers begin: random, or as the backbone's without its less important units
    (T5 alone); fisher lists units in the original code's order, fisher_sorted in their own."""
    importance: SourceFile | None = None
    """With fisher and fisher_sorted: a file that `vlds importance` wrote for the backbone."""

    def __post_init__(self) -> None:
        if self.part != "backbone":
            raise ValueError(f"part: got {self.part}; LST stands beside an encoder-decoder")
        if (self.start == "random") != (self.importance is None):
            raise ValueError(
                f"importance: got {self.importance} with start: {self.start}; fisher and "
                "fisher_sorted need a file that `vlds importance` wrote, and random none"
            )

    def attach(self, host: Host) -> list[nn.Parameter]:
        """Put the side network beside the model.

        Errors: ValueError if the model is not an encoder-decoder, or a stack has fewer layers.
        """
        if host.targets.narrow is None:
            raise ValueError(
                f"{type(host.model).__name__} has no encoder and decoder that LST could stand "
                "beside; choose the kind JointSeq2Seq, or another method, such as LoRA"
            )
        hosts = [replace(host, stack="encoder"), replace(host, stack="decoder")]
        # Numbers of each stack's layers that have a rung.
        chosen: list[list[int]] = []
        for stack_host in hosts:
            num, field = len(stack_host.modules_of("layer")), f"{stack_host.stack}_layers"
            given: list[int] | None = getattr(self, field)
            numbers = list(range(num)) if given is None else given
            in_order = numbers == sorted(set(numbers)) and bool(numbers)
            if not in_order or not 0 <= numbers[0] <= numbers[-1] < num:
                raise ValueError(
                    f"{field}: got {numbers}; give numbers from 0 to {num - 1} in order, each once"
                )
            chosen.append(numbers)
        stacks = host.targets.narrow(host.model, self.reduction, (len(chosen[0]), len(chosen[1])))
        # The side shares tables with the backbone, which do not train. Noted before `extend_model`
        # makes the ladder a part of the model.
        own = {id(parameter) for parameter in host.model.parameters()}
        ladder = Ladder(host.model, stacks, list(zip(hosts, chosen, strict=True)))
        if self.importance is not None:
            self.prune(host.model, ladder, chosen)
        host.extend_model(ladder)
        return [p for p in ladder.parameters() if id(p) not in own]

    def in_artifact(self) -> LST:
        # Without the file of importance: the artifact holds the weights that it led to.
        return replace(self, start="random", importance=None)

    def resumed(self) -> LST:
        # All of the side trains, so that the run's state holds it.
        return self.in_artifact()

    def prune(self, model: Any, ladder: Ladder, chosen: Sequence[list[int]]) -> None:
        """Let the side's layers begin as the backbone's, pruned.

        Errors: ValueError if the backbone is not a T5, or the file was written for another one.
        """
        if not is_t5(model):
            raise ValueError(f"start: got {self.start}; only T5's layers can be pruned: set random")
        assert self.importance is not None
        weights = {n: t for n, t in model.state_dict().items() if is_own(n)}
        parameters = {n: p for n, p in model.named_parameters() if is_own(n)}
        importance = read_importance(Path(self.importance), parameters)
        if model.shared.weight.is_meta:  # names and shapes are checked; there is nothing to copy
            return
        order = reference_units if self.start == "fisher" else sorted_units
        config = model.config
        pruned = Pruning(weights, importance, self.reduction, order).run(
            config.num_layers, config.num_decoder_layers
        )
        numbers = dict(zip(("encoder", "decoder"), chosen, strict=True))
        for name, tensor in ladder.stacks.state_dict().items():
            source = name
            if match := re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.(.+)", name):
                # The first side layer has the table of positions, whichever layer it stands for.
                is_table = "relative_attention_bias" in match[3]
                number = 0 if is_table else numbers[match[1]][int(match[2])]
                source = f"{match[1]}.block.{number}.{match[3]}"
            # Tables and projections are not pruned: those keep what they were given.
            if source in pruned:
                tensor.copy_(pruned[source])

    def refusal(self, library: Library, model: Any) -> str | None:
        if library == "reference" and not is_t5(model):
            return "the original code has LST beside T5 alone"
        return super().refusal(library, model)

    def layout(self, library: Library, name: str, model: Any) -> Layout:
        """Side layers, projections and gates, as LST's code names them."""
        tensors = {}
        for tensor in added_tensors(model, name):
            matches = (
                (re.fullmatch(pattern, tensor.leaf), to) for pattern, to in LADDER_NAMES.items()
            )
            key = next((match.expand(to) for match, to in matches if match), None)
            if key is None:
                raise ValueError(f"{tensor.leaf}: LST's code has no such tensor")
            if number := re.match(r"stacks\.(\w+)\.block\.(\d+)\.", tensor.leaf):
                numbers: list[int] | None = getattr(self, f"{number[1]}_layers")
                # The side's block 1 may stand for the backbone's layer 3: LST's code has the 3.
                place = int(number[2])
                key = key.format(number=place if numbers is None else numbers[place])
            tensors[tensor.name] = Stored((key,), stacked=False)
        return Layout(tensors)


class Ladder(SidePath):
    """LST's side network."""

    optimizer_rules: ClassVar[OptimizerRules] = {
        "stacks.*.block.0.layer.0.SelfAttention.relative_attention_bias.weight": UNDECAYED,
        "idle_gates.*": OptimizerRule(),
    }

    def __init__(self, model: Any, stacks: nn.Module, rungs: list[tuple[Host, list[int]]]) -> None:
        """`model`: the backbone. `rungs`: its stacks, and the numbers of the layers in each whose
        output a layer of the side reads."""
        super().__init__(stacks)
        options = weight_options(model.get_input_embeddings())
        width, narrow = model.config.d_model, self.stacks.config.d_model
        self.idle_gates = nn.ParameterDict()
        """Gates of the layers without a rung, which the original code has, too."""
        self.up = nn.Linear(narrow, width, **options)
        for host, numbers in rungs:
            layers = list(host.modules_of("layer").values())
            side = replace(host, model=self.stacks).modules_of("layer").values()
            for place, (number, layer) in enumerate(zip(numbers, side, strict=True)):
                # Drawn for the backbone's sizes, as in the original code.
                layer.apply(model._init_weights)
                note = NoteOutput()
                extended(layers[number]).extensions[host.name] = note
                # The embeddings are narrowed first, then mixed: a dict keeps this order.
                before = extended(layer).input_extensions
                if place == 0:
                    before["enter"] = Enter(nn.Linear(width, narrow, **options))
                before["rung"] = Rung(nn.Linear(width, narrow, **options), note.noted)
            for number in set(range(len(layers))).difference(numbers):
                gate = nn.Parameter(torch.zeros(1, **options))
                self.idle_gates[f"{host.stack}_{number}"] = gate

    def leave(self, states: Tensor) -> Tensor:
        widened: Tensor = self.up(states)
        return widened


class Enter(InputExtension):
    """Narrows the embeddings for the first layer of a side."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, inputs: Tensor) -> Tensor:
        """(b, l, d) -> (b, l, d / reduction)."""
        narrowed: Tensor = self.linear(inputs)
        return narrowed


class Rung(InputExtension):
    """Mixes what a layer of the backbone gives into the input of a layer of the side."""

    optimizer_rules: ClassVar[OptimizerRules] = {"gate": OptimizerRule()}

    def __init__(self, linear: nn.Linear, layer: MadeForBatch) -> None:
        super().__init__()
        self.linear, self.layer = linear, layer
        # At 0, half of each: sigmoid(0) = 1/2.
        self.gate = nn.Parameter(torch.zeros(1, **weight_options(linear)))

    def forward(self, inputs: Tensor) -> Tensor:
        """(b, l + v, d / reduction) -> the same; the backbone has read the first l tokens."""
        share = torch.sigmoid(self.gate / TEMPERATURE)
        read = self.linear(self.layer.take())
        # Zeros stand for the pictures behind the text.
        read = F.pad(read, (0, 0, 0, inputs.shape[1] - read.shape[1]))
        return share * inputs + (1 - share) * read


def reference_units(num: int, gone: set[int]) -> list[int]:
    """In the order of the original code, which is that of Python's set. It decides which units make
    up an attention head."""
    return list(set(range(num)) - gone)


def sorted_units(num: int, gone: set[int]) -> list[int]:
    """In rising order, the sound choice: units of one head stay neighbours."""
    return sorted(set(range(num)) - gone)


class Pruning:
    """A T5 with the less important units taken away, which a side network begins as: LST's
    "fisher-v2".

    The importance of a weight is the sum of its squared gradients over single examples of text.
    Along each layer, the units that stay are chosen by the L1 norms of the rows of the importance:
    rows of q, k and v by their product, all others by their own. What stays of a layer's rows is
    what is read of the next one's columns, so no coordinate of the residual stream keeps its
    meaning.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        importance: Mapping[str, Tensor],
        reduction: int,
        order: Callable[[int, set[int]], list[int]],
    ) -> None:
        """`weights`, `importance`: by Hugging Face's names. `order`: number of units, and those
        that go -> those that stay, in order."""
        self.weights, self.importance = weights, importance
        self.reduction, self.order = reduction, order
        self.pruned: dict[str, Tensor] = {}

    def run(self, num_encoder: int, num_decoder: int) -> dict[str, Tensor]:
        """The weights of all blocks and final norms that are left."""
        # The width of the residual stream, which each layer's output below chooses anew.
        units = self.kept(self.importance["shared.weight"].double().abs().sum(0))
        for stack, num in (("encoder", num_encoder), ("decoder", num_decoder)):
            for number in range(num):
                for layer in count():
                    prefix = f"{stack}.block.{number}.layer.{layer}."
                    if (norm := f"{prefix}layer_norm.weight") not in self.weights:
                        break
                    self.pruned[norm] = self.weights[norm][units].clone()
                    # The matrix that makes the layer's output comes last; the others read `units`.
                    found = (n for n in self.weights if n.startswith(prefix) and "norm" not in n)
                    *inner, last = sorted(
                        (name for name in found if "relative_attention_bias" not in name),
                        key=lambda name: name.endswith((".o.weight", ".wo.weight")),
                    )
                    units = self.prune([last], self.prune(inner, units))
            norm = f"{stack}.final_layer_norm.weight"
            self.pruned[norm] = self.weights[norm][units].clone()
            # The table of positions is whole: no head goes, all become narrower.
            bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            self.pruned[bias] = self.weights[bias].clone()
        return self.pruned

    def prune(self, names: Sequence[str], columns: list[int]) -> list[int]:
        """Prune matrices that read the same units, `columns`; the rows that stay of them."""
        scores: Tensor | float = 1.0
        for name in names:
            # In double precision: products of three sums of squares are small.
            scores = scores * self.importance[name].double()[:, columns]
        assert isinstance(scores, Tensor)
        rows = self.kept(scores.abs().sum(1))
        for name in names:
            self.pruned[name] = self.weights[name][:, columns][rows].clone()
        return rows

    def kept(self, scores: Tensor) -> list[int]:
        """Numbers of the units that stay, given each one's score."""
        num = len(scores)
        num_gone = round((1 - 1 / self.reduction) * num)
        # Stable, so that of equal scores the first go, on every machine.
        gone = torch.argsort(scores, stable=True)[:num_gone]
        return self.order(num, set(gone.tolist()))
